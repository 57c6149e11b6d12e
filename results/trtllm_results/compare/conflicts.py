"""What two sets of rows say differently, before one is merged into the other: sweeps of several hosts may overlap.

Three kinds, since they ask for different action: the same row with other content (one was edited), the same measurement made twice (kept
as further repeats), and the same case measured by another version of code, driver or settings (of which tables show the newest).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtllm_results.record.environment import DECISIVE
from trtllm_results.record.flat import shown
from trtllm_results.record.row import Row
from trtllm_results.versions import case_of, varied_in

NAMED = 3
"""Differing rows and fields named one by one."""


def conflicts(present: Sequence[Row], name: str, incoming: Sequence[Row], other: str) -> list[str]:
    """One sentence each. `present` is what `name` holds already, `incoming` what comes from `other`."""
    known = {row.row_id: row for row in present}
    new = [row for row in incoming if row.row_id not in known]
    edited = [(known[row.row_id], row) for row in incoming if row.row_id in known and known[row.row_id] != row]
    return [*_edited(edited, name, other), *_again(present, new, name, other), *_versions(present, new, name, other)]


def _edited(pairs: Sequence[tuple[Row, Row]], name: str, other: str) -> list[str]:
    lines = []
    for ours, theirs in pairs[:NAMED]:
        a, b = ours.to_flat(), theirs.to_flat()
        field = next(one for one in dict.fromkeys([*a, *b]) if a.get(one) != b.get(one))
        what = f"{field} is {shown(a.get(field))} in {name} and {shown(b.get(field))} in {other}"
        lines.append(f"row {ours.row_id[:8]} of {ours.label}: {what}; that of {name} is kept")
    if len(pairs) > NAMED:
        lines.append(f"{len(pairs) - NAMED} more rows differ between {name} and {other}; those of {name} are kept")
    return lines


def _again(present: Sequence[Row], new: Sequence[Row], name: str, other: str) -> list[str]:
    measured = {(row.key, row.repeat) for row in present if row.status == "ok"}
    again = {row.key for row in new if row.status == "ok" and (row.key, row.repeat) in measured}
    if not again:
        return []
    cells = "1 cell" if len(again) == 1 else f"{len(again)} cells"
    return [f"{cells} of {other} had been measured in {name} under the same settings too; the runs are kept as further repeats"]


def _versions(present: Sequence[Row], new: Sequence[Row], name: str, other: str) -> list[str]:
    varied = varied_in([*present, *new])
    known: dict[Any, dict[str, Row]] = {}
    for row in present:
        if row.status == "ok":
            known.setdefault(case_of(row, varied), {})[row.key] = row
    differing: dict[str, dict[str, None]] = {}
    cases = set()
    for row in new:
        case = case_of(row, varied)
        versions = known.get(case, {})
        if row.status != "ok" or not versions or row.key in versions:
            continue
        cases.add(case)
        for field, ours, theirs in _apart(next(iter(versions.values())), row):
            differing.setdefault(field, {})[f"{shown(ours)} and {shown(theirs)}"] = None
    if not cases:
        return []
    named = [f"{field} ({next(iter(pairs))})" for field, pairs in list(differing.items())[:NAMED]]
    more = f" and {len(differing) - NAMED} more" if len(differing) > NAMED else ""
    what = "1 case is" if len(cases) == 1 else f"{len(cases)} cases are"
    return [f"{what} in both {name} and {other} as versions that differ in {', '.join(named)}{more}; tables show the one measured last"]


def _apart(ours: Row, theirs: Row) -> list[tuple[str, Any, Any]]:
    """Fields that make two versions of a case."""
    pairs = [(name, getattr(ours.environment, name), getattr(theirs.environment, name)) for name in DECISIVE]
    names = ("num_requests", "workload_hash", "engine_fingerprint", "weights_hash")
    pairs += [(name, getattr(ours.cell, name), getattr(theirs.cell, name)) for name in names]
    settings = sorted({*ours.cell.settings, *theirs.cell.settings})
    pairs += [(name, ours.cell.settings.get(name), theirs.cell.settings.get(name)) for name in settings]
    return [(name, a, b) for name, a, b in pairs if a != b]
