"""Cost of a million output tokens against speed per user, with the front: what a user's speed costs.

As the Pareto plot with money for throughput; across GPUs and precisions it is the fairer one, since a dearer GPU has to earn its price.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.plots.layout import layout
from trtllm_dashboards.plots.pareto import Places, X, against_speed, front
from trtllm_dashboards.points import Point, having, load_axis, points
from trtllm_results.cost import COST
from trtllm_results.metrics.registry import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def cheapest(places: Places) -> Places:
    """The places that none other beats in speed and cost, by falling speed."""
    return [(x, -y) for x, y in front([(x, -y) for x, y in places])]


def told(point: Point) -> str:
    x, y = point.place(X, COST)
    return f"{brief(y)} USD at {brief(x)} tok/s/user"


def draw(material: Material) -> Figure:
    plotted = having(points(material.sets), X, COST)
    if not plotted:
        raise DashboardError(
            f"no row carries both {X} and a cost, which the cost plot needs; give --gpu-price-per-hour, for results of a GPU"
        )
    sheet = style.Sheet("Cost against speed per user", "")
    plan = layout(plotted, sheet, told)
    drawing, axes = sheet.panels(list(plan.panels))
    for ax, members in zip(axes, plan.panels.values(), strict=True):
        against_speed(ax, members, plan, COST, cheapest)
        low, high = style.span((e for p in members if (e := p.get(COST))), positive=True)
        style.log_axis(ax, "y", [low / 2, high * 2])
        ax.set_ylim(low / 2, high * 2)
        ax.set_ylabel("cost of a million output tokens (USD)")
    bars = style.uncertainty_note(e for p in plan.shown if (e := p.get(COST)))
    sheet.notes += material.prices
    sheet.notes.append(f"The GPUs alone, all hours used. Grey: front over all series; small figures on it: {load_axis(plan.shown)}. {bars}")
    return sheet.finish(drawing, plan.legend)
