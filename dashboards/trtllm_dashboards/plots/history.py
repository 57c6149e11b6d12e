"""A cell over time: one point per version, a line at each shift of the mean, the level of each stretch between shifts.

Versions are evenly spaced and not placed by date: changes come in bursts, and a quiet month would take the width. A shift is found by
`trtllm_results.stats.change_points`. (The gate's drift check asks another question and has tests of its own.) Where nothing that a version
is named by differs, its label says which setting did.

The arms of a gate are two sides of one question: B stands after A whichever ran first, and the change between them has its interval.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.numbers import percent
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.points import Point, axis_label, having, points, ratio, started
from trtllm_results.record.cell import OWN_TARGET
from trtllm_results.stats import change_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIGURE = "output_tokens_per_s"
MOST = 6
MOST_TICKS = 7
GOOD, BAD = "#266F4E", "#B42318"


def draw(material: Material) -> Figure:
    cells: dict[str, list[Point]] = {}
    for point in having(points({"": material.rows}, every_version=True), FIGURE):
        key = f"{point.rows[0].label}, {point.names['device']}" + ("" if point.cell.target == OWN_TARGET else f", {point.names['target']}")
        cells.setdefault(key + ", gate" * bool(point.rows[0].arm), []).append(point)
    cells = {label: in_order(line) for label, line in cells.items() if len(line) > 1}
    if not cells:
        raise DashboardError(
            "no cell was measured in two versions or more, which the history plot needs; give it stores of several versions"
        )
    sheet = style.Sheet("History of output throughput", "")
    shown = style.limited(cells, sheet, MOST, "cells")
    drawing, axes = sheet.panels(list(shown), columns=2 if len(shown) > 1 else 1, width=5.6)
    for ax, line in zip(axes, shown.values(), strict=True):
        _line(ax, line)
    sheet.mark_doubts(p for line in shown.values() for p in line)
    drawn = [e for line in shown.values() for p in line if (e := p.get(FIGURE))]
    gated = [any(p.rows[0].arm for p in line) for line in shown.values()]
    parts = ["Vertical line: change point; grey: mean level between them."] * (not all(gated))
    parts += ["Dots: the runs of each arm; change of B against A as ratio of geometric means, 95% interval (Welch)."] * any(gated)
    sheet.notes.append(" ".join([*parts, style.uncertainty_note(drawn)]))
    return sheet.finish(drawing)


def in_order(line: Sequence[Point]) -> list[Point]:
    """Versions by time; of a gate's arms the first version of A, the first of B, the second of A, and so on."""
    by_time = sorted(line, key=started)
    places = {id(point): sum(one.rows[0].arm == point.rows[0].arm for one in by_time[:index]) for index, point in enumerate(by_time)}
    if not any(point.rows[0].arm for point in line):
        return by_time
    return sorted(by_time, key=lambda point: (places[id(point)], point.rows[0].arm))


def _line(ax: Axes, line: list[Point]) -> None:
    estimates = [e for p in line if (e := p.get(FIGURE))]
    gated = any(p.rows[0].arm for p in line)
    runs = [[row.figures[FIGURE] for row in p.rows if FIGURE in row.figures] for p in line]
    low = min([e.low for e in estimates] + ([min(map(min, runs))] if gated else []))
    high = max([e.high for e in estimates] + ([max(map(max, runs))] if gated else []))
    spread = high - low or high * 0.1
    if gated:
        _arms(ax, line, runs)
    else:
        _shifts(ax, [e.mean for e in estimates])
    style.errorbars(ax, list(range(len(line))), estimates, style.Look(style.PALETTE[0], "o", "-"))
    ax.set_ylim(max(0.0, low - 0.25 * spread), high + 0.3 * spread)
    ax.set_xlim(-0.5, len(line) - 0.5)
    step = max(1, -(-len(line) // MOST_TICKS))
    names = labels(line)
    ax.set_xticks(range(0, len(line), step), names[::step], fontsize=7)
    ax.grid(visible=False, axis="x")
    style.compact_axis(ax, zero=False)
    ax.set_xlabel("arm of the gate (A: reference, B: candidate)" if gated else "version (date, revision), oldest first")
    ax.set_ylabel(axis_label(FIGURE, "output throughput"))


def _shifts(ax: Axes, means: list[float]) -> None:
    shifts = change_points(means)
    levels = []
    for start, end in zip([0, *shifts], [*shifts, len(means)], strict=True):
        levels.append(sum(means[start:end]) / (end - start))
        ax.plot([start - 0.4, end - 0.6], [levels[-1]] * 2, color="#9aa4af", linewidth=4, alpha=0.45, solid_capstyle="butt", zorder=1)
    for index, shift in enumerate(shifts):
        color = GOOD if levels[index + 1] > levels[index] else BAD
        ax.axvline(shift - 0.5, color=color, linewidth=1.4)
        change = percent(levels[index + 1] / levels[index] - 1)
        at = (shift - 0.5, 0.97 - 0.07 * (index % 2))
        style.remark(ax, change, at, (4, 0), xycoords=("data", "axes fraction"), va="top", color=color, fontsize=8)


def _arms(ax: Axes, line: list[Point], runs: list[list[float]]) -> None:
    """Each run as a dot, and between an A and its B the change."""
    for at, values in enumerate(runs):
        ax.plot([at - 0.12] * len(values), values, ".", color=style.SOFT, markersize=4, alpha=0.7, zorder=2)
    for at, (before, after) in enumerate(itertools.pairwise(line)):
        change = ratio(runs[at + 1], runs[at]) if (before.rows[0].arm, after.rows[0].arm) == ("A", "B") else None
        if change is None:
            continue
        reach = f"\n{percent(change.low - 1)} to {percent(change.high - 1)}" if change.n > 1 else "\none run"
        color = GOOD if change.low > 1 else BAD if change.high < 1 else style.SOFT
        place = {"xycoords": ("data", "axes fraction"), "va": "top", "ha": "center"}
        style.remark(ax, percent(change.mean - 1) + reach, (at + 0.5, 0.97), (0, 0), color=color, fontsize=8, **place)


def labels(line: Sequence[Point]) -> list[str]:
    """What each version is called, no two alike: date and revision; where those are the same also a setting, the time, or the key."""
    names = [version(point) for point in line]
    for more in (_settings(line, names), [started(point)[11:16] for point in line], [point.key[:6] for point in line]):
        names = [f"{name}\n{text}" if text and names.count(name) > 1 else name for name, text in zip(names, more, strict=True)]
    return names


def _settings(line: Sequence[Point], names: Sequence[str]) -> list[str]:
    """Of the versions called the same, the setting that tells most of them apart, as `nvtx_detail op`."""
    alike = [point.cell.settings for point, name in zip(line, names, strict=True) if names.count(name) > 1]
    kinds = {name: len({str(one.get(name)) for one in alike}) for one in alike for name in sorted(one)}
    most = max(kinds, key=lambda name: kinds[name], default="")
    return [f"{most} {point.cell.settings.get(most, '-')}" if kinds.get(most, 0) > 1 else "" for point in line]


def version(point: Point) -> str:
    revision = point.environment.git_revision[:7] or point.environment.source_hash[:7]
    first = point.names["arm"] or started(point)[:10]
    return f"{first}\n{revision}" if revision else first
