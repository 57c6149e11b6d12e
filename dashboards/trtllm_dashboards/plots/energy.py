"""Board power and energy per output token against load, side by side: power rises with load while a token gets cheaper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.plots.layout import layout
from trtllm_dashboards.points import Point, grouped, having, load_axis, load_of, points
from trtllm_results.metrics.registry import brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAIR = {"power_mean_w": ("power", "mean power, all GPUs (W)"), "energy_per_output_token_j": ("energy", "energy per output token (J/tok)")}


def told(point: Point) -> str:
    power, energy = (point.get(name) for name in PAIR)
    return "" if power is None or energy is None else f"{brief(power.mean)} W, {brief(energy.mean)} J/tok"


def draw(material: Material) -> Figure:
    plotted = [p for p in having(points(material.sets), *PAIR) if load_of(p) > 0]
    if not plotted:
        raise DashboardError(
            "no row carries power_mean_w and energy_per_output_token_j, which the energy plot needs; they are measured on a GPU"
        )
    sheet = style.Sheet("Power and energy per output token", "")
    plan = layout(plotted, sheet, told, most=4)
    legend = plan.legend
    titles = [f"{label}: {name}" if label else name for label in plan.panels for name, _ in PAIR.values()]
    drawing, axes = sheet.panels(titles, columns=2, height=2.6)
    drawn = []
    for row, members in enumerate(plan.panels.values()):
        for column, (figure, (_, y_label)) in enumerate(PAIR.items()):
            ax = axes[2 * row + column]
            for label, line in grouped(members, plan.series_by).items():
                line.sort(key=load_of)
                estimates = [e for p in line if (e := p.get(figure))]
                style.errorbars(ax, [load_of(p) for p in line], estimates, legend[label])
                drawn += estimates
            style.log_axis(ax, "x", [load_of(p) for p in members], every=True)
            if column:
                style.log_axis(ax, "y", [e.mean for p in members if (e := p.get(figure))])
            else:
                style.compact_axis(ax)
                ax.set_ylim(top=max(e.high for p in members if (e := p.get(figure))) * 1.15)
                limit = max(p.environment.power_limit_w * p.cell.gpus for p in members)
                if limit:
                    ax.axhline(limit, color=style.SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
                    ax.set_ylim(top=max(limit * 1.15, ax.get_ylim()[1]))
                    style.remark(ax, "power limit", (0.01, limit), (0, 2), xycoords=("axes fraction", "data"))
            ax.set_xlabel(load_axis(members))
            ax.set_ylabel(y_label)
    sheet.notes.append(style.uncertainty_note(drawn))
    return sheet.finish(drawing, legend)
