"""Our kernels beside other engines' calls of the same work: how many times as fast as the fastest, by size, one panel per family of ops.

Both axes are logarithmic, so twice as fast and half as fast lie at one distance from the line. Not a kind of `plot`: it is drawn from the
record of `kernels --against published` and not from rows of a store.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import style
from trtllm_results.compare.published_ops import OpBeside, OpRun, summaries

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES = {"gemm": "FLOP of the product", "prompt attention": "prompt tokens", "decode attention": "tokens in the cache"}
TITLES = {"gemm": "GEMM"}
WIDTH = 4.6


def draw(run: OpRun) -> Figure:
    """Raises `DashboardError` for a run without rows."""
    if not run.rows:
        raise DashboardError("the run has no rows to draw; measure some with trtllm-bench kernels --against published")
    families = summaries(run.rows)
    sheet = style.Sheet(
        "Our kernels beside published engines' kernels", f"{run.device}; fastest of the published engines / ours of the same work"
    )
    titles = [f"{TITLES.get(one.family, one.family)}: ahead at {one.ahead} of {one.shapes}" for one in families]
    drawing, axes = sheet.panels(titles, columns=3, width=WIDTH)
    dtypes = sorted({one.shape.dtype for one in run.rows})
    legend = {dtype: style.Look(style.PALETTE[i], style.MARKERS[i], "") for i, dtype in enumerate(dtypes)}
    for ax, family in zip(axes, families, strict=True):
        members = [one for one in run.rows if one.shape.family == family.family]
        for dtype in dict.fromkeys(one.shape.dtype for one in members):
            _dots(ax, [one for one in members if one.shape.dtype == dtype], legend[dtype])
        ax.axhline(1, color=style.INK, linewidth=1)
        style.log_axis(ax, "x", [one.shape.size for one in members])
        style.log_axis(ax, "y", [one.ratio for one in members])
        ax.set_ylim(min(0.5, *(0.85 * one.ratio for one in members)), max(2.0, *(1.18 * one.ratio for one in members)))
        ax.set_xlabel(SIZES.get(family.family, "size"))
        ax.set_ylabel("theirs / ours (ratio)")
    if any("/" in dtype for dtype in dtypes):
        sheet.notes.append("Types of attention are those of activations / cache.")
    sheet.notes.append(f"Above 1 ours is faster. {run.method[:1].upper()}{run.method[1:]}. Published latencies carry no interval.")
    return sheet.finish(drawing, legend, marker_only=True)


def _dots(ax: Axes, members: Sequence[OpBeside], look: style.Look) -> None:
    xs, ys = [one.shape.size for one in members], [one.ratio for one in members]
    ax.scatter(xs, ys, s=16, marker=look.marker, color=look.color, alpha=0.75, linewidths=0)


def write(run: OpRun, path: Path) -> Path:
    """Draws to `path`, whose ending is the format."""
    with style.themed():
        drawn = draw(run)
    return next(style.save(drawn, path.parent, path.stem, [path.suffix.removeprefix(".")]))
