"""`doctor`: what this machine is, what will and will not work on it, each with the fix. Exit 1 when the main job cannot run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trtllm_bench.errors import FAILURE

if TYPE_CHECKING:
    from trtllm_bench.machine import Check


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder results would be written to.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Say what works on this machine, and how to mend what does not.

    Examples:
      trtllm-bench doctor
      trtllm-bench doctor --json
    """
    from trtllm_bench import machine

    checks = list(machine.checks(out))
    stopped = [check for check in checks if check.state == "stop"]
    if as_json:
        import json

        typer.echo(json.dumps({"ok": not stopped, "checks": machine.as_rows(checks)}, indent=2))
    else:
        _print(checks)
        if stopped:
            typer.echo(f"\n{_counted(len(stopped), 'problem')} above to mend before the main job can run")
        else:
            limits = sum(check.state == "limit" for check in checks)
            typer.echo("\nReady: trtllm-bench sweep" + (f" ({_counted(limits, 'limit')} above)" if limits else ""))
    if stopped:
        raise typer.Exit(FAILURE)


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _print(checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    from trtllm_dashboards.tables import plain_console

    marks = {"ok": ("ok", "green"), "limit": ("limit", "yellow"), "stop": ("STOP", "bold red")}
    grid = Table.grid(padding=(0, 2))
    for check in checks:
        grid.add_row(Text(*marks[check.state]), check.what, Text(check.found))
        if check.fix:
            grid.add_row("", "", Text(f"-> {check.fix}", style="dim"))
    plain_console().print(grid)
