"""Rows become points: the repeats of one cell as one estimate, with names for the ways cells differ.

The run is the sample, so an estimate is over repeats: 95% t interval from three on, the two values themselves for two, and for one repeat
no interval at all (drawn hollow). Requests within a run are not independent and are never used as a sample size.

Which rows speak for a case is said in `trtllm_results.versions`: the newest version's repeats. `history` shows all versions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from trtllm_results import stats, versions
from trtllm_results.cost import COST
from trtllm_results.metrics.registry import HEADLINE, METRICS
from trtllm_results.plausibility import Implausible
from trtllm_results.record.cell import FIXED_LENGTHS, OWN_TARGET, Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import INTERVAL, Row

CONFIDENCE = 0.95
PER_GPU = "output_tokens_per_s_per_gpu"
RowSets = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Estimate:
    """Mean of n repeats with its interval; `low == high == mean` when n is 1, where the spread is unknown and not zero. Of a prediction n
    is 0, and the interval is the prediction's, or empty where the figure has none."""

    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Point:
    """The `ok` repeats of one cell, from one result set."""

    source: str
    cell: Cell
    environment: Environment
    rows: tuple[Row, ...]
    key: str
    """`Row.key` of all of them."""

    def get(self, figure: str) -> Estimate | None:
        """The estimate of `figure`, or None when no repeat carries it."""
        if figure == COST:
            return self._cost()
        known = estimate([row.figures[figure] for row in self.rows if figure in row.figures])
        return known if known is None or not self.rows[0].predicted else self._predicted(figure, known.mean)

    def _cost(self) -> Estimate | None:
        """The inverse of throughput, and so is its interval: of one that reaches 0 it has no end."""
        priced = next((row.figures for row in self.rows if COST in row.figures), None)
        rate = self.get(HEADLINE)
        if priced is None or rate is None:
            return None
        at_one = priced[COST] * priced[HEADLINE]  # at one token/s
        return Estimate(at_one / rate.mean, at_one / rate.high, at_one / rate.low if rate.low > 0 else math.inf, rate.n)

    def _predicted(self, figure: str, value: float) -> Estimate:
        interval = self.rows[0].extra.get(INTERVAL)
        whole = self.rows[0].figures.get(HEADLINE, 0.0)
        told = [interval.get(end) for end in ("low", "high")] if isinstance(interval, Mapping) else []
        ends = [value * end / whole for end in told if isinstance(end, int | float) and whole > 0]
        if figure not in (HEADLINE, PER_GPU) or len(ends) < 2:
            return Estimate(value, value, value, 0)
        return Estimate(value, ends[0], ends[1], 0)

    @property
    def implausible(self) -> Implausible | None:
        """What is wrong with the throughput of a repeat, by what it asks of the GPUs; None where nothing is."""
        return next((doubt for row in self.rows if (doubt := row.implausible) is not None), None)

    def place(self, x: str, y: str) -> tuple[float, float]:
        """(mean of figure `x`, mean of figure `y`). The point must have both."""
        across, up = self.get(x), self.get(y)
        assert across is not None, f"{self.cell.label} has no {x}"
        assert up is not None, f"{self.cell.label} has no {y}"
        return across.mean, up.mean

    @cached_property
    def names(self) -> Mapping[str, str]:
        """What this point is called along each dimension."""
        return {name: label(self) for name, label in DIMENSIONS.items()}


def _target(point: Point) -> str:
    return " ".join(part for part in (point.cell.target, point.cell.target_version) if part)


def _arm(row: Row) -> str:
    """`A, main` for a gate's baseline `main`."""
    name = str(row.extra.get("gate_name", ""))
    return row.arm + (f", {name}" if row.arm and name else "")


DIMENSIONS: Mapping[str, Callable[[Point], str]] = {
    "source": lambda p: p.source,
    "device": lambda p: short_device(p.environment.device),
    "target": _target,
    "model": lambda p: p.cell.model,
    "precision": lambda p: p.cell.precision,
    "kv_dtype": lambda p: f"kv {p.cell.kv_dtype}" if p.cell.kv_dtype else "",
    "tp": lambda p: f"tp {p.cell.tp}",
    "pp": lambda p: f"pp {p.cell.pp}",
    "replicas": lambda p: f"{p.cell.replicas} replicas" if p.cell.replicas > 1 else "",
    "shape": lambda p: f"{p.cell.isl}/{p.cell.osl}",
    "workload": lambda p: p.cell.workload,
    "loop": lambda p: "open loop" if p.cell.request_rate else "closed loop",
    "request_rate": lambda p: f"{p.cell.request_rate:g} req/s" if p.cell.request_rate else "",
    "settings": lambda p: " ".join(f"{name.replace('_', ' ')} {value}" for name, value in p.rows[0].varied.items()),
    "arm": lambda p: _arm(p.rows[0]),
    "batch": lambda p: f"batch {p.cell.batch}" if p.cell.batch else "unbounded batch",
}
"""Ways cells differ, most telling first."""


def short_device(device: str) -> str:
    """`NVIDIA H100 80GB HBM3` as `H100 80GB HBM3`."""
    return device.removeprefix("NVIDIA ").strip() or "unknown device"


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean and interval of repeated measurements."""
    numbers = [v for v in values if math.isfinite(v)]
    if not numbers:
        return None
    n = len(numbers)
    mean = sum(numbers) / n
    if n < 3:
        return Estimate(mean, min(numbers), max(numbers), n)
    spread = math.sqrt(sum((v - mean) ** 2 for v in numbers) / (n - 1))
    half = stats.t_quantile(0.5 + CONFIDENCE / 2, n - 1) * spread / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def ratio(above: Sequence[float], below: Sequence[float]) -> Estimate | None:
    """`above / below` of two independent sets of repeats: ratio of geometric means, Welch's t interval on the log scale.

    `n` is the smaller count; 1 where either side has a single run and the interval is therefore unknown.
    """
    above, below = ([v for v in side if v > 0 and math.isfinite(v)] for side in (above, below))
    if not above or not below:
        return None
    n = min(len(above), len(below))
    if n < 2:
        middle = math.exp(sum(map(math.log, above)) / len(above) - sum(map(math.log, below)) / len(below))
        return Estimate(middle, middle, middle, 1)
    from trtllm_results.stats import log_ratio

    logs = log_ratio(below, above).interval(CONFIDENCE)
    return Estimate(math.exp(logs.estimate), math.exp(logs.low), math.exp(logs.high), n)


def as_sets(rows: Sequence[Row] | RowSets) -> RowSets:
    return rows if isinstance(rows, Mapping) else {"": rows}


def points(rows: Sequence[Row] | RowSets, *, every_version: bool = False) -> list[Point]:
    """One point a measured cell, newest version of each unless `every_version`, in the order first seen."""
    return [
        Point(source, group[0].cell, group[0].environment, group, group[0].key)
        for source, members in as_sets(rows).items()
        for group in (versions.versions(members) if every_version else versions.newest(members))
    ]


def newest(points: Iterable[Point]) -> list[Point]:
    """Of points that differ in version only (not in anything a reader names), the one measured last."""
    points = list(points)
    varied = versions.varied_in(row for point in points for row in point.rows)
    latest: dict[tuple[object, ...], Point] = {}
    for point in points:
        case = (point.source, versions.case_of(point.rows[0], varied))
        if case not in latest or started(point) > started(latest[case]):
            latest[case] = point
    return list(latest.values())


def started(point: Point) -> str:
    return versions.measured_at(point.rows)


def having(points: Iterable[Point], *figures: str) -> list[Point]:
    """Points that carry all of these figures."""
    return [p for p in points if all(p.get(f) is not None for f in figures)]


def varying(points: Sequence[Point], ignore: Iterable[str] = ()) -> list[str]:
    """Dimensions along which these points differ."""
    skipped = set(ignore)
    return [name for name in DIMENSIONS if name not in skipped and len({p.names[name] for p in points}) > 1]


def common(points: Sequence[Point], ignore: Iterable[str] = ()) -> str:
    """What all the points share, as one line."""
    if not points:
        return ""
    skipped = {"batch", "request_rate", "loop", *varying(points), *ignore}
    shown = [points[0].names[name] for name in DIMENSIONS if name not in skipped]
    return ", ".join(name for name in shown if name and name not in ("tp 1", "pp 1", FIXED_LENGTHS, OWN_TARGET))


def grouped(points: Sequence[Point], dimensions: Sequence[str]) -> dict[str, list[Point]]:
    """Points by their names along `dimensions`, in order of first appearance; the key is what a legend prints."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        key = ", ".join(point.names[d] for d in dimensions if point.names[d])
        groups.setdefault(key, []).append(point)
    return groups


def axis_label(figure: str, text: str = "") -> str:
    """Name and unit of a figure, from the registry."""
    unit = METRICS[figure].unit
    return f"{text or figure.replace('_', ' ')}" + (f" ({unit})" if unit else "")


def load_of(point: Point) -> float:
    """What grows along a curve: request rate in an open loop, sequences in flight in a closed one."""
    return point.cell.request_rate or point.cell.batch


CLOSED, OPEN = "batch size (sequences in flight)", "request rate (req/s)"


def load_axis(points: Iterable[Point]) -> str:
    """Name of the axis that `load_of` is drawn on; open and closed loops belong into panels of their own, and are both named where not."""
    loops = {bool(point.cell.request_rate) for point in points}
    return f"{CLOSED}, or {OPEN}" if len(loops) > 1 else OPEN if True in loops else CLOSED
