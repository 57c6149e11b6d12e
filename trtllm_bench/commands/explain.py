"""`explain`: what limits a measured cell and what would help; or where the difference between two cells comes from."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    cell: Annotated[str, typer.Argument(metavar="CELL", help="RESULTS@FILTERS, such as runs/a@batch=64,precision=fp8 or runs/a@KEY.")],
    other: Annotated[str | None, typer.Argument(metavar="[OTHER]", help="A second cell: says where the difference comes from.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All cells of RESULTS beside what the step model predicts.")] = False,
    percentile: Annotated[float, typer.Option("--percentile", min=1, max=100, help="Which request to follow through its steps.")] = 99.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say in words what limits a cell, or why two cells differ, part by part.

    Examples:
      trtllm-bench explain runs/a@batch=64
      trtllm-bench explain runs/a@batch=64 runs/b@batch=64 --json
    """
    from trtllm_bench.analysis.cells import find_cell
    from trtllm_bench.analysis.report import all_facts, cell_facts, difference_facts, report_all, report_cell, report_difference
    from trtllm_dashboards.tables import plain_console

    if as_json:
        import json

        first = None if every else find_cell(cell)
        if first is None:
            facts: object = all_facts(cell)
        else:
            facts = cell_facts(first, percentile) if other is None else difference_facts(first, find_cell(other))
        typer.echo(json.dumps(facts, indent=2))
        return
    console = plain_console()
    if every:
        report_all(cell, console)
        return
    first = find_cell(cell)
    if other is None:
        report_cell(first, percentile, console)
    else:
        report_difference(first, find_cell(other), console)
