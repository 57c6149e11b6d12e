"""Any field of the record against any other: `--x`, `--y`, lines by `--by`, panels by `--row` and `--col`.

A place in the figure is one cell: the newest version's repeats, with their interval where y is a figure. Cells are never averaged, and a
line joins only those that differ in load and in what the axes show: where more differs they stay dots, and the footer says in what.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style
from trtllm_dashboards.plots.layout import telling
from trtllm_dashboards.points import DIMENSIONS, Estimate, Point, common, grouped, points, varying
from trtllm_results.cost import COST
from trtllm_results.metrics.registry import METRICS, title
from trtllm_results.record.cell import CELL_FIELDS
from trtllm_results.store.selection import field_of, settings_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNITS = {
    "batch": "sequences in flight",
    "isl": "tok",
    "osl": "tok",
    "request_rate": "req/s",
    "num_requests": "requests",
    "gpus": "GPUs",
    "tp": "GPUs",
    "pp": "GPUs",
    "replicas": "copies",
}
SUFFIXES = {"_w": "W", "_mhz": "MHz", "_gib": "GiB", "_c": "C", "_count": "count"}
"""Units of fields that say theirs in their name."""
MOST_LINES, MOST_PANELS = 12, 16
LOG_SPAN = 30.0
"""Largest over smallest value from which an axis is logarithmic."""


@dataclass(frozen=True)
class Field:
    """A field by name. `read`: of a point an `Estimate` (a figure's), a number or text; None where the point lacks it."""

    name: str
    read: Callable[[Point], Any]

    def number(self, point: Point) -> float | None:
        """NaN for text."""
        value = self.read(point)
        if isinstance(value, Estimate):
            return value.mean
        return value if value is None else float(value) if isinstance(value, int | float) else math.nan

    def text(self, point: Point) -> str:
        number = self.number(point)
        return "-" if number is None else str(self.read(point)) or "-" if math.isnan(number) else f"{number:,.6g}"

    def named(self, point: Point) -> str:
        """`tp 2`, `fp8`: a number with what it counts."""
        text = self.text(point)
        return text if math.isnan(self.number(point) or 0.0) else f"{self.name} {text}"

    def estimate(self, point: Point) -> Estimate:
        value, number = self.read(point), self.number(point)
        assert number is not None, "points without the field were left out"
        return value if isinstance(value, Estimate) else Estimate(number, number, number, 1)

    def sorted(self, found: Sequence[Point]) -> list[str]:
        """The texts that occur, by value."""
        by_value = sorted(
            {(number if (number := self.number(p)) == number and number is not None else math.inf, self.text(p)) for p in found}
        )
        return [text for _, text in by_value]

    @property
    def unit(self) -> str:
        if self.name in METRICS:
            return METRICS[self.name].unit or "ratio"
        return UNITS.get(self.name) or next((unit for end, unit in SUFFIXES.items() if self.name.endswith(end)), "")

    @property
    def words(self) -> str:
        """The name without its unit."""
        if self.name in METRICS:
            return title(self.name)
        end = next((end for end in SUFFIXES if self.name.endswith(end)), "")
        return self.name.removeprefix("env_").removesuffix(end).replace("_", " ")

    @property
    def label(self) -> str:
        return f"{self.words} ({self.unit})" if self.unit else self.words


def draw(material: Material) -> Figure:
    chosen = material.axes
    if not chosen.x or not chosen.y:
        raise DashboardError("the axes plot needs --x FIELD and --y FIELD, such as --x batch --y output_tokens_per_s")
    every = points(material.sets)
    x, y = field(chosen.x, every), field(chosen.y, every)
    by, rows, cols = ([field(name, every) for name in names] for names in (chosen.by, chosen.row, chosen.col))
    found = [p for p in every if x.number(p) is not None and y.number(p) is not None]
    if not found:
        raise DashboardError(f"no row carries both {x.name} and {y.name}, which the axes plot needs")
    text = next((y.text(p) for p in found if math.isnan(y.number(p) or 0.0)), None)
    if text is not None:
        raise DashboardError(f"--y {y.name} is text, such as '{text[:40]}'; the axes plot needs numbers there")
    panels, columns = _panels(found, rows, cols)
    lines = _lines(found, by, {chosen.x, *chosen.row, *chosen.col})
    words = f"{y.words} against {x.words}"
    sheet = style.Sheet(words[:1].upper() + words[1:], common(found))
    sheet.mark_doubts(found)
    legend = style.looks(lines)
    drawing, axes = sheet.panels(list(panels), columns=columns)
    shown = {chosen.x, *chosen.by, *chosen.row, *chosen.col}
    shown |= {"shape", "isl", "osl"} if {"shape"} <= shown or {"isl", "osl"} <= shown else set()
    hidden: dict[str, None] = {}
    texts = any(math.isnan(x.number(p) or 0.0) for p in found)
    places = {text: float(at) for at, text in enumerate(x.sorted(found))} if texts else {}
    for ax, members in zip(axes, panels.values(), strict=True):
        for label, line in lines.items():
            inside = set(map(id, members))
            mine = [p for p in line if id(p) in inside]
            if not mine:
                continue
            apart = varying(mine, {"batch", "request_rate", "loop", *shown})
            hidden |= dict.fromkeys(apart)
            _line(ax, mine, x, y, legend[label], places, joined=not apart)
        _scales(ax, x, y, found, places)
        ax.set_xlabel(x.label)
        ax.set_ylabel(y.label)
    if hidden:
        sheet.notes.append(f"Dots without a line differ in {', '.join(hidden)} too; add that to --by, --row or --col.")
    if COST in (x.name, y.name):
        sheet.notes += material.prices
    if y.name in METRICS:
        sheet.notes.append(style.uncertainty_note(y.estimate(p) for p in found))
    return sheet.finish(drawing, legend)


def field(name: str, found: Sequence[Point]) -> Field:
    """A figure, a field of the cell or the environment (`env_*`), a setting, or a dimension such as `shape` and `device`.

    Raises `ResultsError` for a name that no row has.
    """
    if name in METRICS:
        return Field(name, lambda p: p.get(name))
    if name == "gpus":
        return Field(name, lambda p: p.cell.gpus)
    if name in DIMENSIONS and name not in CELL_FIELDS:
        return Field(name, lambda p: p.names[name])
    settings = settings_in(row for point in found for row in point.rows)
    for point in found[:1]:
        field_of(point.rows[0], name, settings)
    return Field(name, lambda p: field_of(p.rows[0], name, settings))


def _panels(found: Sequence[Point], rows: Sequence[Field], cols: Sequence[Field]) -> tuple[dict[str, list[Point]], int]:
    """Points by panel, rows from top to bottom, and how many panels a row has. A place of the grid without a point keeps its panel."""
    row_texts = rows[0].sorted(found) if rows else [""]
    col_texts = cols[0].sorted(found) if cols else [""]
    if len(row_texts) * len(col_texts) > MOST_PANELS:
        count = len(row_texts) * len(col_texts)
        raise DashboardError(f"--row and --col make {count} panels; at most {MOST_PANELS} are drawn, so narrow with --where")
    panels = {}
    for row in row_texts:
        for col in col_texts:
            asked = [(one, text) for fields, text in ((rows, row), (cols, col)) for one in fields]
            members = [p for p in found if all(one.text(p) == text for one, text in asked)]
            panels[", ".join(f"{one.name} {text}" for one, text in asked)] = members
    return panels, len(col_texts)


def _lines(found: Sequence[Point], by: Sequence[Field], taken: set[str]) -> dict[str, list[Point]]:
    """Points by line: as asked for, else by what differs and is on no axis."""
    lines: dict[str, list[Point]] = {}
    if "shape" in taken or taken & {"isl", "osl"}:
        taken = taken | {"shape", "isl", "osl"}
    dimensions = [name for name in varying(found, taken) if name not in ("batch", "request_rate", "loop")]
    if not by:
        own = telling(found, dimensions, [name for name in taken if name in DIMENSIONS])
        while len(grouped(found, own)) > MOST_LINES:
            own.remove("source" if "source" in own else own[-1])
        return grouped(found, own)
    for point in found:
        lines.setdefault(", ".join(one.named(point) for one in by), []).append(point)
    if len(lines) > MOST_LINES:
        raise DashboardError(f"--by makes {len(lines)} lines; at most {MOST_LINES} are told apart, so narrow with --where")
    return lines


def _line(ax: Axes, line: Sequence[Point], x: Field, y: Field, look: style.Look, places: Mapping[str, float], *, joined: bool) -> None:
    """`places`: where each text stands across; empty where x is a number."""
    placed = sorted(((_place(x, p, places), y.estimate(p)) for p in line), key=lambda one: one[0])
    xs = [at for at, _ in placed]
    style.errorbars(ax, xs, [estimate for _, estimate in placed], look, line=joined and len(set(xs)) == len(xs) and not places)


def _place(x: Field, point: Point, places: Mapping[str, float]) -> float:
    return places[x.text(point)] if places else x.number(point) or 0.0


def _scales(ax: Axes, x: Field, y: Field, found: Sequence[Point], places: Mapping[str, float]) -> None:
    """The same of all panels, so that they can be compared."""
    if places:
        ax.set_xticks(list(places.values()), list(places), fontsize=8)
        ax.set_xlim(-0.5, len(places) - 0.5)
    else:
        _scale(ax, "x", [_place(x, p, places) for p in found], x.name in CELL_FIELDS)
    estimates = [y.estimate(p) for p in found]
    _scale(ax, "y", [e.mean for e in estimates], False, estimates)


def _scale(ax: Axes, which: Literal["x", "y"], values: Sequence[float], every: bool, bars: Sequence[Estimate] = ()) -> None:
    """An axis with room for `values` and the `bars` drawn at them."""
    low, high = min(values), max(values)
    limits = ax.set_xlim if which == "x" else ax.set_ylim
    if low > 0 and high > LOG_SPAN * low:
        style.log_axis(ax, which, values, every=every)
        low, high = style.span(bars, positive=True) if bars else (low, high)
        limits(low / 1.3, high * 1.3)
        return
    style.compact_axis(ax, which, zero=False)
    least = low
    low, high = style.span(bars) if bars else (low, high)
    room = 0.06 * (high - low or abs(high) or 1.0)
    limits(0 if least >= 0 else low - room, high + room or 1.0)
