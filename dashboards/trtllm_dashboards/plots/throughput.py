"""Output throughput against batch size, one panel a model and shape, one line for whatever else differs.

The batch axis is logarithmic because batch sizes are doubled; the throughput axis starts at zero because a reader compares heights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.points import axis_label, grouped, having, points, varying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE = "output_tokens_per_s"


def draw(material: Material) -> Figure:
    found = [p for p in having(points(material.sets), FIGURE) if p.cell.batch > 0]
    if not found:
        raise DashboardError(f"No row carries {FIGURE} at a stated batch size, which the throughput plot needs.")
    sheet = style.Sheet("Output throughput against batch size", style.subtitle(found, "shape", "model"))
    panel_by = [d for d in ("model", "shape", "request_rate") if d in varying(found)]
    groups = style.limited(grouped(found, panel_by), sheet)
    shown = [p for members in groups.values() for p in members]
    series_by = varying(shown, [*panel_by, "batch"])
    legend = style.looks(grouped(shown, series_by))
    sheet.subtitle = style.subtitle(shown)
    drawing, axes = sheet.panels(list(groups))
    drawn = []
    for ax, members in zip(axes, groups.values(), strict=True):
        for label, line in grouped(members, series_by).items():
            line.sort(key=lambda p: p.cell.batch)
            estimates = [e for p in line if (e := p.get(FIGURE))]
            style.errorbars(ax, [p.cell.batch for p in line], estimates, legend[label])
            drawn += estimates
        style.log_axis(ax, "x", [p.cell.batch for p in members], every=True)
        style.compact_axis(ax)
        ax.set_xlabel("batch size (sequences in flight)")
        ax.set_ylabel(axis_label(FIGURE, "output throughput"))
    sheet.notes.append(style.uncertainty_note(drawn))
    return sheet.finish(drawing, legend)
