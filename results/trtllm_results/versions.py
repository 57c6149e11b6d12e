"""Which rows speak for a case, once, for every table, plot, page and comparison.

A case is what a reader names: model, precision, shape, load, layout, target and device, the other settings that a sweep varied
(`Row.varied`), and the arm where a gate ran it (A and B are two sides of a question, not two ages of one thing). A store may hold a case in
several versions, before and after a change of code, driver or other settings. The version measured last speaks for it, by the arithmetic
mean over its `ok` repeats: averaging across versions, or taking the best of them, would show a speed that no version has.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from trtllm_results.record.row import Row

Case = tuple[Any, ...]
WARMUP = "gate_warmup"
"""In a row's `extra`: whether a gate ran it before its blocks."""


def varied_in(rows: Iterable[Row]) -> tuple[str, ...]:
    """Names of the settings that sweeps among `rows` varied."""
    return tuple(sorted({name for row in rows for name in row.varied}))


def case_of(row: Row, varied: Iterable[str] = ()) -> Case:
    """What a reader calls the same: rows of one case differ in version or repeat alone. `varied`: what `varied_in` returns for all the
    rows."""
    cell = row.cell
    return (row.case(varied), cell.target, cell.target_version, row.environment.device, row.arm)


def versions(rows: Iterable[Row]) -> list[tuple[Row, ...]]:
    """The `ok` repeats of each version of each case, in the order first seen; a gate's warm-up runs do not count."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.status == "ok":
            groups.setdefault((row.key, row.arm), []).append(row)
    return [tuple(_counted(group)) for group in groups.values()]


def _counted(group: list[Row]) -> list[Row]:
    """Without a gate's warm-up runs: those that say so, else (rows written before they did) the first of an odd number, since a block has
    two runs of each arm and a gate warms up with one."""
    if not group[0].arm:
        return group
    if any(WARMUP in row.extra for row in group):
        return [row for row in group if not row.extra.get(WARMUP)] or group
    return sorted(group, key=lambda row: row.repeat)[len(group) % 2 if len(group) > 1 else 0 :]


def newest(rows: Iterable[Row]) -> list[tuple[Row, ...]]:
    """The `ok` repeats of the version of each case that was measured last, in the order the cases were first seen."""
    rows = list(rows)
    varied = varied_in(rows)
    latest: dict[Case, tuple[Row, ...]] = {}
    for group in versions(rows):
        case = case_of(group[0], varied)
        if case not in latest or measured_at(group) > measured_at(latest[case]):
            latest[case] = group
    return list(latest.values())


def measured_at(group: Iterable[Row]) -> str:
    """When the last of them began."""
    return max(row.started_at for row in group)
