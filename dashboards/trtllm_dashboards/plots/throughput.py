"""Output throughput against batch size, or against request rate in an open loop; one panel per model and shape, one line for each way in
which its cells differ.

The batch axis is logarithmic because batch sizes are doubled; the throughput axis starts at zero because a reader compares heights. The
axis of rates is linear and starts at zero too: as long as the target keeps up the line is straight, and where it bends the target is full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.plots.layout import layout
from trtllm_dashboards.points import Point, axis_label, grouped, having, load_axis, load_of, points
from trtllm_results.metrics.registry import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE = "output_tokens_per_s"


def draw(material: Material) -> Figure:
    plotted = [p for p in having(points(material.sets), FIGURE) if load_of(p) > 0]
    if not plotted:
        raise DashboardError(f"no row carries {FIGURE} at a stated batch size or request rate, which the throughput plot needs")
    against = " and ".join(["batch size"] * any(not _open(p) for p in plotted) + ["request rate"] * any(_open(p) for p in plotted))
    sheet = style.Sheet(f"Output throughput against {against}")
    plan = layout(plotted, sheet, told)
    legend = plan.legend
    drawing, axes = sheet.panels(list(plan.panels))
    drawn = []
    for ax, members in zip(axes, plan.panels.values(), strict=True):
        for label, line in grouped(members, plan.series_by).items():
            line.sort(key=load_of)
            estimates = [e for p in line if (e := p.get(FIGURE))]
            style.errorbars(ax, [load_of(p) for p in line], estimates, legend[label])
            drawn += estimates
        if _open(members[0]):
            style.compact_axis(ax, "x")
        else:
            style.log_axis(ax, "x", [load_of(p) for p in members], every=True)
        ax.set_xlabel(load_axis(members))
        style.compact_axis(ax)
        ax.set_ylabel(axis_label(FIGURE, "output throughput"))
    sheet.notes.append(style.uncertainty_note(drawn))
    return sheet.finish(drawing, legend)


def told(point: Point) -> str:
    rate = point.get(FIGURE)
    return "" if rate is None else f"{brief(rate.mean)} tok/s"


def _open(point: Point) -> bool:
    return point.cell.request_rate > 0
