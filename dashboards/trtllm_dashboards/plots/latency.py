"""End-to-end latency against throughput as the load grows: the knee is where more load buys latency and no throughput.

The line is the median; the band above it reaches the 99th percentile, so that a tail that grows before the median does is seen.
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

X = "output_tokens_per_s_per_gpu"
MEDIAN, TAIL = "e2e_p50_ms", "e2e_p99_ms"


def told(point: Point) -> str:
    rate, latency = point.get(X), point.get(MEDIAN)
    return "" if rate is None or latency is None else f"{brief(rate.mean)} tok/s/GPU at {brief(latency.mean / 1e3)} s"


def draw(material: Material) -> Figure:
    plotted = having(points(material.sets), X, MEDIAN)
    if not plotted:
        raise DashboardError(f"no row carries both {X} and {MEDIAN}, which the latency plot needs")
    sheet = style.Sheet("Latency against throughput", "")
    plan = layout(plotted, sheet, told)
    shown, legend = plan.shown, plan.legend
    drawing, axes = sheet.panels(list(plan.panels))
    drawn = []
    for ax, members in zip(axes, plan.panels.values(), strict=True):
        for index, (label, line) in enumerate(grouped(members, plan.series_by).items()):
            line.sort(key=load_of)
            xs = [e.mean for p in line if (e := p.get(X))]
            estimates = [e for p in line if (e := p.get(MEDIAN))]
            tails = [e.mean / 1e3 if (e := p.get(TAIL)) else median.mean / 1e3 for p, median in zip(line, estimates, strict=True)]
            ax.fill_between(xs, [e.mean / 1e3 for e in estimates], tails, color=legend[label].color, alpha=0.13, linewidth=0)
            style.errorbars(ax, xs, estimates, legend[label], scale=1e-3)
            drawn += estimates
            if index == 0:
                loads = [(f"{load_of(p):,g}", (x, e.mean / 1e3)) for p, x, e in zip(line, xs, estimates, strict=True)]
        style.compact_axis(ax, "x")
        style.log_axis(ax, "y", [e.mean / 1e3 for p in members for f in (MEDIAN, TAIL) if (e := p.get(f))])
        style.remarks(ax, loads, (4, -9))
        ax.set_xlabel(axis_label(X, "output throughput"))
        ax.set_ylabel("end-to-end latency (s)")
    sheet.notes.append(
        f"Line: median; band: up to the 99th percentile; small figures: {load_axis(shown)}. " + style.uncertainty_note(drawn)
    )
    return sheet.finish(drawing, legend)
