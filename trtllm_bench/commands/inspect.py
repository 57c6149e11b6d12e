"""`inspect`: what an engine holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    engine: Annotated[Path, typer.Argument(metavar="ENGINE", help="Engine folder made by build.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Hash every byte again, also of files that did not change since they were hashed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Print what an engine holds: ops, kernels, memory, fingerprint.

    Examples:
      trtllm-bench inspect llama.engine
      trtllm-bench inspect llama.engine --verify --json
    """
    from trtllm_bench.build_progress import build_progress
    from trtllm_engines.engine.inspect import describe, render

    with build_progress() as report:
        description = describe(engine, verify=verify, progress=report)
    if as_json:
        import json

        typer.echo(json.dumps(description, indent=2, default=str))
        return
    from trtllm_dashboards.tables import plain_console

    plain_console().print(render(description))
