"""The highest load that still meets an SLO: bisection in which every turn is decided with confidence, or is said to be undecided.

A load passes when the share of requests within all limits is above `attainment`, and fails when it is below. Each probe gives an interval
for that share; a probe whose interval holds `attainment` is repeated and pooled until it is decided or `repeats` are used up. The errors
of all decisions together stay below 1 - `confidence` (each gets its part: Bonferroni over steps and looks). The answer is an interval,
from the highest load that passed to the lowest that failed, and loads that could not be decided are narrowed in from both sides.
Rejected: a fixed ladder, which gives one of its rungs, and bisection on noisy yes/no answers, which turns the wrong way and never learns.

Requests of one run are not independent (a full queue spoils many at once), so the interval comes from batch means: the variance between
successive batches of requests against that of independent ones is the design effect that the sample size is divided by (Law,
"Simulation Modeling and Analysis", 5th ed., section 9.5.3). The interval is Wilson's (1927).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from trtllm_bench.errors import BenchError

Good = npt.NDArray[np.bool_]
Verdict = Literal["pass", "fail", "undecided"]
BATCHES = 10
MAX_STEPS = 24


@dataclass
class Probe:
    """What is known of one load: for each run, whether each of its requests, in order of arrival, was good."""

    load: float
    runs: list[Good] = field(default_factory=list)
    verdict: Verdict = "undecided"

    @property
    def share(self) -> float:
        return float(np.concatenate(self.runs).mean()) if self.runs else float("nan")

    def interval(self, z: float) -> tuple[float, float]:
        """Wilson's interval for the share, the sample shrunk by the design effect."""
        n = sum(map(len, self.runs))
        share = self.share
        n_effective = n / design_effect(self.runs)
        centre = (share + z * z / (2 * n_effective)) / (1 + z * z / n_effective)
        half = z / (1 + z * z / n_effective) * math.sqrt(share * (1 - share) / n_effective + z * z / (4 * n_effective**2))
        return centre - half, centre + half


def design_effect(runs: list[Good]) -> float:
    """Variance of the mean, from batch means, over that of independent requests; at least 1."""
    everything = np.concatenate(runs)
    share = float(everything.mean())
    batches = [batch for run in runs for batch in np.array_split(run, BATCHES) if len(batch)]
    if not 0 < share < 1 or len(batches) < 2:
        return 1.0
    means = np.asarray([batch.mean() for batch in batches])
    independent = share * (1 - share) * np.mean([1 / len(batch) for batch in batches])
    return max(1.0, float(means.var(ddof=1) / independent))


@dataclass(frozen=True)
class Saturation:
    """The limit lies between `passed`, the highest load that met the SLO (0: none did), and `failed`, the lowest that missed it (inf: none
    up to `Search.highest`)."""

    passed: float
    failed: float
    probes: tuple[Probe, ...]
    confidence: float


@dataclass(frozen=True)
class Search:
    """How to look. `whole`: loads are whole numbers (concurrency). `tolerance`: stop when failed / passed is within 1 + tolerance.
    `alone`: `measure(0)` sends requests one at a time; where even these miss the SLO no load meets it, which halving would never learn."""

    attainment: float = 0.95
    confidence: float = 0.95
    tolerance: float = 0.05
    repeats: int = 3
    whole: bool = False
    alone: bool = False
    highest: float = math.inf
    """No load above this is tried."""

    def __post_init__(self) -> None:
        for name in ("attainment", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise BenchError(f"--{name} is {getattr(self, name):g}; it must lie between 0 and 1")
        if not self.tolerance > 0 or self.repeats < 1 or not self.highest > 0:
            raise BenchError("--tolerance and --highest must be above 0, and --repeats at least 1")

    @property
    def z(self) -> float:
        return NormalDist().inv_cdf(1 - (1 - self.confidence) / (MAX_STEPS * self.repeats))

    def least_requests(self) -> int:
        """Fewest requests of a probe that could pass at all, were every one of them good."""
        return math.ceil(self.z**2 * self.attainment / (1 - self.attainment)) + 1


def find_saturation(
    measure: Callable[[float], Good], start: float, search: Search, watch: Callable[[Probe], None] | None = None
) -> Saturation:
    """Doubles or halves from `start` until the answer is bracketed, then bisects (geometrically).

    `measure(load)` runs the load once and says which requests, in order of arrival, met the SLO. `watch` sees each probe as it is decided.
    """
    probes: list[Probe] = []
    load: float | None = min(start, search.highest)
    while load is not None and len(probes) < MAX_STEPS:
        probe = _decide(load, measure, search)
        probes.append(probe)
        if watch is not None:
            watch(probe)
        load = _next(probes, search)
    passed, failed = _bracket(probes)
    return Saturation(passed, failed, tuple(probes), search.confidence)


def _bracket(probes: list[Probe]) -> tuple[float, float]:
    """Highest load below every failure that passed, and lowest load that failed."""
    failed = min((probe.load for probe in probes if probe.verdict == "fail"), default=math.inf)
    passed = max((probe.load for probe in probes if probe.verdict == "pass" and probe.load < failed), default=0.0)
    return passed, failed


def _decide(load: float, measure: Callable[[float], Good], search: Search) -> Probe:
    probe = Probe(load)
    for _ in range(search.repeats):
        probe.runs.append(measure(load))
        low, high = probe.interval(search.z)
        if low > search.attainment:
            probe.verdict = "pass"
        elif high < search.attainment:
            probe.verdict = "fail"
        if probe.verdict != "undecided":
            break
    return probe


def _next(probes: list[Probe], search: Search) -> float | None:
    """The load to try next, None when the answer is narrow enough: first the widest gap that a decided end still leaves."""
    passed, failed = _bracket(probes)
    doubtful = sorted(probe.load for probe in probes if probe.verdict == "undecided" and passed < probe.load < failed)
    below, above = (doubtful[0], doubtful[-1]) if doubtful else (failed, passed)
    if math.isinf(failed):
        highest = max(probe.load for probe in probes)
        return None if highest >= search.highest else min(_round(2 * highest, search), search.highest)
    if passed == 0 and search.alone and all(probe.load for probe in probes):
        return 0.0
    if passed == 0:
        return _lower(below, search) if below else None
    gaps = [(high / low, low, high) for low, high in {(passed, below), (above, failed)} if _open(low, high, search)]
    if not gaps:
        return None
    _, low, high = max(gaps)
    return _between(low, high, search)


def _open(low: float, high: float, search: Search) -> bool:
    return high / low > 1 + search.tolerance and not (search.whole and high - low <= 1)


def _between(low: float, high: float, search: Search) -> float:
    middle = math.sqrt(low * high)
    return float(min(max(round(middle), low + 1), high - 1)) if search.whole else middle


def _lower(load: float, search: Search) -> float | None:
    """Half the load; None below a concurrency of 1."""
    if search.whole:
        return float(load // 2) if load >= 2 else None
    return load / 2


def _round(load: float, search: Search) -> float:
    return float(round(load)) if search.whole else load
