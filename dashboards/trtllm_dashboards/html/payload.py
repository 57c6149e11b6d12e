"""Result sets as the page's data: one column per quantity, one entry per cell, everything that repeats stored once.

Estimates over repeats are made here and not in the browser, so that the page, the figures and the tables show the same numbers. Numbers
keep six significant digits, finer than any repeat agrees with another; whole ones are exact.

Cells that failed have entries too (status, reason, no figures), and older versions of a case keep theirs, marked, for the drill-down.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from trtllm_dashboards import looks
from trtllm_dashboards.html.runs import run_of
from trtllm_dashboards.points import DIMENSIONS, Estimate, Point, RowSets, newest, points
from trtllm_dashboards.precisions import pairs
from trtllm_results.compare.published import beside, load
from trtllm_results.compare.report import beside_records
from trtllm_results.cost import listed_price
from trtllm_results.errors import ResultsError
from trtllm_results.metrics.registry import HEADLINE, METRICS
from trtllm_results.model_sizes import canonical
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store

PAYLOAD_VERSION = 2
DOTS = (HEADLINE, "ttft_p50_ms", "tpot_p50_ms")
"""Figures whose single runs are listed in a cell's drill-down."""
RUNS_KEPT = 40
RUNS_SHOWN = 60
"""Cells whose runs are shown from within (telemetry, requests), the fastest first: some 4 kB each."""
NUMBERS: dict[str, Callable[[Point], float]] = {
    "batch": lambda p: p.cell.batch,
    "isl": lambda p: p.cell.isl,
    "osl": lambda p: p.cell.osl,
    "request_rate": lambda p: p.cell.request_rate,
    "num_requests": lambda p: p.cell.num_requests,
    "gpus": lambda p: p.cell.gpus,
}


class Table:
    """Values stored once, referred to by index."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._index: dict[Any, int] = {}

    def add(self, value: Any) -> int:
        return self.made(value, lambda: value)

    def made(self, key: Any, make: Callable[[], Any]) -> int:
        """The index of `key`'s value, which is made when it is new."""
        if key not in self._index:
            self._index[key] = len(self.values)
            self.values.append(make())
        return self._index[key]


def cells_in(sets: RowSets) -> list[Point]:
    """The page's cells in its order: what was measured, every version, then what never was."""
    measured = points(sets, every_version=True)
    return measured + _lost(sets, measured)


def build(sets: RowSets, title: str = "", stores: Sequence[Store] = ()) -> dict[str, Any]:
    """The page's data, ready for JSON. `stores` hold the side tables of the rows."""
    cells = cells_in(sets)
    measured = [p for p in cells if p.rows[0].status == "ok"]
    current = {id(p) for p in newest(measured)}
    environments, commands = Table(), Table()
    names = [f for f in METRICS if any(f in row.figures for p in measured for row in p.rows)]
    estimates = {name: [p.get(name) if p.rows[0].status == "ok" else None for p in cells] for name in names}
    damaged: list[str] = []
    within = _within(cells, estimates.get(HEADLINE, []), stores, damaged)
    return {
        "version": PAYLOAD_VERSION,
        "title": title,
        "generated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "n": len(cells),
        "looks": {"precisions": looks.PRECISIONS, "light": looks.LIGHT, "dark": looks.DARK, "symbols": looks.SYMBOLS},
        "dimensions": {
            **{name: _coded([p.names[name] for p in cells]) for name in DIMENSIONS},
            "status": _coded([p.rows[0].status for p in cells]),
            "version": _coded(["newest" if id(p) in current or p.rows[0].status != "ok" else "older" for p in cells]),
        },
        "numbers": {name: [_short(take(p)) for p in cells] for name, take in NUMBERS.items()},
        "figures": {name: _figure(column) for name, column in estimates.items()},
        "definitions": {name: asdict(METRICS[name]) for name in names},
        "repeats": [len(p.rows) for p in cells],
        "runs": {name: [_runs(p, name) for p in cells] for name in DOTS if name in names},
        "keys": [p.key for p in cells],
        "started": [max(row.started_at for row in p.rows)[:19] for p in cells],
        "reasons": {i: p.rows[0].reason for i, p in enumerate(cells) if p.rows[0].reason},
        "warnings": {i: found for i, p in enumerate(cells) if (found := _warnings(p))},
        "doubts": {i: doubt.text for i, p in enumerate(cells) if (doubt := p.implausible) is not None},
        "environment": [environments.made(p.environment, partial(_environment, p)) for p in cells],
        "environments": environments.values,
        "command": [commands.add(p.rows[0].command) for p in cells],
        "commands": commands.values,
        "published": _published([p for p in cells if id(p) in current], cells),
        "pairs": _pairs(measured, cells),
        "prices": _prices(cells),
        "within": within,
        "notes": [*_notes(measured), *(f"Left out: {text}." for text in dict.fromkeys(damaged))],
        "paths": {},
        "profiles": [],
        "gates": [],
        "comparison": None,
        "gpus": None,
        "explained": {},
        "progress": None,
    }


def _warnings(point: Point) -> list[str]:
    doubt = point.implausible
    return sorted({warning for row in point.rows for warning in row.warnings} | ({doubt.text} if doubt is not None else set()))


def _lost(sets: RowSets, measured: Sequence[Point]) -> list[Point]:
    """Cells without one `ok` row, by their last row."""
    seen = {(p.source, p.key) for p in measured}
    last: dict[tuple[str, str], Row] = {}
    for source, rows in sets.items():
        for row in rows:
            if row.status != "ok" and (key := (source, row.key)) not in seen:
                last[key] = row
    return [Point(source, row.cell, row.environment, (row,), key) for (source, key), row in last.items()]


def _coded(names: Sequence[str]) -> dict[str, Any]:
    table = Table()
    index = [table.add(name) for name in names]
    return {"names": table.values, "index": index}


def _figure(estimates: Sequence[Estimate | None]) -> dict[str, Any]:
    column: dict[str, Any] = {"mean": [None if e is None else _short(e.mean) for e in estimates]}
    if any(e is not None and e.n > 1 for e in estimates):
        column["half"] = [None if e is None or e.n < 2 else _short((e.high - e.low) / 2) for e in estimates]
    return column


def _short(value: float) -> float | int:
    if value == int(value) and abs(value) < 1e15:
        return int(value)
    number = float(f"{value:.6g}")
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def _runs(point: Point, figure: str) -> list[float | int]:
    if len(point.rows) < 2:
        return []
    return [_short(row.figures[figure]) for row in point.rows[:RUNS_KEPT] if figure in row.figures]


def _environment(point: Point) -> dict[str, Any]:
    return {name: value for name, value in asdict(point.environment).items() if value not in ("", 0, 0.0, None)}


def _published(current: Sequence[Point], cells: Sequence[Point]) -> list[dict[str, Any]]:
    """Ours beside published figures, with the index of our cell; empty when nothing is comparable."""
    comparable = {(canonical(one.model), one.osl, one.tp) for one in load()}
    rows = [row for p in current if (canonical(p.cell.model), p.cell.osl, p.cell.tp) in comparable for row in p.rows if row.status == "ok"]
    place = {row.row_id: index for index, p in enumerate(cells) for row in p.rows}
    try:
        found = beside(row for row in rows if not row.arm and not row.predicted)
    except ResultsError:
        return []
    records = beside_records(found)
    for record, one in zip(records, found, strict=True):
        record["cell"] = place[one.ours.row_id]
    return records


def _pairs(measured: Sequence[Point], cells: Sequence[Point]) -> list[dict[str, Any]]:
    place = {id(p): index for index, p in enumerate(cells)}
    return [
        {
            "cell": place[id(one.point)],
            "base": place[id(one.base)],
            "ratio": _short(one.ratio),
            "low": None if one.low is None else _short(one.low),
            "high": None if one.high is None else _short(one.high),
            "verdict": one.verdict,
            "best": one.best,
        }
        for one in pairs(measured)
    ]


def _prices(cells: Sequence[Point]) -> dict[str, Mapping[str, Any]]:
    """List price of each device on the page that has one: dollars for an hour of one GPU, and where that is from."""
    devices = {p.names["device"]: listed_price(p.environment.gpu) for p in cells if p.environment.gpu}
    return {name: {"usd": price.usd_per_gpu_hour, "note": price.text} for name, price in devices.items() if price is not None}


def _within(
    cells: Sequence[Point], rates: Sequence[Estimate | None], stores: Sequence[Store], damaged: list[str]
) -> dict[int, dict[str, Any]]:
    """What went on within the runs of the fastest cells; `damaged` gets a sentence on each side table that cannot be read."""
    if not stores:
        return {}
    order = sorted((i for i, rate in enumerate(rates) if rate is not None), key=lambda i: -rates[i].mean)  # type: ignore[union-attr]
    return {i: found for i in order[:RUNS_SHOWN] if (found := run_of(cells[i], stores, damaged)) is not None}


def _notes(measured: Sequence[Point]) -> list[str]:
    """What a reader has to know before any figure."""
    notes = []
    devices = sorted({p.names["device"] for p in measured})
    if len(devices) > 1:
        notes.append(f"Measured on {len(devices)} devices ({', '.join(devices)}): compare within one; the Device filter keeps it.")
    if measured and all(len(p.rows) == 1 for p in measured):
        notes.append(
            "Every cell ran once, so nothing is known of the spread and no difference is shown to be real: measure with --repeats 3."
        )
    return notes
