"""Speed-up by precision over cells alike in all else, each pair with its interval and verdict.

The base is the widest precision measured for a model on a device: bf16, else fp16, else fp32. A pair comes from one result set where that
has both; else from two, the newest on each side, since where a row was stored changes nothing of what it measured. `best` pairs are the
fastest cell of each precision at one layout, whatever the batch: what a precision is worth when each is used at its best.

Throughputs are compared as ln(ratio) by Welch's interval; a verdict survives Holm's correction over all pairs. A side with one run gives a
ratio and no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trtllm_dashboards.points import Point, having, load_of, newest, started
from trtllm_results import stats
from trtllm_results.record.cell import ALIGN_FIELDS

FIGURE = "output_tokens_per_s"
BASES = ("bf16", "fp16", "fp32")
ALPHA = 0.05
_SAME = tuple(name for name in ALIGN_FIELDS if name not in ("precision", "kv_dtype"))
_BEST = tuple(name for name in _SAME if name != "batch")


@dataclass(frozen=True)
class Pair:
    """A cell beside its counterpart in the base precision. `ratio` of geometric means over repeats; no interval where a side ran once."""

    point: Point
    base: Point
    ratio: float
    low: float | None
    high: float | None
    verdict: str
    """`faster`, `slower` or `inconclusive`."""
    best: bool = False

    @property
    def repeats(self) -> tuple[int, int]:
        return len(self.point.rows), len(self.base.rows)


def pairs(points: Iterable[Point]) -> list[Pair]:
    """The best against the best of each case, then the other matched pairs; by model, shape and load."""
    current = [p for p in newest(points) if not p.rows[0].arm and not p.rows[0].predicted and all(v > 0 for v in values(p))]
    current = having(current, FIGURE)
    matched = _matched(current, lambda p: (_named(p, _SAME), p.cell.target, p.environment.device))
    best = _matched(_best(current), lambda p: (_named(p, _BEST), p.cell.target, p.environment.device))
    ids = {(id(a), id(b)) for a, b in best}
    both = [*((a, b, True) for a, b in best), *((a, b, False) for a, b in matched if (id(a), id(b)) not in ids)]
    return sorted(_judged(both), key=_order)


def _order(pair: Pair) -> tuple[Any, ...]:
    cell = pair.point.cell
    return (not pair.best, cell.model, cell.isl, cell.osl, cell.precision, bool(cell.request_rate), load_of(pair.point), cell.tp)


def values(point: Point) -> list[float]:
    """Output tokens/s of each repeat."""
    return [row.figures[FIGURE] for row in point.rows if FIGURE in row.figures]


def _named(point: Point, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(point.cell, name) for name in names)


def _mean(point: Point) -> float:
    return sum(values(point)) / len(point.rows)


def _best(points: Iterable[Point]) -> list[Point]:
    """The fastest cell of each precision, result set and case, of closed loops."""
    fastest: dict[tuple[Any, ...], Point] = {}
    for point in points:
        if point.cell.request_rate:
            continue
        case = (point.source, point.cell.precision, _named(point, _BEST), point.cell.target, point.environment.device)
        if case not in fastest or _mean(point) > _mean(fastest[case]):
            fastest[case] = point
    return list(fastest.values())


def _matched(points: Sequence[Point], case: Callable[[Point], tuple[Any, ...]]) -> list[tuple[Point, Point]]:
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        groups.setdefault(case(point), []).append(point)
    matched = []
    for members in groups.values():
        base = next((b for b in BASES if any(p.cell.precision == b for p in members)), None)
        bases = {p.source: p for p in members if p.cell.precision == base}
        others = [p for p in members if p.cell.precision != base]
        if not bases or not others:
            continue
        matched += [(p, bases[p.source]) for p in others if p.source in bases]
        alone: dict[tuple[str, str], Point] = {}
        for point in sorted((p for p in others if p.source not in bases), key=started):
            alone[point.cell.precision, point.cell.kv_dtype] = point
        matched += [(point, max(bases.values(), key=started)) for point in alone.values()]
    return matched


def _judged(matched: Sequence[tuple[Point, Point, bool]]) -> list[Pair]:
    evidence = [stats.log_ratio(values(b), values(a)) if min(len(a.rows), len(b.rows)) >= 2 else None for a, b, _ in matched]
    tested = [one for one in evidence if one is not None]
    corrected = iter(stats.holm([2 * min(one.p_below(0.0), one.p_above(0.0), 0.5) for one in tested]))
    judged = []
    for (point, base, best), one in zip(matched, evidence, strict=True):
        if one is None:
            ratio = math.exp(sum(map(math.log, values(point))) / len(values(point)) - sum(map(math.log, values(base))) / len(values(base)))
            judged.append(Pair(point, base, ratio, None, None, "inconclusive", best))
            continue
        reach = one.interval(1 - ALPHA)
        verdict = "inconclusive" if next(corrected) > ALPHA else "faster" if reach.estimate > 0 else "slower"
        judged.append(Pair(point, base, math.exp(reach.estimate), math.exp(reach.low), math.exp(reach.high), verdict, best))
    return judged
