"""Quality against speed, with the Pareto front: what a precision costs in perplexity for what it gains in throughput.

Perplexity is drawn as its change against the widest precision, whose own point lies at zero: the change is paired, token by token, and
known far better than perplexity itself. Where only the task was run, the share of questions that failed takes its place. A panel is one
shape and load, since accuracy is an engine's and speed a cell's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.plots.layout import telling
from trtllm_dashboards.plots.pareto import front
from trtllm_dashboards.points import Estimate, Point, axis_label, grouped, having, points, varying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

X = "output_tokens_per_s_per_gpu"
PERPLEXITY, TASK = "perplexity_change", "task_accuracy"


def loss(point: Point, figure: str) -> Estimate | None:
    """What is lost, in percent, with its 95% interval; 0 for the widest precision, against which the change is."""
    figures = point.rows[-1].figures
    if figure == PERPLEXITY and figure not in figures:
        return Estimate(0.0, 0.0, 0.0, 2) if "perplexity" in figures else None
    if figure not in figures:
        return None
    value, low, high = (100 * figures.get(name, figures[figure]) for name in (figure, f"{figure}_low", f"{figure}_high"))
    return Estimate(value, low, high, 2) if figure == PERPLEXITY else Estimate(100 - value, 100 - high, 100 - low, 2)


def draw(material: Material) -> Figure:
    found = having(points(material.sets), X)
    figure = PERPLEXITY if any(PERPLEXITY in row.figures for row in material.rows) else TASK
    found = [point for point in found if loss(point, figure) is not None]
    if len({point.cell.engine_fingerprint for point in found}) < 2:
        raise DashboardError("the quality plot needs accuracy of two engines or more; measure it: trtllm-bench sweep --accuracy text.txt")
    sheet = style.Sheet("Quality against speed", "")
    panel_by = [d for d in ("device", "target", "shape", "batch", "request_rate") if d in varying(found)]
    groups = style.limited(grouped(found, panel_by), sheet)
    shown = [p for members in groups.values() for p in members]
    sheet.subtitle = style.subtitle(shown)
    sheet.mark_doubts(shown)
    series_by = telling(shown, varying(shown, panel_by), panel_by)
    legend = style.looks(grouped(shown, series_by))
    drawing, axes = sheet.panels(list(groups))
    for ax, members in zip(axes, groups.values(), strict=True):
        places = {id(point): (_speed(point), _loss(point, figure).mean) for point in members}
        edge = front([(x, -y) for x, y in places.values()])
        style.front_line(ax, [(x, -y) for x, y in edge])
        for label, line in grouped(members, series_by).items():
            style.errorbars(ax, [_speed(p) for p in line], [_loss(p, figure) for p in line], legend[label])
        style.compact_axis(ax, "x")
        ax.set_xlabel(axis_label(X, "output throughput"))
        ax.set_ylabel("perplexity, change against the widest (%)" if figure == PERPLEXITY else "questions of the task failed (%)")
    sheet.notes.append("Lower right is better. Grey: Pareto front. Bars: 95% interval over the windows of the text, or of the share.")
    return sheet.finish(drawing, legend)


def _speed(point: Point) -> float:
    speed = point.get(X)
    assert speed is not None
    return speed.mean


def _loss(point: Point, figure: str) -> Estimate:
    found = loss(point, figure)
    assert found is not None
    return found
