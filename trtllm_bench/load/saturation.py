"""The highest load that still meets an SLO: a bracket first, then runs near the limit and one model over all of them.

A load passes when the share of requests within all limits is above `attainment`, and fails when it is below. Loads are doubled or halved
until one passes and one fails. From then on runs are made where the limit is likeliest, and all runs are pooled in one model: near the
limit the logit of the share falls on a line in the logarithm of the load (`fitted_limit`). The search ends when the interval of the limit
is as narrow as `tolerance` asks, or when the time for it is spent; the answer says which.

Requests of one run are not independent: a full queue spoils many at once, and near a queue's limit twenty requests may tell no more than
one. What a run's own arrivals explain of that is taken off first, where they are known (`control_variate.py`), and they tell how steep the
line is. A run in which nothing was spoiled shows nothing of the rest, so the design effect is pooled over all runs, from their distance
from the line, and begins at what queues have.

The bracket's turns are each decided with confidence, or said to be undecided. The errors of all of them together stay below 1 -
`confidence` (each gets its part: Bonferroni over steps and looks); their interval is Wilson's (1927), the sample divided by its design
effect from batch means (Law, "Simulation Modeling and Analysis", 5th ed., section 9.5.3). Concurrency is searched by these alone.

Rejected: a fixed ladder, which gives one of its rungs; bisection on noisy yes/no answers, which turns the wrong way and never learns;
bisection with confidence alone, which spends most of its time deciding loads that it then forgets, and holds too short an interval where
a queue fills; a logistic fit with clusters' standard errors, whose few clusters gave intervals that held the limit in 83%.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np

from trtllm_bench.errors import BenchError
from trtllm_bench.load.control_variate import OVERLOADED, Corrections, FloatArray, Good, Run, corrections

Verdict = Literal["pass", "fail", "undecided"]
BATCHES = 10
MAX_STEPS = 24
MOST_REPEATS, MOST_CONFIDENCE = 1_000, 0.999999
SLOPE, SLOPE_SPREAD = 10.0, 2.0
"""Before anything is seen: how many times faster than the load the odds of a good request fall at the limit (a lognormal's median and its
standard deviation). Queues have 3 to 15, a wall hundreds."""
EFFECT, EFFECT_WEIGHT, EFFECT_GROWTH = 14.0, 6.0, 10.0
"""Before anything is seen: the design effect at the limit, the number of runs that this is worth, and how fast it grows with the logarithm
of the load (near the limit of a queue: 5 to 20, and ten times that a tenth above it)."""
MODEL_BATCHES, BETWEEN = 5, 1.8
"""Batches of a run that its distance from the line is taken by, and what a design effect grows by from batches to runs."""
LOW_TAIL = 0.2
"""Share of its tail that the interval's lower end leaves out: failures come in clumps, so more runs look too good than too bad, and by
simulation the limit then lies below the interval more often than above."""
KNOWN_SPREAD, KNOWN_WEIGHT, LEAST_EFFECT = 0.35, 1.0, 0.7
"""Where a run's arrivals explain all of its luck: the spread about the slope that they tell, the runs that the design effect before is
worth, and its least (constant service times leave less than independent requests have)."""
THETAS, SLOPES = 240, 17
NEAR = 0.2
"""Logarithmic distance from the limit at which a run still counts in part: the line holds near the limit only."""
LEAST_RUNS, LEAST_AFTER = 4, 2
"""Near the limit before it is called known; and after the bracket, whatever they take."""
BUDGET_S, BUDGET_TOLERANCE = 120.0, 0.1
"""Seconds of load in which an interval of this relative width is looked for; the time grows with the square of the precision."""
RAMP_UP = 0.1
"""Share of a run's requests that meet a server still filling; they are sent and not counted."""


@dataclass
class Probe:
    """What is known of one load: for each run, whether each of its requests, in order of arrival, was good."""

    load: float
    runs: list[Good] = field(default_factory=list)
    verdict: Verdict = "undecided"
    arrivals_s: list[FloatArray] = field(default_factory=list)
    """[sent] of each run, where they are known."""

    def add(self, run: Run | Good) -> None:
        if isinstance(run, Run):
            self.arrivals_s.append(run.arrivals_s)
        self.runs.append(run.good if isinstance(run, Run) else run)

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


def design_effect(runs: list[Good], batches_each: int = BATCHES) -> float:
    """Variance of the mean, from batch means, over that of independent requests; at least 1."""
    everything = np.concatenate(runs)
    share = float(everything.mean())
    batches = [batch for run in runs for batch in np.array_split(run, batches_each) if len(batch)]
    if not 0 < share < 1 or len(batches) < 2:
        return 1.0
    means = np.asarray([batch.mean() for batch in batches])
    independent = share * (1 - share) * np.mean([1 / len(batch) for batch in batches])
    return max(1.0, float(means.var(ddof=1) / independent))


@dataclass(frozen=True)
class Saturation:
    """The limit lies between `passed` (0: no load met the SLO) and `failed` (inf: none missed it, up to `Search.highest`)."""

    passed: float
    failed: float
    probes: tuple[Probe, ...]
    confidence: float
    reached: bool = True
    """Whether the interval is as narrow as was asked."""


@dataclass(frozen=True)
class Search:
    """How to look. `whole`: loads are whole numbers (concurrency). `tolerance`: stop when failed / passed is within 1 + tolerance.
    `alone`: `measure(0)` sends requests one at a time; where even these miss the SLO no load meets it, which halving would never learn."""

    attainment: float = 0.95
    confidence: float = 0.95
    tolerance: float = 0.05
    repeats: int = 1
    whole: bool = False
    alone: bool = False
    highest: float = math.inf
    """No load above this is tried."""
    burstiness: float = 1.0
    """Shape of the gamma gaps between arrivals."""
    budget_s: float | None = None
    """Seconds of load after which no further run is begun; None: what the tolerance is worth. The bracket is found whatever it takes, and
    half of this is left for what follows. Only a search by rate knows its seconds."""

    def __post_init__(self) -> None:
        for name in ("attainment", "confidence"):
            if not 0 < getattr(self, name) < 1:
                raise BenchError(f"--{name} is {getattr(self, name):g}; it must lie between 0 and 1")
        if self.confidence > MOST_CONFIDENCE:
            raise BenchError(f"--confidence is {self.confidence}; it must be at most {MOST_CONFIDENCE}")
        if not self.tolerance > 0 or not 1 <= self.repeats <= MOST_REPEATS or not self.highest > 0:
            raise BenchError(f"--tolerance and --highest must be above 0, and --repeats 1 to {MOST_REPEATS:,}")

    @property
    def z(self) -> float:
        return NormalDist().inv_cdf(1 - (1 - self.confidence) / (MAX_STEPS * self.repeats))

    @property
    def seconds(self) -> float:
        """Seconds of load that the tolerance is worth, or those given."""
        return BUDGET_S * (BUDGET_TOLERANCE / self.tolerance) ** 2 if self.budget_s is None else self.budget_s

    def least_requests(self) -> int:
        """Fewest requests of a probe that could pass at all, were every one of them good."""
        return math.ceil(self.z**2 * self.attainment / (1 - self.attainment)) + 1


@dataclass(frozen=True)
class Limit:
    """Where the model sees the limit: an estimate, and its interval."""

    low: float
    estimate: float
    high: float
    runs: int
    """Runs so near to it that they settle it."""


def find_saturation(
    measure: Callable[[float], Run | Good], start: float, search: Search, watch: Callable[[Probe], None] | None = None
) -> Saturation:
    """Doubles or halves from `start` until the limit is bracketed, then measures beside it.

    `measure(load)` runs the load once and says which requests, in order of arrival, met the SLO, and when all arrived. `watch` sees each
    probe as it ends.
    """
    probes: list[Probe] = []
    load: float | None = min(start, search.highest)
    limit: Limit | None = None
    while load is not None and len(probes) < MAX_STEPS:
        probe = Probe(load)
        probes.append(probe)
        for _ in range(search.repeats):
            probe.add(measure(load))
            probe.verdict = _verdict(probe, search)
            limit = fitted_limit(probes, search)
            if probe.verdict != "undecided" or limit is not None or not _affords(probes, load, search):
                break
        if watch is not None:
            watch(probe)
        load = _next(probes, limit, search)
        if load is not None and not _affords(probes, load, search):
            load = None
    passed, failed = _answer(probes, limit, search)
    return Saturation(passed, failed, tuple(probes), search.confidence, not _open(passed, failed, search))


def _verdict(probe: Probe, search: Search) -> Verdict:
    low, high = probe.interval(search.z)
    return "pass" if low > search.attainment else "fail" if high < search.attainment else "undecided"


def _answer(probes: list[Probe], limit: Limit | None, search: Search) -> tuple[float, float]:
    """The model's interval, no wider than the bracket of the decided loads well away from it; without a model that bracket."""
    passed, failed = _bracket(probes)
    if limit is None:
        return passed, failed
    below = max((probe.load for probe in probes if probe.load <= passed and probe.load < limit.estimate * math.exp(-NEAR)), default=0.0)
    return max(limit.low, below), min(limit.high, failed if failed > limit.estimate * math.exp(NEAR) else math.inf)


def _affords(probes: list[Probe], load: float, search: Search) -> bool:
    """Whether a run at `load` fits in the time."""
    if search.whole or not load or not _straddled(probes, search)[0]:
        return True
    bracketed = next(k for k in range(1, len(probes) + 1) if _straddled(probes[:k], search)[0])
    before, since = _seconds(probes[:bracketed]), _seconds(probes[bracketed:])
    allowed = max(search.seconds - before, search.seconds / 2)
    runs = sum(len(probe.runs) for probe in probes[bracketed:])
    coming = len(probes[-1].runs[-1]) / (1 - RAMP_UP) / min(load, probes[-1].load or load)
    return runs < LEAST_AFTER or since + coming <= allowed


def _straddled(probes: list[Probe], search: Search) -> tuple[float, float]:
    """The lowest load that did worse than asked, of those above one that did well, and the highest below it that did well, by what was seen
    of them; (0, inf) where there are none such. The model says how sure that is."""
    tried = [probe for probe in probes if probe.load]
    well = [probe.load for probe in tried if probe.share >= search.attainment]
    worse = [probe.load for probe in tried if probe.share < search.attainment and probe.load > min(well, default=math.inf)]
    if not worse:
        return 0.0, math.inf
    return max(load for load in well if load < min(worse)), min(worse)


def _seconds(probes: list[Probe]) -> float:
    return sum(len(run) / (1 - RAMP_UP) / probe.load for probe in probes if probe.load for run in probe.runs)


def fitted_limit(probes: list[Probe], search: Search) -> Limit | None:
    """Where the limit is, by all runs together; None before one load did well and a higher one did not.

    The posterior of (limit, slope) on a grid: the logit of the share falls on a line in the logarithm of the load. A run's likelihood is
    divided by the design effect there and counts less the further it lies from the limit. The design effect is pooled over the runs, from
    how far they lie from the line and not from what is seen inside one: a run in which nothing was spoiled shows none of it, and one that
    estimates its own weighs most when it was lucky.
    """
    passed, failed = _straddled(probes, search)
    if search.whole or not 0 < passed < failed < math.inf:
        return None
    runs = [(probe.load, run) for probe in probes if probe.load for run in probe.runs]
    batches = [(load, batch) for load, run in runs for batch in np.array_split(run, MODEL_BATCHES) if len(batch)]
    x, place = np.unique(np.log([load for load, _ in batches]), return_inverse=True)
    sizes = np.asarray([len(batch) for _, batch in batches], dtype=np.float64)
    corrected = _corrections(probes, search)
    before = _Prior.of(corrected)
    goods = np.asarray([batch.sum() for _, batch in batches], dtype=np.float64)
    goods += np.asarray([batch.sum() for run in corrected.runs for batch in np.array_split(run, MODEL_BATCHES) if len(batch)])
    count, good = np.bincount(place, sizes), np.bincount(place, goods)
    at = math.log(search.attainment / (1 - search.attainment))
    theta = np.linspace(math.log(passed) - 3 * NEAR, math.log(failed) + 3 * NEAR, THETAS)
    deviation = np.linspace(-3, 3, SLOPES)
    log_slope = math.log(before.slope) + before.spread * deviation
    logit = at - np.exp(log_slope)[None, :, None] * (x - theta[:, None, None])
    worse = np.logaddexp(0, logit)
    each = good * (logit - worse) - (count - good) * worse
    shares = np.exp(logit - worse)
    prior = -(deviation**2) / 2
    tail = (1 - search.confidence) / 2
    estimate, effect = (math.log(passed) + math.log(failed)) / 2, before.effect
    for _ in range(4):
        growth = np.exp(EFFECT_GROWTH * np.clip(x - estimate, -NEAR, NEAR))
        weight = np.exp(-(((x - estimate) / NEAR) ** 2) / 2)
        weight *= np.where(good < (1 - OVERLOADED) * count, before.luck, 1)
        log_density = each @ (weight / np.maximum(effect * growth, before.least_effect)) + prior
        density = np.exp(log_density - log_density.max())
        density /= density.sum()
        share = np.clip(np.einsum("ts,tsx->x", density, shares), 1e-4, 1 - 1e-4)
        squares = (goods - sizes * share[place]) ** 2 / (sizes * (share * (1 - share) * growth)[place])
        seen = float((weight[place] * squares).sum())
        effect = BETWEEN * (before.weight * before.effect + seen) / (before.weight + float(weight[place].sum()))
        below = np.cumsum(density.sum(axis=1))
        low, estimate, high = (float(np.interp(q, below, theta)) for q in (tail * LOW_TAIL, 0.5, 1 - tail))
    near = sum(abs(math.log(load) - estimate) < NEAR / 2 for load, _ in runs)
    return Limit(math.exp(low), math.exp(estimate), math.exp(high), near)


@dataclass(frozen=True)
class _Prior:
    """What holds before anything is seen, between a run of which nothing is known but its share (`luck` 1) and one whose arrivals explain
    all of it (0)."""

    luck: float
    slope: float
    spread: float

    @classmethod
    def of(cls, corrected: Corrections) -> _Prior:
        luck = 1 - corrected.explained
        if not corrected.slope > 1:
            return cls(luck, SLOPE, SLOPE_SPREAD)
        return cls(luck, corrected.slope, luck * SLOPE_SPREAD + (1 - luck) * KNOWN_SPREAD)

    @property
    def effect(self) -> float:
        return self.luck * EFFECT

    @property
    def weight(self) -> float:
        return self.luck * EFFECT_WEIGHT + (1 - self.luck) * KNOWN_WEIGHT

    @property
    def least_effect(self) -> float:
        return max(self.luck, LEAST_EFFECT)


def _corrections(probes: list[Probe], search: Search) -> Corrections:
    """Of every run under load, in order; of none, unless all their arrivals are known."""
    loaded = [probe for probe in probes if probe.load]
    if any(len(probe.arrivals_s) < len(probe.runs) for probe in loaded):
        return Corrections(tuple(np.zeros(len(run)) for probe in loaded for run in probe.runs), 0.0)
    runs = [(probe.load, Run(*run)) for probe in loaded for run in zip(probe.runs, probe.arrivals_s, strict=True)]
    return corrections(runs, search.attainment, search.burstiness, MODEL_BATCHES)


def _bracket(probes: list[Probe]) -> tuple[float, float]:
    """Highest load below every failure that passed, and lowest load that failed."""
    failed = min((probe.load for probe in probes if probe.verdict == "fail"), default=math.inf)
    passed = max((probe.load for probe in probes if probe.verdict == "pass" and probe.load < failed), default=0.0)
    return passed, failed


def _next(probes: list[Probe], limit: Limit | None, search: Search) -> float | None:
    """The load to try next, None when the answer is narrow enough: beside the limit where the model sees one, else the widest gap that a
    decided end still leaves."""
    passed, failed = _bracket(probes)
    if limit is not None:
        done = limit.runs >= LEAST_RUNS and not _open(*_answer(probes, limit, search), search)
        return None if done else min(limit.estimate, search.highest)
    doubtful = sorted(probe.load for probe in probes if probe.verdict == "undecided" and passed < probe.load < failed)
    below_doubt, above_doubt = (doubtful[0], doubtful[-1]) if doubtful else (failed, passed)
    if math.isinf(failed):
        highest = max(probe.load for probe in probes)
        return None if highest >= search.highest else min(_round(2 * highest, search), search.highest)
    if passed == 0 and search.alone and all(probe.load for probe in probes):
        return 0.0
    if passed == 0:
        return _lower(below_doubt, search) if below_doubt else None
    gaps = [(high / low, low, high) for low, high in {(passed, below_doubt), (above_doubt, failed)} if _open(low, high, search)]
    if not gaps:
        return None
    _, low, high = max(gaps)
    return _between(low, high, search)


def _open(low: float, high: float, search: Search) -> bool:
    return not low or (high / low > 1 + search.tolerance and not (search.whole and high - low <= 1))


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
