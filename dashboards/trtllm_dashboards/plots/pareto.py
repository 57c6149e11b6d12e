"""Throughput per GPU against speed per user, with the Pareto front: what each user gets against what the machine earns.

The front is over all series together, since the question it answers is "which setting should I run", whatever kind of setting it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.plots.layout import Layout, layout
from trtllm_dashboards.points import Point, axis_label, grouped, having, load_axis, load_of, points
from trtllm_results.metrics.registry import brief

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

X, Y = "output_tokens_per_s_per_user", "output_tokens_per_s_per_gpu"
Places = list[tuple[float, float]]


def front(places: Places) -> Places:
    """The places that none other beats in both coordinates, by falling speed."""
    best, kept = float("-inf"), []
    for x, y in sorted(places, key=lambda place: (-place[0], -place[1])):
        if y > best:
            best = y
            kept.append((x, y))
    return kept


def told(point: Point) -> str:
    x, y = point.place(X, Y)
    return f"{brief(y)} tok/s/GPU at {brief(x)} tok/s/user"


def draw(material: Material) -> Figure:
    plotted = having(points(material.sets), X, Y)
    if not plotted:
        raise DashboardError(f"no row carries both {X} and {Y}, which the pareto plot needs (requests of two tokens or more)")
    sheet = style.Sheet("Throughput per GPU against speed per user", "")
    plan = layout(plotted, sheet, told)
    drawing, axes = sheet.panels(list(plan.panels))
    for ax, members in zip(axes, plan.panels.values(), strict=True):
        against_speed(ax, members, plan, Y, front)
        style.log_axis(ax, "y", [p.place(X, Y)[1] for p in members])
        ax.set_ylabel(axis_label(Y, "output throughput"))
    bars = style.uncertainty_note(e for p in plan.shown if (e := p.get(Y)))
    sheet.notes.append(f"Grey: Pareto front over all series; small figures on it: {load_axis(plan.shown)}. {bars}")
    return sheet.finish(drawing, plan.legend)


def against_speed(ax: Axes, members: list[Point], plan: Layout, y: str, edge_of: Callable[[Places], Places]) -> None:
    """Draws the series of a panel, figure `y` against speed per user, with the front that `edge_of` makes of their places and the load of
    each point on it."""
    edge = edge_of([p.place(X, y) for p in members])
    style.front_line(ax, edge)
    legend = plan.legend
    for label, line in grouped(members, plan.series_by).items():
        line.sort(key=load_of)
        style.errorbars(ax, [p.place(X, y)[0] for p in line], [e for p in line if (e := p.get(y))], legend[label])
    style.compact_axis(ax, "x")
    style.remarks(ax, [(f"{load_of(point):,g}", point.place(X, y)) for point in members if point.place(X, y) in edge], (5, 4))
    ax.set_xlabel(axis_label(X, "speed per user"))
