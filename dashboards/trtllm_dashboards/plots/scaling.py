"""Throughput with more GPUs, against perfect scaling from the fewest measured.

At each GPU count the best batch counts: the question is what the machine can do, and the best batch moves with the memory it has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.points import Point, axis_label, grouped, having, points, varying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE = "output_tokens_per_s"


def gpus(point: Point) -> int:
    return point.cell.gpus


def mean(point: Point) -> float:
    found = point.get(FIGURE)
    return found.mean if found else 0.0


def best_by_count(line: list[Point]) -> list[Point]:
    """The fastest point at each GPU count, by count."""
    best: dict[int, Point] = {}
    for point in line:
        if gpus(point) not in best or mean(point) > mean(best[gpus(point)]):
            best[gpus(point)] = point
    return [best[count] for count in sorted(best)]


def draw(material: Material) -> Figure:
    found = having(points(material.sets), FIGURE)
    counts = sorted({gpus(p) for p in found})
    if len(counts) < 2:
        raise DashboardError(
            f"The scaling plot needs two GPU counts or more (--tp, --pp); the rows have {', '.join(map(str, counts)) or 'no throughput'}."
        )
    sheet = style.Sheet("Throughput with more GPUs", style.subtitle(found))
    panel_by = [d for d in ("model", "shape") if d in varying(found)]
    groups = style.limited(grouped(found, panel_by), sheet)
    shown = [p for members in groups.values() for p in members]
    series_by = varying(shown, [*panel_by, "batch", "request_rate", "tp", "pp"])
    legend = style.looks(grouped(shown, series_by))
    drawing, axes = sheet.panels(list(groups))
    drawn = []
    for ax, members in zip(axes, groups.values(), strict=True):
        for label, line in grouped(members, series_by).items():
            best = best_by_count(line)
            estimates = [e for p in best if (e := p.get(FIGURE))]
            xs = [gpus(p) for p in best]
            look = legend[label]
            ax.plot(xs, [mean(best[0]) * x / xs[0] for x in xs], color=look.color, linewidth=0.9, linestyle=(0, (2, 2)), alpha=0.7)
            style.errorbars(ax, xs, estimates, look)
            share = mean(best[-1]) * xs[0] / (mean(best[0]) * xs[-1])
            style.remark(ax, f"{share:.0%}", (xs[-1], mean(best[-1])), (6, -3), color=look.color)
            drawn += estimates
        style.log_axis(ax, "x", counts, every=True)
        ax.margins(x=0.12)
        style.compact_axis(ax)
        ax.set_xlabel("GPUs (tp x pp)")
        ax.set_ylabel(axis_label(FIGURE, "output throughput"))
    sheet.notes.append("Dotted: perfect scaling; per cent: share of it reached; best batch at each count. " + style.uncertainty_note(drawn))
    return sheet.finish(drawing, legend)
