"""`plot`: figures as PNG and SVG from one or more result stores. What each kind shows is in `trtllm_dashboards.plots.KINDS`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trtllm_bench.commands._price import GpuPrice


def command(
    kind: Annotated[str, typer.Argument(help="Kind of figure, or all: every kind the results can feed. --list names them.")] = "",
    results: Annotated[list[str] | None, typer.Argument(metavar="[RESULTS]...", help="Store folders or tables, PATH or NAME=PATH.")] = None,
    where: Annotated[list[str] | None, typer.Option("--where", help="Filter such as precision=fp8 or batch>=64; repeatable.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the figures.")] = Path("figures"),
    formats: Annotated[str, typer.Option("--format", help="List: png, svg.")] = "png,svg",
    gpu_price: GpuPrice = "",
    as_list: Annotated[bool, typer.Option("--list", help="Name the kinds and what each shows.")] = False,
) -> None:
    """Draw figures from results: throughput, latency, speed-up, roofline, energy, history.

    Examples:
      trtllm-bench plot published
      trtllm-bench plot throughput runs/a runs/b --out figures
    """
    from trtllm_dashboards.errors import DashboardError, OutputError
    from trtllm_dashboards.plots import KINDS, NEED_NO_ROWS
    from trtllm_results.compare.published import recorded

    if as_list:
        for name, meaning in KINDS.items():
            typer.echo(f"{name:<12} {meaning}")
        return
    if kind != "all" and kind not in KINDS:
        raise DashboardError(f"There is no plot '{kind}'; choose all or one of {', '.join(KINDS)}.")
    if not results and kind == "gpus":
        typer.echo("no results named, so what was recorded with the tool is drawn")
    elif not results and kind == "published" and (shipped := recorded()) is not None:
        results = [str(shipped)]
        typer.echo(f"no results named, so those of {shipped} are drawn")
    if not results and kind not in NEED_NO_ROWS:
        raise DashboardError("No results named; give the folder a sweep wrote, such as: trtllm-bench plot throughput runs/mine.")
    from trtllm_dashboards.plots import render
    from trtllm_dashboards.sources import Sources, load
    from trtllm_results.cost import Price, priced
    from trtllm_results.errors import ResultsError

    sources = load(results, where or []) if results else Sources({}, ())
    price = Price.parse(gpu_price) if gpu_price else None
    sets = {name: [priced(row, price) for row in rows] for name, rows in sources.sets.items()}
    chosen = list(KINDS) if kind == "all" else [kind]
    written = 0
    for name in chosen:
        try:
            paths = render(name, sets, out, formats=[f.strip() for f in formats.split(",")], requests=sources.requests)
        except ResultsError as error:
            if kind != "all" or isinstance(error, OutputError):
                raise
            typer.echo(f"{name:<12} not drawn: {error}")
            continue
        written += 1
        typer.echo(f"{name:<12} {', '.join(str(path) for path in paths)}")
    for note in price.notes(row for rows in sets.values() for row in rows) if price else []:
        typer.echo(note)
    if not written:
        raise DashboardError("None of the kinds could be drawn from these results.")
