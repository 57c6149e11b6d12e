"""Output throughput against batch size, or against request rate in an open loop; a panel a model and shape, a line for what else differs.

The batch axis is logarithmic because batch sizes are doubled; the throughput axis starts at zero because a reader compares heights. The
axis of rates is linear and starts at zero too: as long as the target keeps up the line is straight, and where it bends the target is full.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.points import Point, axis_label, grouped, having, load_of, points, varying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE = "output_tokens_per_s"


def draw(material: Material) -> Figure:
    found = [p for p in having(points(material.sets), FIGURE) if load_of(p) > 0]
    if not found:
        raise DashboardError(f"No row carries {FIGURE} at a stated batch size or request rate, which the throughput plot needs.")
    against = " and ".join(["batch size"] * any(not _open(p) for p in found) + ["request rate"] * any(_open(p) for p in found))
    sheet = style.Sheet(f"Output throughput against {against}", style.subtitle(found, "shape", "model"))
    panel_by = [d for d in ("model", "shape", "loop") if d in varying(found)]
    groups = style.limited(grouped(found, panel_by), sheet)
    shown = [p for members in groups.values() for p in members]
    series_by = [d for d in varying(shown, panel_by) if d not in ("batch", "request_rate")]
    legend = style.looks(grouped(shown, series_by))
    sheet.subtitle = style.subtitle(shown)
    drawing, axes = sheet.panels(list(groups))
    drawn = []
    for ax, members in zip(axes, groups.values(), strict=True):
        for label, line in grouped(members, series_by).items():
            line.sort(key=load_of)
            estimates = [e for p in line if (e := p.get(FIGURE))]
            style.errorbars(ax, [load_of(p) for p in line], estimates, legend[label])
            drawn += estimates
        if _open(members[0]):
            ax.set_xlim(left=0)
            ax.set_xlabel("request rate (requests/s)")
        else:
            style.log_axis(ax, "x", [p.cell.batch for p in members], every=True)
            ax.set_xlabel("batch size (sequences in flight)")
        style.compact_axis(ax)
        ax.set_ylabel(axis_label(FIGURE, "output throughput"))
    sheet.notes.append(style.uncertainty_note(drawn))
    return sheet.finish(drawing, legend)


def _open(point: Point) -> bool:
    return point.cell.request_rate > 0
