"""`dashboard`: results as one self-contained HTML page, or served live while a sweep runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtllm_bench import interrupts
from trtllm_bench.commands import _options as options

if TYPE_CHECKING:
    from trtllm_results.record.row import Row
    from trtllm_results.store.table import Store


def command(
    context: typer.Context,
    results: Annotated[list[str] | None, typer.Argument(metavar="RESULTS...", help="Store folders or tables, PATH or NAME=PATH.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The page to write.")] = Path("dashboard.html"),
    where: Annotated[list[str] | None, typer.Option("--where", help="Filter such as precision=fp8 or batch>=64; repeatable.")] = None,
    title: Annotated[str, typer.Option("--title", help="Title of the page (default: the names of the results).")] = "",
    explain: Annotated[
        int, typer.Option("--explain", min=0, help="Explain so many cells, the fastest first, as the command explain does (seconds each).")
    ] = 0,
    picture: Annotated[
        Path | None, typer.Option("--picture", help="Also draw the top of the page as PNG, with an installed Chromium.")
    ] = None,
    serve: Annotated[bool, typer.Option("--serve", help="Serve the page on this machine and follow the results as they grow.")] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of --serve; 0 takes a free one.")] = 8060,
) -> None:
    """Write one HTML page: summary, curves, tables, cells; no network. --serve follows a sweep.

    Examples:
      trtllm-bench dashboard runs/a --out a.html
      trtllm-bench dashboard runs/a --serve
    """
    from trtllm_dashboards.errors import DashboardError

    if not results:
        raise DashboardError("no results named; give the folder a sweep wrote, such as: trtllm-bench dashboard runs/mine")
    if serve and (idle := options.given(context, ("out", "picture", "explain"))):
        raise DashboardError(f"--serve writes no page, so {idle} has no meaning there; leave one of them out")
    if not serve and options.given(context, ("port",)):
        raise DashboardError("--port is where --serve serves the page; add --serve, or leave it out")
    for flag, path, endings in (("--out", out, (".html", ".htm")), ("--picture", picture, (".png",))):
        if path is not None and path.suffix.lower() not in endings and (path.is_file() or path.is_dir() or not path.exists()):
            raise DashboardError(f"{flag} {path}: what is written is {endings[0][1:].upper()}; give a name that ends in {endings[0]}")
    if serve:
        from trtllm_dashboards.html.serve import serve as serve_page

        with interrupts.keeping(lambda: "the page is no longer served, the results are as they were"):
            serve_page(
                results,
                where=where or [],
                title=title or ", ".join(results),
                port=port,
                announce=lambda address: typer.echo(f"{address}  (Ctrl-C ends it)"),
            )
        return
    from trtllm_dashboards.html import render

    path = render(list(results), out, where=where or [], title=title, explain=_facts if explain else None, explained=explain)
    if picture is not None:
        from trtllm_dashboards.html.picture import picture as draw

        typer.echo(f"{draw(path, picture)}  (1280 x 1000 pixels)")
    typer.echo(f"{path}  ({path.stat().st_size / 1e6:.1f} MB, opens in any browser)")


def _facts(store: Store, row: Row) -> Mapping[str, Any]:
    """What `explain` says of a cell. Raises `BenchError`, which is a `ValueError`, where it can say nothing."""
    from trtllm_bench.analysis.cells import MeasuredCell
    from trtllm_bench.analysis.report import cell_facts

    linked = store.path / str(row.extra["profile"]) if row.extra.get("profile") else None
    return cell_facts(MeasuredCell(row, store, linked if linked is not None and linked.is_dir() else None), 99.0)
