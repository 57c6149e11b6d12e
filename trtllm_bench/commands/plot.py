"""`plot`: figures as PNG and SVG from one or more result stores. What each kind shows is in `trtllm_dashboards.plots.KINDS`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from trtllm_bench import interrupts
from trtllm_bench.commands._price import GpuPrice

FORMATS = "png,svg"
BUNDLE = ".zip"
PICTURES = (".png", ".svg", ".pdf", ".jpg", ".jpeg", ".eps")
"""Endings of `--out` that mean one figure's file. Any other name but a zip's is a folder's: `runs/v1.2` is one."""


def command(
    kind: Annotated[str, typer.Argument(help="Kind of figure, or all: every kind the results can feed. --list names them.")] = "",
    results: Annotated[list[str] | None, typer.Argument(metavar="[RESULTS]...", help="Store folders or tables, PATH or NAME=PATH.")] = None,
    where: Annotated[list[str] | None, typer.Option("--where", help="Filter such as precision=fp8 or batch>=64; repeatable.")] = None,
    out: Annotated[Path, typer.Option("--out", help="Folder for the figures, or a file: one figure.png or .svg, or a .zip of all.")] = Path(
        "figures"
    ),
    formats: Annotated[str, typer.Option("--format", help="List: png, svg.")] = FORMATS,
    x: Annotated[str, typer.Option("--x", help="Field of the record across: a figure, cell field, setting or env_*.")] = "",
    y: Annotated[str, typer.Option("--y", help="Field upwards; of plot repeats, the figure.")] = "",
    by: Annotated[str, typer.Option("--by", help="List of fields, a line for each value (default: what differs).")] = "",
    row: Annotated[str, typer.Option("--row", help="Field whose values make rows of panels.")] = "",
    col: Annotated[str, typer.Option("--col", help="Field whose values make columns of panels.")] = "",
    gpu_price: GpuPrice = None,
    as_list: Annotated[bool, typer.Option("--list", help="Name the kinds and what each shows.")] = False,
) -> None:
    """Draw figures from results: throughput, latency, speed-up, GPUs, roofline, energy, history, any field against any other.

    Examples:
      trtllm-bench plot gpus
      trtllm-bench plot runs/a --x batch --y ttft_p99_ms --by precision
    """
    from trtllm_dashboards.errors import DashboardError, OutputError
    from trtllm_dashboards.plots import KINDS, NEED_NO_ROWS, Axes
    from trtllm_results.compare.published import recorded

    if as_list:
        for name, meaning in KINDS.items():
            typer.echo(f"{name:<12} {meaning}")
        return
    if kind not in ("all", *KINDS) and x and y:
        kind, results = "axes", [kind, *(results or [])] if kind else results
    if kind != "all" and kind not in KINDS:
        raise DashboardError(f"there is no plot '{kind}'; choose all or one of {', '.join(KINDS)}")
    fields_given = {"--x": x, "--y": y, "--by": by, "--row": row, "--col": col}
    taken = set(fields_given) if kind == "axes" or (kind == "all" and x and y) else {"--y"} if kind in ("repeats", "all") else set()
    if ignored := next((flag for flag, given in fields_given.items() if given and flag not in taken), ""):
        raise DashboardError(f"plot {kind} does not take {ignored}, which is for a figure of --x against --y; leave it out, or give both")
    if not results and kind in ("all", "published") and (shipped := recorded()) is not None:
        results = [str(shipped)]
        typer.echo(f"no results named, so those of {shipped} are drawn")
    if not results and kind not in NEED_NO_ROWS:
        raise DashboardError("no results named; give the folder a sweep wrote, such as: trtllm-bench plot throughput runs/mine")
    if not results and where:
        raise DashboardError("--where filters results, and none are named; give the folder a sweep wrote")
    from trtllm_dashboards.plots import render
    from trtllm_dashboards.sources import Sources, load
    from trtllm_results.cost import Price, check_priced, priced
    from trtllm_results.errors import ResultsError

    fields = Axes(x, y, *(tuple(name.strip() for name in text.split(",") if name.strip()) for text in (by, row, col)))
    for option, names in (("--row", fields.row), ("--col", fields.col)):
        if len(names) > 1:
            raise DashboardError(f"{option} takes one field and was given {len(names)}; put the others into --by")
    sources = load(results, where or []) if results else Sources({}, ())
    price = Price.parse(gpu_price) if gpu_price else None
    check_priced((x, y), price)
    sets = {name: [priced(row, price) for row in rows] for name, rows in sources.sets.items()}
    prices = price.notes(row for rows in sets.values() for row in rows) if price else []
    chosen = [name for name in KINDS if name != "axes" or (x and y)] if kind == "all" else [kind]
    drawn_as = list(dict.fromkeys(f.strip() for f in formats.split(",")))
    if _is_picture(out):
        if kind == "all":
            raise DashboardError(f"--out {out} is the file of one figure, and all draws several; give a folder or a file.zip")
        if (ending := out.suffix.lower()[1:]) not in drawn_as and formats != FORMATS:
            raise DashboardError(f"--format {formats} and --out {out} name different formats; leave --format out")
        drawn_as = [ending]
    written = 0

    def kept() -> str:
        what = "figure is" if written == 1 else "figures are"
        loose = not _is_bundle(out) and not _is_picture(out)
        return f"{written} {what} in {out}; run the command again for the others" if written and loose else ""

    with interrupts.keeping(kept), _folder(out) as folder:
        for name in chosen:
            try:
                paths = render(name, sets, folder, formats=drawn_as, requests=sources.requests, axes=fields, prices=prices)
            except ResultsError as error:
                if kind != "all" or isinstance(error, OutputError):
                    raise
                typer.echo(f"{name:<12} not drawn: {error}")
                continue
            written += 1
            shown = [str(out)] if _is_picture(out) else [path.name if folder != out else str(path) for path in paths]
            typer.echo(f"{name:<12} {', '.join(shown)}")
        if not written:
            raise DashboardError("none of the kinds could be drawn from these results")
    for note in prices:
        typer.echo(note)
    if _is_bundle(out):
        typer.echo(f"written: {out}")


def _is_bundle(out: Path) -> bool:
    return out.suffix.lower() == BUNDLE and not out.is_dir()


def _is_picture(out: Path) -> bool:
    return out.suffix.lower() in PICTURES and not out.is_dir()


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """Where figures are written: `out`, or a folder of whose files `out` is made at the end.

    A zip holds them all, the same bytes for the same figures; a picture is the only one.
    """
    if not _is_bundle(out) and not _is_picture(out):
        yield out
        return
    import tempfile
    import zipfile

    from trtllm_results.store.files import atomically

    with tempfile.TemporaryDirectory(prefix="trtllm-bench-figures-") as scratch:
        yield Path(scratch)
        files = sorted(Path(scratch).iterdir())

        def write(handle: BinaryIO) -> None:
            if _is_picture(out):
                handle.write(files[0].read_bytes())
                return
            with zipfile.ZipFile(handle, "w", zipfile.ZIP_DEFLATED) as bundle:
                for path in files:
                    bundle.writestr(zipfile.ZipInfo(path.name, (1980, 1, 1, 0, 0, 0)), path.read_bytes(), zipfile.ZIP_DEFLATED)

        atomically(out, write)
