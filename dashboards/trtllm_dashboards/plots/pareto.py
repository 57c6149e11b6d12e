"""Throughput per GPU against speed per user, with the Pareto front: what each user gets against what the machine earns.

The front is over all series together, since the question it answers is "which setting should I run", whatever kind of setting it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.points import Point, axis_label, grouped, having, load_of, points, varying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

X, Y = "output_tokens_per_s_per_user", "output_tokens_per_s_per_gpu"


def at(point: Point) -> tuple[float, float]:
    x, y = point.get(X), point.get(Y)
    assert x is not None
    assert y is not None
    return x.mean, y.mean


def front(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The places that none other beats in both coordinates, by falling speed."""
    best, kept = float("-inf"), []
    for x, y in sorted(places, key=lambda place: (-place[0], -place[1])):
        if y > best:
            best = y
            kept.append((x, y))
    return kept


def draw(material: Material) -> Figure:
    found = having(points(material.sets), X, Y)
    if not found:
        raise DashboardError(f"No row carries both {X} and {Y}, which the pareto plot needs (requests of two tokens or more).")
    sheet = style.Sheet("Throughput per GPU against speed per user", "")
    panel_by = [d for d in ("model", "shape") if d in varying(found)]
    groups = style.limited(grouped(found, panel_by), sheet)
    shown = [p for members in groups.values() for p in members]
    sheet.subtitle = style.subtitle(shown)
    series_by = varying(shown, [*panel_by, "batch", "request_rate"])
    legend = style.looks(grouped(shown, series_by))
    drawing, axes = sheet.panels(list(groups))
    for ax, members in zip(axes, groups.values(), strict=True):
        edge = front([at(p) for p in members])
        ax.plot([x for x, _ in edge], [y for _, y in edge], color="#9aa4af", linewidth=5, alpha=0.35, solid_capstyle="round", zorder=1)
        estimates = []
        for label, line in grouped(members, series_by).items():
            line.sort(key=load_of)
            estimates = [e for p in line if (e := p.get(Y))]
            style.errorbars(ax, [at(p)[0] for p in line], estimates, legend[label])
        for point in members:
            if at(point) in edge:
                style.remark(ax, f"{load_of(point):g}", at(point), (5, 4))
        style.log_axis(ax, "y", [at(p)[1] for p in members])
        style.compact_axis(ax, "x")
        ax.set_xlabel(axis_label(X, "speed per user"))
        ax.set_ylabel(axis_label(Y, "output throughput"))
    unit = "request rate (req/s)" if any(p.cell.request_rate for p in shown) else "batch size"
    bars = style.uncertainty_note(e for p in shown if (e := p.get(Y)))
    sheet.notes.append(f"Grey: Pareto front over all series; small figures on it: {unit}. {bars}")
    return sheet.finish(drawing, legend)
