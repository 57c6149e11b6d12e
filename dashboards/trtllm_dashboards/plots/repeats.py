"""How the repeats of a cell are spread: one density per version, arm or result set, each run as a dot, the mean as a line.

The density is Gaussian with Scott's bandwidth (`scipy.stats.gaussian_kde`), as criterion.rs draws it. Below five repeats a density would
show the bandwidth and not the runs, so the dots stand alone. `--y` chooses the figure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.plots.history import in_order, labels
from trtllm_dashboards.points import Point, axis_label, having, points
from trtllm_results.metrics.registry import HEADLINE, METRICS, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEWEST = 5
"""Repeats of a density."""
MOST = 6
CHARACTER, FOR_DOTS = 0.065, 3.6
"""Inches that a letter of a name takes, and that dots do at least."""


def draw(material: Material) -> Figure:
    figure = material.axes.y or HEADLINE
    if figure not in METRICS:
        raise DashboardError(f"--y {figure} is not a figure; docs/schema.md lists them")
    cells: dict[str, list[Point]] = {}
    for point in having(points(material.sets, every_version=True), figure):
        cells.setdefault(f"{point.rows[0].label}, {point.names['device']}", []).append(point)
    cells = {label: in_order(line) for label, line in cells.items() if max(len(p.rows) for p in line) > 1}
    if not cells:
        raise DashboardError(f"no cell carries {figure} of two repeats or more, which the repeats plot needs; measure with --repeats")
    sheet = style.Sheet(f"Spread of repeats: {title(figure)}", "")
    if len(cells) > MOST:
        sheet.notes.append(f"{MOST} of {len(cells)} cells shown, those with most repeats; narrow with --where.")
    kept = sorted(cells, key=lambda label: -max(len(p.rows) for p in cells[label]))[:MOST]
    shown = {label: line for label, line in cells.items() if label in kept}
    sheet.mark_doubts(p for line in shown.values() for p in line)
    names = {label: _names(line) for label, line in shown.items()}
    legend = style.looks(name for line in names.values() for name in line)
    heights = 0.9 + 0.45 * max(len(line) for line in shown.values())
    beside = CHARACTER * max(len(name) for name in legend)
    width = max(5.6, beside + FOR_DOTS)
    drawing, axes = sheet.panels(list(shown), columns=2 if len(shown) > 1 else 1, width=width, height=max(heights, 1.7), names=beside)
    for ax, (label, line) in zip(axes, shown.items(), strict=True):
        for at, (name, point) in enumerate(zip(names[label], line, strict=True)):
            _density(ax, at, [row.figures[figure] for row in point.rows if figure in row.figures], legend[name])
        ax.set_yticks(range(len(line)), names[label], fontsize=8)
        ax.set_ylim(len(line) - 0.4, -0.95)
        ax.grid(visible=False, axis="y")
        style.compact_axis(ax, "x", zero=False)
        ax.locator_params("x", nbins=6)
        ax.set_xlabel(axis_label(figure, title(figure)))
    sheet.notes.append(f"Dots: runs; line: their mean; density: Gaussian, Scott's bandwidth, from {FEWEST} repeats on.")
    return sheet.finish(drawing)


def _names(line: list[Point]) -> list[str]:
    names = [" ".join(text.split("\n")) for text in labels(line)]
    sources = [point.source for point in line]
    return [f"{source}: {name}" if source and len(set(sources)) > 1 else name for source, name in zip(sources, names, strict=True)]


def _density(ax: Axes, at: int, values: list[float], look: style.Look) -> None:
    from scipy.stats import gaussian_kde

    if len(values) >= FEWEST and len(set(values)) > 1:
        density = gaussian_kde(values)
        reach = 3 * float(np.sqrt(density.covariance[0, 0]))
        xs = np.linspace(min(values) - reach, max(values) + reach, 200)
        heights = density(xs)
        ax.fill_between(xs, at - 0.1 - 0.75 * heights / heights.max(), at - 0.1, color=look.color, alpha=0.35, linewidth=0)
    ax.plot(values, [at + 0.08] * len(values), look.marker, color=look.color, markersize=4, alpha=0.8)
    mean = sum(values) / len(values)
    ax.plot([mean, mean], [at - 0.8 if len(values) >= FEWEST else at - 0.15, at + 0.22], color=look.color, linewidth=1.4)
