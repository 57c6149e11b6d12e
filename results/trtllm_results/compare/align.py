"""Two or more result sets side by side: aligned by cell, each figure with its change, interval and a verdict word.

The first set is the base. Repeats are the sample: two or more on both sides give a Welch interval on ln(other/base); with one repeat the
change is printed and the verdict is `inconclusive`, because a single run says nothing of its own noise. Repeats of a load whose arrivals
are drawn meet the same arrivals in both sets, repeat by repeat, where the sets have one workload: these are compared in pairs, so that
what the arrivals add, which is alike on both sides, does not hide the change. Verdict words survive Holm's correction over everything
compared, so that a table of a hundred cells does not announce five accidents. That holds for `same` too: of a hundred cells that all
differ by just over `SAME_WITHIN`, some interval lies within it by luck in 87% of comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trtllm_results import stats
from trtllm_results.errors import ResultsError, did_you_mean
from trtllm_results.metrics.registry import HEADLINE, METRICS
from trtllm_results.record.cell import ALIGN_FIELDS
from trtllm_results.record.flat import shown
from trtllm_results.record.row import PREDICTED, Row
from trtllm_results.stats import Interval
from trtllm_results.store.selection import ResultSet
from trtllm_results.versions import newest, varied_in

SAME_WITHIN = 0.01
"""A change shown to be smaller than this, in either direction, is called `same` (two one-sided tests, Schuirmann 1987)."""
CONFIDENCE = 0.95
SETTINGS_NAMED = 4
"""Differing settings that a note names."""
CLOCK = "sm_clock_mean_mhz"
Key = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Change:
    """One figure of one cell, base against other: arithmetic means over repeats. `change` is relative, positive where the number grew."""

    cell: Mapping[str, Any]
    label: str
    figure: str
    base: str
    other: str
    base_value: float
    other_value: float
    base_repeats: int
    other_repeats: int
    interval: Interval | None
    p_value: float
    rank_p_value: float | None
    """Mann and Whitney's test: a check on the t interval that no outlier can sway; needs 4 repeats a side to reach 0.05. None of pairs."""
    verdict: str
    warnings: tuple[str, ...] = ()
    same_p_value: float = 1.0
    """Of the claim that the change is smaller than `SAME_WITHIN`."""

    @property
    def change(self) -> float:
        """Of the geometric means, which the interval is of; of the values themselves where a side has one run."""
        return self.interval.estimate if self.interval is not None else self.other_value / self.base_value - 1

    @property
    def unit(self) -> str:
        return METRICS[self.figure].unit if self.figure in METRICS else ""


@dataclass(frozen=True)
class Comparison:
    """All changes, and what could not be compared (label, reason)."""

    sets: tuple[str, ...]
    changes: tuple[Change, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)


def compare(
    sets: Sequence[ResultSet],
    figures: Sequence[str] = (HEADLINE,),
    ignore: Sequence[str] = (),
    across_gpus: bool = False,
) -> Comparison:
    """Compares every later set with the first.

    `ignore` names alignment fields that may differ (for a set split by precision: `precision`, `kv_dtype`). Raises `ResultsError` for fewer
    than two sets, an unknown figure or field, GPUs that differ without `across_gpus`, sets with no cell in common, and where nothing else
    is left, a figure that is zero, negative or NaN; a cell with such a one beside others is left out.
    """
    if len(sets) < 2:
        raise ResultsError("comparing needs two result sets; name two stores, or one store and --by FIELD")
    for name in figures:
        if name not in METRICS:
            raise ResultsError(f"there is no figure '{name}'{did_you_mean(name, METRICS)}; docs/schema.md lists them")
    for name in ignore:
        fields = (*ALIGN_FIELDS, *varied_in(row for one in sets for row in one.rows))
        if name not in (*fields, "arm"):
            raise ResultsError(f"'{name}' is not a field cells are aligned by{did_you_mean(name, fields)}; those are {', '.join(fields)}")
    if not across_gpus:
        _one_device(sets)
    varied = [name for name in varied_in(row for one in sets for row in one.rows) if name not in ignore]
    aligned = [_by_cell(one, ignore, varied) for one in sets]
    drafts: list[tuple[Change, stats.Evidence | None]] = []
    left_out: list[tuple[str, str]] = []
    no_ratio: list[ResultsError] = []
    for other_set, other in zip(sets[1:], aligned[1:], strict=True):
        common = [key for key in aligned[0] if key in other]
        if not common:
            raise ResultsError(_nothing_in_common(sets[0], other_set, aligned[0], other))
        left_out += [(_label(aligned[0][key]), f"only in {sets[0].name}") for key in aligned[0] if key not in other]
        left_out += [(_label(other[key]), f"only in {other_set.name}") for key in other if key not in aligned[0]]
        for key in common:
            for figure in figures:
                try:
                    apart = "" if "goodput" in ignore else other_limits(figure, sets[0].name, aligned[0][key], other_set.name, other[key])
                    draft = apart or _change(key, figure, sets[0].name, aligned[0][key], other_set.name, other[key])
                except ResultsError as error:
                    no_ratio.append(error)
                    left_out.append((_label(aligned[0][key]), str(error)))
                    continue
                if isinstance(draft, str):
                    left_out.append((_label(aligned[0][key]), draft))
                else:
                    drafts.append(draft)
    if no_ratio and not drafts:
        raise no_ratio[0]
    return Comparison(
        tuple(one.name for one in sets),
        _verdicts(drafts, 1 - CONFIDENCE),
        tuple(left_out),
        _notes(sets) + _settings(sets, aligned, (*ignore, *varied)) + _chips(sets, aligned),
    )


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Rows no other row beats in output tokens/s both per user and per GPU, by rising tokens/s per user. Rows without either figure, or not
    ok, are left out."""
    speed, throughput = "output_tokens_per_s_per_user", "output_tokens_per_s_per_gpu"
    points = [r for r in rows if r.status == "ok" and speed in r.figures and throughput in r.figures]
    points.sort(key=lambda r: (-r.figures[speed], -r.figures[throughput]))
    front: list[Row] = []
    for row in points:
        if not front or row.figures[throughput] > front[-1].figures[throughput]:
            front.append(row)
    return front[::-1]


def fronts(rows: Sequence[Row]) -> list[tuple[str, Row, int]]:
    """The Pareto front of each workload: its name, each unbeaten cell with its figures as arithmetic means over repeats, and their number.

    A workload is a model, a shape, an arrival process and a device: speeds under different ones are not alternatives. A cell counts once,
    by its newest version.
    """
    workloads: dict[tuple[Any, ...], list[tuple[Row, int]]] = {}
    for group in newest(rows):
        cell = group[0].cell
        key = (cell.model, cell.isl, cell.osl, cell.workload, cell.request_rate > 0, group[0].environment.device, cell.target == PREDICTED)
        workloads.setdefault(key, []).append((_means(group), len(group)))
    by_group = []
    for (model, isl, osl, _, is_open, _, _), cells in workloads.items():
        workload = cells[0][0].cell.named_workload
        others = [workload] * bool(workload) + ["open loop"] * is_open
        counts = {row.row_id: count for row, count in cells}
        by_group += [(" ".join([model, f"{isl}/{osl}", *others]), row, counts[row.row_id]) for row in pareto([row for row, _ in cells])]
    return by_group


def _means(group: Sequence[Row]) -> Row:
    """The first repeat with the figures that all carry, each the mean over repeats."""
    names = [name for name in group[0].figures if all(name in row.figures for row in group)]
    return replace(group[0], figures={name: sum(row.figures[name] for row in group) / len(group) for name in names})


def _one_device(sets: Sequence[ResultSet]) -> None:
    devices = sorted({row.environment.device for one in sets for row in one.rows if row.status == "ok"})
    if len(devices) > 1:
        raise ResultsError(
            f"these results come from different devices ({', '.join(d or 'unknown' for d in devices)}); say --across-gpus to compare them"
        )


def _by_cell(one: ResultSet, ignore: Sequence[str], varied: Sequence[str]) -> dict[Key, list[Row]]:
    """Rows by cell: the newest version of what was measured, and what failed where nothing was. A gate's arms are cells of their own."""
    cells: dict[Key, list[Row]] = {}
    current = [row for group in newest(one.rows) for row in group]
    for row in (*current, *(row for row in one.rows if row.status != "ok")):
        arm = (("arm", row.arm),) * bool(row.arm and "arm" not in ignore)
        cells.setdefault((*(pair for pair in row.case(varied) if pair[0] not in ignore), *arm), []).append(row)
    return cells


def _label(rows: Sequence[Row]) -> str:
    return rows[0].label


def _nothing_in_common(first: ResultSet, second: ResultSet, a: Mapping[Key, Any], b: Mapping[Key, Any]) -> str:
    for one, cells in ((first, a), (second, b)):
        if not cells:
            return f"{one.name} has no result to compare; name another set, or another filter"
    names = [name for name, _ in next(iter(a))]
    apart = [name for name in names if not {dict(k).get(name) for k in a} & {dict(k).get(name) for k in b}]
    why = f"they differ in {', '.join(apart)}" if apart else "no combination of settings occurs in both"
    return f"{first.name} and {second.name} have no cell in common ({why}); measure the same cells or name fields to --ignore"


def _change(
    key: Key, figure: str, base: str, base_rows: Sequence[Row], other: str, other_rows: Sequence[Row]
) -> tuple[Change, stats.Evidence | None] | str:
    ours, theirs = _values(base_rows, figure, base), _values(other_rows, figure, other)
    for name, rows, values in ((base, base_rows, ours), (other, other_rows, theirs)):
        if not values:
            bad = next((row for row in rows if row.status != "ok"), None)
            return f"{bad.status} in {name}: {bad.reason}" if bad else f"no {figure} in {name}"
    pairs = _pairs(base_rows, other_rows, figure)
    several = min(len(ours), len(theirs)) >= 2
    evidence = stats.paired(np.log([b / a for a, b in pairs])) if pairs else stats.log_ratio(ours, theirs) if several else None
    warnings = tuple(
        dict.fromkeys(f"{name}: {text}" for name, rows in ((base, base_rows), (other, other_rows)) for r in rows for text in r.warnings)
    )
    return (
        Change(
            cell=dict(key),
            label=_label(base_rows),
            figure=figure,
            base=base,
            other=other,
            base_value=_mean(ours),
            other_value=_mean(theirs),
            base_repeats=len(ours),
            other_repeats=len(theirs),
            interval=evidence.interval(CONFIDENCE).as_ratio() if evidence else None,
            p_value=2 * min(evidence.p_below(0.0), evidence.p_above(0.0), 0.5) if evidence else 1.0,
            rank_p_value=stats.mann_whitney(ours, theirs) if several and not pairs else None,
            verdict="inconclusive",
            warnings=warnings,
        ),
        evidence,
    )


def _pairs(base_rows: Sequence[Row], other_rows: Sequence[Row], figure: str) -> list[tuple[float, float]]:
    """A figure in both sets, repeat by repeat, where both drew the same arrivals for each; none where they did not."""
    sides = []
    for rows in (base_rows, other_rows):
        rows = [row for row in rows if row.status == "ok" and figure in row.figures]
        if not all(row.cell.request_rate and row.cell.workload_hash and not row.settings.get("replay") for row in rows):
            return []
        by_repeat = {(row.cell.workload_hash, row.repeat): row.figures[figure] for row in rows}
        if len(by_repeat) < len(rows):  # measured more than once, so that which belongs to which is open
            return []
        sides.append(by_repeat)
    first, second = sides
    alike = first.keys() == second.keys() and len({workload for workload, _ in first}) == 1 and len(first) >= 2
    return [(first[name], second[name]) for name in sorted(first)] if alike else []


def _values(rows: Sequence[Row], figure: str, name: str) -> list[float]:
    values = [row.figures[figure] for row in rows if row.status == "ok" and figure in row.figures]
    for value in values:
        if not value > 0 or math.isinf(value):
            raise ResultsError(
                f"{figure} of {_label(rows)} in {name} is {value:g}; a measurement like that cannot be compared, drop or repeat it"
            )
    return values


def _mean(values: Sequence[float]) -> float:
    """The arithmetic one, as every other table and page has it."""
    return sum(values) / len(values)


def _verdicts(drafts: Sequence[tuple[Change, stats.Evidence | None]], alpha: float) -> tuple[Change, ...]:
    tested = [(index, evidence) for index, (_, evidence) in enumerate(drafts) if evidence is not None]
    changed = stats.holm([drafts[index][0].p_value for index, _ in tested])
    same = stats.holm([_p_of_same(evidence) for _, evidence in tested])
    p_values = {index: both for (index, _), both in zip(tested, zip(changed, same, strict=True), strict=True)}
    return tuple(_worded(change, *p_values.get(index, (1.0, 1.0)), alpha) for index, (change, _) in enumerate(drafts))


def _p_of_same(evidence: stats.Evidence) -> float:
    """That the ratio lies within 1 - `SAME_WITHIN` and 1 + `SAME_WITHIN`: the larger of two one-sided p values."""
    return max(evidence.p_above(math.log1p(-SAME_WITHIN)), evidence.p_below(math.log1p(SAME_WITHIN)))


def _worded(change: Change, p: float, p_same: float, alpha: float) -> Change:
    """With its verdict and corrected p values. `same` is shown at alpha / 2, as an interval of confidence 1 - alpha within the limits shows
    it of one comparison."""
    verdict = "inconclusive"
    if change.interval is not None:
        if p <= alpha:
            grew, better = change.interval.estimate > 0, METRICS[change.figure].better
            if better == "":
                verdict = "more" if grew else "less"
            elif METRICS[change.figure].unit in ("ms", "s") or "/s" in METRICS[change.figure].unit:
                verdict = "faster" if grew == (better == "higher") else "slower"
            else:
                verdict = "better" if grew == (better == "higher") else "worse"
        if p_same <= alpha / 2:
            verdict = "same"
    return replace(change, verdict=verdict, p_value=p, same_p_value=p_same)


def _notes(sets: Sequence[ResultSet]) -> tuple[str, ...]:
    notes = []
    for name in ("gpu", "driver", "power_limit_w", "torch", "triton"):
        seen = {one.name: sorted({str(getattr(row.environment, name)) for row in one.rows if row.status == "ok"}) for one in sets}
        if len({tuple(values) for values in seen.values()}) > 1:
            notes.append(f"{name} differs: " + "; ".join(f"{who} {', '.join(values) or '-'}" for who, values in seen.items()))
    return tuple(notes)


def _settings(sets: Sequence[ResultSet], aligned: Sequence[Mapping[Key, Sequence[Row]]], known: Sequence[str]) -> tuple[str, ...]:
    """That cells all sets have were measured under other settings, which no field tells that cells are lined up by."""
    apart: dict[str, list[set[str]]] = {}
    for key in (key for key in aligned[0] if all(key in cells for cells in aligned)):
        sides = [_values_of_settings(cells[key], known) for cells in aligned]
        for name in sides[0]:
            if all(name in side for side in sides) and any(side[name] != sides[0][name] for side in sides):
                for seen, side in zip(apart.setdefault(name, [set() for _ in sides]), sides, strict=True):
                    seen |= side[name]
    each = [
        f"{name} {', '.join(f'{_either(values)} in {one.name}' for one, values in zip(sets, seen, strict=True))}"
        for name, seen in list(apart.items())[:SETTINGS_NAMED]
    ]
    more = f"; and {len(apart) - SETTINGS_NAMED} more" if len(apart) > SETTINGS_NAMED else ""
    return (f"settings differ: {'; '.join(each)}{more}",) if apart else ()


def _values_of_settings(rows: Sequence[Row], known: Sequence[str]) -> dict[str, set[str]]:
    values: dict[str, set[str]] = {}
    for row in rows:
        for name, value in row.settings.items() if row.status == "ok" else ():
            if name not in known and not isinstance(value, Mapping):
                values.setdefault(name, set()).add(shown(value).strip("'"))
    return values


def other_limits(figure: str, base: str, base_rows: Sequence[Row], other: str, other_rows: Sequence[Row]) -> str:
    """Why a goodput of two sets is not one quantity: it counts requests within limits, and each has its own. '' where nothing says so."""
    if not figure.startswith("goodput"):
        return ""
    ours, theirs = ({str(row.settings["goodput"]) for row in rows if "goodput" in row.settings} for rows in (base_rows, other_rows))
    if not ours or not theirs or ours == theirs:
        return ""
    return f"{figure} counts within other limits: {_either(ours)} in {base}, {_either(theirs)} in {other}"


def _either(values: Iterable[str]) -> str:
    return " or ".join(sorted(values))


def _chips(sets: Sequence[ResultSet], aligned: Sequence[Mapping[Key, Sequence[Row]]]) -> tuple[str, ...]:
    """That cells all sets have were measured on different GPUs of one kind: repeats on one chip say nothing of the next one's clocks."""
    common = [key for key in aligned[0] if all(key in cells for cells in aligned)]
    measured = [[[row for row in cells[key] if row.status == "ok"] for key in common] for cells in aligned]
    chips = [{row.environment.gpu_uuid for rows in cells for row in rows} for cells in measured]
    kinds = {row.environment.gpu for cells in measured for rows in cells for row in rows}
    if len(kinds) > 1 or not all(chips) or any("" in seen for seen in chips) or all(seen == chips[0] for seen in chips):
        return ()
    each = []
    for one, cells, seen in zip(sets, measured, chips, strict=True):
        clocks = [
            sum(of_cell) / len(of_cell) for rows in cells if (of_cell := [row.figures[CLOCK] for row in rows if CLOCK in row.figures])
        ]
        mean = f" at {sum(clocks) / len(clocks):,.0f} MHz" if len(clocks) == len(common) else ""
        each.append(f"{one.name} {', '.join(sorted(uuid.removeprefix('GPU-')[:8] for uuid in seen))}{mean}")
    return (f"not the same GPUs: {'; '.join(each)}. Chips of one kind differ, most at the power cap, and no interval here includes that",)
