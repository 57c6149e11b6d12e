"""TTFT and TPOT percentiles against load: one row of panels per setting, median to 99th percentile as darkening lines.

The scale of each metric is the same in all its panels, so that settings compare across rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.plots.layout import telling
from trtllm_dashboards.points import grouped, having, load_axis, load_of, points, varying
from trtllm_results.metrics.registry import PERCENTILES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METRICS = {"ttft": "time to first token (ms)", "tpot": "time per output token (ms)"}
SHADES = ("#56B4E9", "#2F8AC7", "#0B5E9B", "#07315A")
MOST_ROWS = 4


def draw(material: Material) -> Figure:
    plotted = having(points(material.sets), "ttft_p50_ms")
    if not plotted:
        raise DashboardError("no row carries ttft_p50_ms, which the percentiles plot needs; measure with --streaming")
    sheet = style.Sheet("Latency percentiles against load", style.subtitle(plotted))
    metrics = [m for m in METRICS if having(plotted, f"{m}_p50_ms")]
    groups = grouped(plotted, telling(plotted, varying(plotted, ("batch", "request_rate")), ()))
    several = {label: members for label, members in groups.items() if len(members) > 1}
    if several and len(several) < len(groups):
        left_out = len(groups) - len(several)
        sheet.notes.append(
            f"{left_out} {'settings were' if left_out > 1 else 'setting was'} measured at one load, so there is no curve of it."
        )
    shown = [p for members in style.limited(several or groups, sheet, MOST_ROWS, "settings").values() for p in members]
    sheet.subtitle = style.subtitle(shown)
    sheet.mark_doubts(shown)
    groups = grouped(shown, telling(shown, varying(shown, ("batch", "request_rate")), ()))
    names = {"ttft": "TTFT", "tpot": "TPOT"}
    titles = [f"{names[m]}, {label}" if label else names[m] for label in groups for m in metrics]
    drawing, axes = sheet.panels(titles, columns=len(metrics), height=2.6)
    legend = {f"p{p}": style.Look(SHADES[i], style.MARKERS[i], "-") for i, p in enumerate(PERCENTILES)}
    drawn = []
    for row, members in enumerate(groups.values()):
        for column, metric in enumerate(metrics):
            ax = axes[row * len(metrics) + column]
            for percent, look in zip(PERCENTILES, legend.values(), strict=True):
                line = sorted(having(members, f"{metric}_p{percent}_ms"), key=load_of)
                estimates = [e for p in line if (e := p.get(f"{metric}_p{percent}_ms"))]
                style.errorbars(ax, [load_of(p) for p in line], estimates, look)
                drawn += estimates
            style.log_axis(ax, "x", [load_of(p) for p in members if load_of(p) > 0], every=True)
            every = [e for p in plotted for q in PERCENTILES if (e := p.get(f"{metric}_p{q}_ms"))]
            low, high = style.span(every, positive=True)
            ax.set_ylim(low / 1.3, high * 1.3)
            style.log_axis(ax, "y", [low, high])
            ax.set_xlabel(load_axis(members))
            ax.set_ylabel(METRICS[metric])
    sheet.notes.append(style.uncertainty_note(drawn))
    return sheet.finish(drawing, legend)
