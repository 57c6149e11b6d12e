"""Result sets as the page's data: one column a quantity, one entry a cell, everything that repeats stored once.

Estimates over repeats are made here and not in the browser, so that the page, the figures and the tables show the same numbers. Numbers
keep six significant digits, finer than any repeat agrees with another.

Cells that failed have entries too (status, reason, no figures), and older versions of a case keep theirs, marked, for the drill-down.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from trtllm_dashboards.points import DIMENSIONS, Estimate, Point, RowSets, newest, points
from trtllm_results.compare.published import beside, load
from trtllm_results.compare.report import beside_records
from trtllm_results.errors import ResultsError
from trtllm_results.metrics.registry import METRICS
from trtllm_results.model_sizes import canonical
from trtllm_results.record.row import Row

PAYLOAD_VERSION = 1
HEADLINE = "output_tokens_per_s"
RUNS_KEPT = 40
"""Single runs listed in a cell's drill-down."""
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

    def add(self, value: Any, key: Any = None) -> int:
        key = value if key is None else key
        if key not in self._index:
            self._index[key] = len(self.values)
            self.values.append(value)
        return self._index[key]


def build(sets: RowSets, title: str = "") -> dict[str, Any]:
    """The page's data, ready for JSON."""
    measured = points(sets, every_version=True)
    current = {id(p) for p in newest(measured)}
    lost = _lost(sets, measured)
    cells = measured + lost
    environments, commands = Table(), Table()
    names = [f for f in METRICS if any(f in row.figures for p in measured for row in p.rows)]
    return {
        "version": PAYLOAD_VERSION,
        "title": title,
        "generated": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "n": len(cells),
        "dimensions": {
            **{name: _coded([p.names[name] for p in cells]) for name in DIMENSIONS},
            "status": _coded([p.rows[0].status for p in cells]),
            "version": _coded(["newest" if id(p) in current or p.rows[0].status != "ok" else "older" for p in cells]),
        },
        "numbers": {name: [_short(take(p)) for p in cells] for name, take in NUMBERS.items()},
        "figures": {name: _figure([p.get(name) if p.rows[0].status == "ok" else None for p in cells]) for name in names},
        "definitions": {name: asdict(METRICS[name]) for name in names},
        "repeats": [len(p.rows) for p in cells],
        "runs": [_runs(p) for p in cells],
        "keys": [p.key for p in cells],
        "started": [max(row.started_at for row in p.rows)[:19] for p in cells],
        "reasons": {i: p.rows[0].reason for i, p in enumerate(cells) if p.rows[0].reason},
        "warnings": {i: found for i, p in enumerate(cells) if (found := sorted({w for row in p.rows for w in row.warnings}))},
        "environment": [environments.add(_environment(p), p.environment) for p in cells],
        "environments": environments.values,
        "command": [commands.add(p.rows[0].command) for p in cells],
        "commands": commands.values,
        "published": _published(cells),
    }


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
    number = float(f"{value:.6g}")
    return int(number) if number.is_integer() and abs(number) < 1e15 else number


def _runs(point: Point) -> list[float | int]:
    return [_short(row.figures[HEADLINE]) for row in point.rows[:RUNS_KEPT] if HEADLINE in row.figures]


def _environment(point: Point) -> dict[str, Any]:
    return {name: value for name, value in asdict(point.environment).items() if value not in ("", 0, 0.0, None)}


def _published(cells: Sequence[Point]) -> list[dict[str, Any]]:
    """Ours beside published figures, with the index of our cell; empty when nothing is comparable."""
    comparable = {(canonical(one.model), one.osl, one.tp) for one in load()}
    rows = [row for p in cells if (canonical(p.cell.model), p.cell.osl, p.cell.tp) in comparable for row in p.rows if row.status == "ok"]
    place = {row.row_id: index for index, p in enumerate(cells) for row in p.rows}
    try:
        found = beside(rows)
    except ResultsError:
        return []
    records = beside_records(found)
    for record, one in zip(records, found, strict=True):
        record["cell"] = place[one.ours.row_id]
    return records
