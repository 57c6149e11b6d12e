"""A cell over time: one point a version, a line at each shift of the mean, the level of each stretch between shifts.

Versions are evenly spaced and not placed by date: changes come in bursts, and a quiet month would take the width. A shift is found by
`trtllm_results.stats.change_points`. (The gate's drift check asks another question and has tests of its own.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.numbers import percent
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.points import Point, axis_label, having, points, started
from trtllm_results.stats import change_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE = "output_tokens_per_s"
MOST = 6


def draw(material: Material) -> Figure:
    cells: dict[str, list[Point]] = {}
    for point in having(points({"": material.rows}, every_version=True), FIGURE):
        key = f"{point.cell.label}, {point.names['device']}" + ("" if point.cell.target == "native" else f", {point.names['target']}")
        cells.setdefault(key, []).append(point)
    cells = {label: sorted(line, key=started) for label, line in cells.items() if len(line) > 1}
    if not cells:
        raise DashboardError(
            "No cell was measured in two versions or more, which the history plot needs; give it stores of several versions."
        )
    sheet = style.Sheet("History of output throughput", "")
    shown = style.limited(cells, sheet, MOST, "cells")
    drawing, axes = sheet.panels(list(shown), columns=2 if len(shown) > 1 else 1, width=5.6)
    for ax, line in zip(axes, shown.values(), strict=True):
        _line(ax, line)
    drawn = [e for line in shown.values() for p in line if (e := p.get(FIGURE))]
    sheet.notes.append("Vertical line: change point; grey: mean level between them. " + style.uncertainty_note(drawn))
    return sheet.finish(drawing)


def _line(ax: Axes, line: list[Point]) -> None:
    estimates = [e for p in line if (e := p.get(FIGURE))]
    means = [e.mean for e in estimates]
    shifts = change_points(means)
    levels = []
    for start, end in zip([0, *shifts], [*shifts, len(means)], strict=True):
        levels.append(sum(means[start:end]) / (end - start))
        ax.plot([start - 0.4, end - 0.6], [levels[-1]] * 2, color="#9aa4af", linewidth=4, alpha=0.45, solid_capstyle="butt", zorder=1)
    style.errorbars(ax, list(range(len(line))), estimates, style.Look(style.PALETTE[0], "o", "-"))
    spread = max(e.high for e in estimates) - min(e.low for e in estimates) or max(means) * 0.1
    ax.set_ylim(max(0.0, min(e.low for e in estimates) - 0.25 * spread), max(e.high for e in estimates) + 0.3 * spread)
    for index, shift in enumerate(shifts):
        color = style.PALETTE[2] if levels[index + 1] > levels[index] else style.PALETTE[1]
        ax.axvline(shift - 0.5, color=color, linewidth=1.4)
        change = percent(levels[index + 1] / levels[index] - 1)
        style.remark(
            ax,
            change,
            (shift - 0.5, 0.97 - 0.07 * (index % 2)),
            (4, 0),
            xycoords=("data", "axes fraction"),
            va="top",
            color=color,
            fontsize=8,
        )
    step = max(1, -(-len(line) // 7))
    ax.set_xticks(range(0, len(line), step), [version(line[i]) for i in range(0, len(line), step)], fontsize=7)
    ax.grid(visible=False, axis="x")
    style.compact_axis(ax, zero=False)
    ax.set_xlabel("version (date, revision), oldest first")
    ax.set_ylabel(axis_label(FIGURE, "output throughput"))


def version(point: Point) -> str:
    revision = point.environment.git_revision[:7] or point.environment.source_hash[:7]
    return f"{started(point)[:10]}\n{revision}" if revision else started(point)[:10]
