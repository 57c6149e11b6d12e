"""Roofline of whole cells, normalised by what was measured on the same GPU.

MFU is the share of the compute ceiling and MBU that of the bandwidth ceiling, so their ratio is the arithmetic intensity in units of the
ridge point, and every GPU and precision shares one roof: `min(1, x)`. An absolute roofline (FLOP/s against FLOP/byte, Williams et al. 2009)
needs one panel a precision and GPU for the same reading. Distance below the roof is time in which neither limit was busy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.plots.layout import layout
from trtllm_dashboards.points import Estimate, Point, grouped, having, load_axis, load_of, points
from trtllm_results.metrics.registry import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def place(point: Point) -> tuple[float, Estimate] | None:
    """(intensity over ridge, MFU), or None when either share is zero."""
    mfu, mbu = point.get("mfu"), point.get("mbu")
    return (mfu.mean / mbu.mean, mfu) if mfu and mbu and mfu.mean > 0 and mbu.mean > 0 else None


def told(point: Point) -> str:
    position = place(point)
    return "" if position is None else f"MFU {brief(position[1].mean)} at {brief(position[0])} of the ridge point's intensity"


def draw(material: Material) -> Figure:
    plotted = [p for p in having(points(material.sets), "mfu", "mbu") if place(p)]
    if not plotted:
        raise DashboardError("no row carries both mfu and mbu, which the roofline needs; run `trtllm-bench ceilings` before the sweep")
    sheet = style.Sheet("Roofline: how near the hardware's limits", "")
    plan = layout(plotted, sheet, told)
    shown, legend = plan.shown, plan.legend
    drawing, axes = sheet.panels(list(plan.panels))
    xs = [at[0] for p in shown if (at := place(p))]
    least, most = style.span((at[1] for p in shown if (at := place(p))), positive=True)
    low, high = min([*xs, 0.1]) / 2, max([*xs, 4.0]) * 2
    for ax, members in zip(axes, plan.panels.values(), strict=True):
        ax.plot([low, 1, high], [low, 1, 1], color=style.INK, linewidth=1.8, zorder=1)
        ax.plot([low, 1, high], [low / 2, 0.5, 0.5], color=style.SOFT, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        for index, (label, line) in enumerate(grouped(members, plan.series_by).items()):
            line.sort(key=load_of)
            placed = [at for p in line if (at := place(p))]
            style.errorbars(ax, [x for x, _ in placed], [e for _, e in placed], legend[label])
            for point, (x, estimate) in ((line[0], placed[0]), (line[-1], placed[-1])):
                if index == 0 and load_of(point):
                    style.remark(ax, f"{load_of(point):g}", (x, estimate.mean), (5, -8))
        style.log_axis(ax, "x", [low, high])
        style.log_axis(ax, "y", [least, 1])
        ax.set_xlim(low, high)
        ax.set_ylim(least / 2, max(1.6, most))
        ax.set_xlabel("arithmetic intensity / ridge point (ratio)")
        ax.set_ylabel("share of compute ceiling, MFU (ratio)")
    bars = style.uncertainty_note(at[1] for p in shown if (at := place(p)))
    sheet.notes.append(
        f"Left of 1 memory-bound, right of 1 compute-bound; dashed: half the roof; small figures: {load_axis(shown)}. {bars}"
    )
    return sheet.finish(drawing, legend)
