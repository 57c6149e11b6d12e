"""Which panels and series a figure of curves has: one panel per case, one line for each way in which its cells differ.

A case measured at one load is not a curve. Beside curves it becomes a sentence in the footer, since an almost empty panel takes the room of
one that says something; where there is no curve at all, everything shares one panel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trtllm_dashboards.plots import style
from trtllm_dashboards.points import Point, grouped, load_of, varying

PANEL_BY = ("model", "shape", "loop")
IMPLIED = ("source", "loop", "workload", "kv_dtype")
"""Dimensions that a name leaves out where the others tell the points apart as well."""
MOST_NAMED = 6


@dataclass(frozen=True)
class Layout:
    """Points by panel title, and the dimensions along which a panel's lines differ."""

    panels: dict[str, list[Point]]
    series_by: list[str]

    @property
    def shown(self) -> list[Point]:
        return [point for members in self.panels.values() for point in members]

    @property
    def legend(self) -> dict[str, style.Look]:
        return style.looks(grouped(self.shown, self.series_by))


def layout(plotted: Sequence[Point], sheet: style.Sheet, describe: Callable[[Point], str], most: int = style.MAX_PANELS) -> Layout:
    """Panels and series of `plotted`. `describe`: a point's figures in a few words, for the footer."""
    panel_by = [name for name in PANEL_BY if name in varying(plotted)]
    panel_by = telling(plotted, panel_by, [])
    groups = grouped(plotted, panel_by)
    curves = {title: members for title, members in groups.items() if len(members) > 1}
    alone = [(title, members[0]) for title, members in groups.items() if len(members) == 1]
    if not curves:
        panel_by, curves, alone = [], {"": list(plotted)}, []
    shown = [point for members in style.limited(curves, sheet, most).values() for point in members]
    panel_by = [name for name in panel_by if name in varying(shown)]
    panels = grouped(shown, panel_by)
    series_by = telling(shown, varying(shown, [*panel_by, "batch", "request_rate"]), panel_by)
    sheet.subtitle = style.subtitle(shown)
    sheet.mark_doubts(shown)
    if alone:
        named = "; ".join(f"{title}, {_load(point)}: {describe(point)}" for title, point in alone[:MOST_NAMED])
        more = f"; and {len(alone) - MOST_NAMED} more" if len(alone) > MOST_NAMED else ""
        sheet.notes.append(f"Measured at one load, so no curve: {named}{more}.")
    return Layout(panels, series_by)


def telling(plotted: Sequence[Point], dimensions: Sequence[str], given: Sequence[str]) -> list[str]:
    """`dimensions` without those of `IMPLIED` that follow from the others and from what is `given`."""
    kept = list(dimensions)
    for name in IMPLIED:
        rest = [one for one in (*given, *kept) if one != name]
        names: dict[tuple[str, ...], set[str]] = {}
        for point in plotted:
            names.setdefault(tuple(point.names[one] for one in rest), set()).add(point.names[name])
        if name in kept and all(len(values) == 1 for values in names.values()):
            kept.remove(name)
    return kept


def _load(point: Point) -> str:
    if point.cell.request_rate:
        return f"{point.cell.request_rate:g} req/s"
    return f"batch {load_of(point):,g}"
