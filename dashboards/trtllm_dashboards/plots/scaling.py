"""Throughput with more GPUs, against perfect scaling from the fewest measured; beside it speed-up and latency of the same load.

For throughput the best batch counts at each number of GPUs: the question is what the machine can do, and the best batch moves with the
memory it has. Speed-up and latency are of cells that differ in their layout alone (`scaling.matched`), a line for each way to use GPUs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.plots.layout import telling
from trtllm_dashboards.points import Estimate, Point, axis_label, grouped, having, points, varying
from trtllm_dashboards.scaling import Scaled, matched
from trtllm_results.record.cell import Cell

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from trtllm_dashboards.plots.style import Look

FIGURE, LATENCY = "output_tokens_per_s", "tpot_p50_ms"
PANELS = ("throughput", "speed-up of the same load", "latency of the same load")
MOST_LINES = 8


def gpus(point: Point) -> int:
    return point.cell.gpus


def mean(point: Point) -> float:
    estimate = point.get(FIGURE)
    return estimate.mean if estimate else 0.0


def best_by_count(line: list[Point]) -> list[Point]:
    """The fastest point at each GPU count, by count."""
    best: dict[int, Point] = {}
    for point in line:
        if gpus(point) not in best or mean(point) > mean(best[gpus(point)]):
            best[gpus(point)] = point
    return [best[count] for count in sorted(best)]


def draw(material: Material) -> Figure:
    plotted = having(points(material.sets), FIGURE)
    counts = sorted({gpus(p) for p in plotted})
    if len(counts) < 2:
        raise DashboardError(
            f"the scaling plot needs two GPU counts or more (--tp, --pp, --replicas); "
            f"the rows have {', '.join(map(str, counts)) or 'no throughput'}"
        )
    sheet = style.Sheet("Throughput with more GPUs", style.subtitle(plotted))
    panel_by = [d for d in ("model", "shape") if d in varying(plotted)]
    every = grouped(plotted, panel_by)
    told = {label: members for label, members in every.items() if len({gpus(p) for p in members}) > 1}
    groups = style.limited(told or every, sheet, 3)
    shown = [p for members in groups.values() for p in members]
    sheet.mark_doubts(shown)
    given = [*panel_by, "batch", "request_rate", "tp", "pp", "replicas"]
    series_by = telling(shown, varying(shown, given), given)
    lines = {label: loads_of(members, series_by) for label, members in groups.items()}
    legend = style.looks([*grouped(shown, series_by), *(name for of_group in lines.values() for name in of_group)])
    several = any(lines.values())
    titles = [f"{label}: {name}" if label else name for label in groups for name in (PANELS if several else PANELS[:1])]
    drawing, axes = sheet.panels(titles if several else list(groups))
    drawn: list[Estimate] = []
    for number, (label, members) in enumerate(groups.items()):
        ours = axes[number * (len(PANELS) if several else 1) :]
        drawn += _throughput(ours[0], members, series_by, legend, counts)
        if several:
            drawn += _same_load(ours[1], ours[2], lines[label], legend, counts)
    sheet.notes.append("Dotted: perfect scaling; per cent: share of it reached; best batch at each count. " + style.uncertainty_note(drawn))
    if several:
        sheet.notes.append("Speed-up and latency: the same load on more GPUs, against the fewest.")
    return sheet.finish(drawing, {label or "best batch": look for label, look in legend.items()} if several else legend)


def loads_of(members: list[Point], series_by: list[str]) -> dict[str, list[Scaled]]:
    """Lines of the panels beside throughput, each by GPUs: the layouts of one load that use more GPUs in one way, the fewest GPUs first."""
    lines: dict[str, list[Scaled]] = {}
    for group in matched(members):
        first = group[0]
        for way in ("tp", "pp", "replicas"):
            more = [one for one in group[1:] if ways(one.point.cell) == (way,) and one.gpus > first.gpus]
            names = [first.point.names[name] for name in (*series_by, "batch", "request_rate") if first.point.names[name]]
            if more and len(lines) < MOST_LINES:
                lines[", ".join([*names, way])] = [first, *more]
    return lines


def ways(cell: Cell) -> tuple[str, ...]:
    """Of tp, pp and replicas those that a layout has."""
    return tuple(name for name in ("tp", "pp", "replicas") if getattr(cell, name) > 1)


def _throughput(ax: Axes, members: list[Point], series_by: list[str], legend: Mapping[str, Look], counts: list[int]) -> list[Estimate]:
    drawn: list[Estimate] = []
    shares: list[tuple[str, tuple[float, float]]] = []
    for label, line in grouped(members, series_by).items():
        best = best_by_count(line)
        estimates = [e for p in best if (e := p.get(FIGURE))]
        xs = [gpus(p) for p in best]
        look = legend[label]
        ax.plot(xs, [mean(best[0]) * x / xs[0] for x in xs], color=look.color, linewidth=0.9, linestyle=(0, (2, 2)), alpha=0.7)
        style.errorbars(ax, xs, estimates, look)
        if xs[-1] > xs[0]:
            share = mean(best[-1]) * xs[0] / (mean(best[0]) * xs[-1])
            shares.append((f"{share:.0%}", (xs[-1], mean(best[-1]))))
        drawn += estimates
    _gpu_axis(ax, counts)
    style.remarks(ax, shares, (6, -3))
    ax.set_ylabel(axis_label(FIGURE, "output throughput"))
    return drawn


def _same_load(
    speed: Axes, latency: Axes, lines: Mapping[str, list[Scaled]], legend: Mapping[str, Look], counts: list[int]
) -> list[Estimate]:
    drawn: list[Estimate] = []
    shares: list[tuple[str, tuple[float, float]]] = []
    if not lines:
        for ax in (speed, latency):
            ax.text(0.5, 0.5, "no load was measured\non fewer GPUs too", transform=ax.transAxes, ha="center", va="center", color=style.SOFT)
            ax.set_axis_off()
        return []
    for name, line in lines.items():
        look, fewest = legend[name], line[0].gpus
        xs = [one.gpus for one in line]
        speed.plot(xs, [one.speed_up for one in line], color=look.color, marker=look.marker, linestyle=look.line)
        shares.append((f"{line[-1].efficiency(fewest):.0%}", (xs[-1], line[-1].speed_up)))
        timed = [(one.gpus, e) for one in line if (e := one.point.get(LATENCY))]
        style.errorbars(latency, [x for x, _ in timed], [e for _, e in timed], look)
        drawn += [e for _, e in timed]
    speed.plot(counts, [count / counts[0] for count in counts], color=style.SOFT, linewidth=0.9, linestyle=(0, (2, 2)))
    for ax in (speed, latency):
        _gpu_axis(ax, counts)
    style.remarks(speed, shares, (6, -3))
    speed.set_ylabel("speed-up (x)")
    latency.set_ylabel(axis_label(LATENCY, "TPOT p50"))
    return drawn


def _gpu_axis(ax: Axes, counts: list[int]) -> None:
    style.log_axis(ax, "x", counts, every=True)
    ax.margins(x=0.12)
    style.compact_axis(ax)
    ax.set_xlabel("GPUs (tp x pp x replicas)")
