"""The highest load that still meets an SLO: a bracket first, then runs near the limit and one model over all of them.

A load passes when the share of requests within all limits is above `attainment`, and fails when it is below. Loads are doubled or halved
until one passes and one fails. From then on runs are made where they tell most, and all runs are pooled in one model (`limit_model.py`),
less what their own arrivals explain of them where these are known (`control_variate.py`). The search ends when the interval of the limit is
as narrow as `tolerance` asks, or when the time for it is spent; the answer says which, and how long it would have taken.

The bracket's turns are each decided with confidence, or said to be undecided. The errors of all of them together stay below 1 -
`confidence` (each gets its part: Bonferroni over steps and looks); their interval is Wilson's (1927), the sample divided by its design
effect from batch means (Law, "Simulation Modeling and Analysis", 5th ed., section 9.5.3). Concurrency is searched by these alone.

Rejected: a fixed ladder, which gives one of its rungs; bisection on noisy yes/no answers, which turns the wrong way and never learns;
bisection with confidence alone, which spends most of its time deciding loads that it then forgets, and holds too short an interval where
a queue fills.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Literal

import numpy as np

from trtllm_bench.errors import BenchError
from trtllm_bench.load.control_variate import Corrections, FloatArray, Good, Run, corrections
from trtllm_bench.load.limit_model import BATCHES as MODEL_BATCHES
from trtllm_bench.load.limit_model import NEAR, Limit, batch_sums, posterior

Verdict = Literal["pass", "fail", "undecided"]
BATCHES = 10
MAX_STEPS = 24
MOST_REPEATS, MOST_CONFIDENCE = 1_000, 0.999999
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
    took_s: float = 0.0
    """Seconds of all runs, each to its last answer."""

    def add(self, run: Run | Good) -> None:
        good, took_s = (run.good, run.took_s) if isinstance(run, Run) else (run, math.nan)
        if isinstance(run, Run):
            self.arrivals_s.append(run.arrivals_s)
        self.took_s += _arriving_s(good, self.load) if math.isnan(took_s) else took_s
        self.runs.append(good)

    @property
    def share(self) -> float:
        sent = sum(map(len, self.runs))
        return sum(map(np.count_nonzero, self.runs)) / sent if sent else float("nan")

    def interval(self, z: float) -> tuple[float, float]:
        """Wilson's interval for the share, the sample shrunk by the design effect."""
        n = sum(map(len, self.runs))
        share = self.share
        n_effective = n / design_effect(self.runs)
        centre = (share + z * z / (2 * n_effective)) / (1 + z * z / n_effective)
        half = z / (1 + z * z / n_effective) * math.sqrt(share * (1 - share) / n_effective + z * z / (4 * n_effective**2))
        return max(centre - half, 0.0), min(centre + half, 1.0)


def design_effect(runs: list[Good]) -> float:
    """Variance of the mean, from batch means, over that of independent requests; at least 1."""
    good, sizes = batch_sums(runs, BATCHES)
    share = float(good.sum() / sizes.sum())
    if not 0 < share < 1 or len(sizes) < 2:
        return 1.0
    independent = share * (1 - share) * np.mean(1 / sizes)
    return max(1.0, float((good / sizes).var(ddof=1) / independent))


@dataclass(frozen=True)
class Saturation:
    """The limit lies between `passed` (0: no load met the SLO) and `failed` (inf: none missed it, up to `Search.highest`)."""

    passed: float
    failed: float
    probes: tuple[Probe, ...]
    confidence: float
    reached: bool = True
    """Whether the interval is as narrow as was asked."""
    needed_s: float | None = None
    """Seconds, in all, that would likely have made it so; None where it is so, or where nobody knows."""
    cut: bool = False
    """Whether it ended because the next run did not fit in the time that was given."""


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
    """Seconds that all runs may take: after the first, none is begun that would likely end later. None: a search by rate spends what the
    tolerance is worth; its bracket is found whatever that takes, and half of the time is left for what follows."""

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
    def worth_s(self) -> float:
        """Seconds of load that the tolerance is worth."""
        return BUDGET_S * (BUDGET_TOLERANCE / self.tolerance) ** 2

    def least_requests(self) -> int:
        """Fewest requests of a probe that could pass at all, were every one of them good."""
        return math.ceil(self.z**2 * self.attainment / (1 - self.attainment)) + 1


def find_saturation(
    measure: Callable[[float], Run | Good],
    start: float,
    search: Search,
    watch: Callable[[Probe], None] | None = None,
    requests: Callable[[float], int] | None = None,
) -> Saturation:
    """Doubles or halves from `start` until the limit is bracketed, then measures beside it.

    `measure(load)` runs the load once and says which requests, in order of arrival, met the SLO, and when all arrived. `watch` sees each
    probe as it ends. `requests(load)` says how many a run sends, the ramp-up included (default: as many as the run before).
    """
    probes: list[Probe] = []
    load: float | None = min(start, search.highest)
    limit: Limit | None = None
    cut = False
    while load is not None and len(probes) < MAX_STEPS:
        probe = Probe(load)
        probes.append(probe)
        for _ in range(search.repeats):
            probe.add(measure(load))
            probe.verdict = verdict(probe, search)
            limit = fitted_limit(probes, search)
            if probe.verdict != "undecided" or limit is not None or not _affords(probes, load, search, requests):
                break
        if watch is not None:
            watch(probe)
        load = _next(probes, limit, search)
        if load is not None and not _affords(probes, load, search, requests):
            load, cut = None, True
    passed, failed = _answer(probes, limit)
    reached = not _open(passed, failed, search)
    needed_s = None if reached or limit is None else _needed(probes, passed, failed, search)
    return Saturation(passed, failed, tuple(probes), search.confidence, reached, needed_s, cut)


def verdict(probe: Probe, search: Search) -> Verdict:
    """What is shown of a load by its runs so far."""
    low, high = probe.interval(search.z)
    return "pass" if low > search.attainment else "fail" if high < search.attainment else "undecided"


def _answer(probes: list[Probe], limit: Limit | None) -> tuple[float, float]:
    """The model's interval, no wider than the bracket of the decided loads well away from it; without a model that bracket. A load passes
    by luck more easily than it fails, since bad requests come in clumps, so one that passed must lie further away."""
    passed, failed = _bracket(probes)
    if limit is None:
        return passed, failed
    below = max((probe.load for probe in probes if probe.load <= passed and probe.load < limit.estimate * math.exp(-2 * NEAR)), default=0.0)
    return max(limit.low, below), min(limit.high, failed if failed > limit.estimate * math.exp(NEAR) else math.inf)


def _affords(probes: list[Probe], load: float, search: Search, requests: Callable[[float], int] | None) -> bool:
    """Whether a run at `load` fits in the time."""
    if search.budget_s is not None:
        return sum(probe.took_s for probe in probes) + _likely_s(probes, load, search, requests) <= search.budget_s
    if search.whole or not load or not _straddled(probes, search)[0]:
        return True
    before, since = _spent(probes, search)
    allowed = max(search.worth_s - before, search.worth_s / 2)
    coming = len(probes[-1].runs[-1]) / (1 - RAMP_UP) / min(load, probes[-1].load or load)
    return _runs_after(probes, search) < LEAST_AFTER or since + coming <= allowed


def _likely_s(probes: list[Probe], load: float, search: Search, requests: Callable[[float], int] | None) -> float:
    """Seconds that a run at `load` will likely take; 0 for requests sent one at a time, of which nothing is known before."""
    if not load:
        return 0.0
    last = next(probe for probe in reversed(probes) if probe.load)
    before = len(last.runs[-1]) / (1 - RAMP_UP)
    coming, took_s = requests(load) if requests is not None else before, last.took_s / len(last.runs)
    if search.whole:
        return took_s * coming / before * max(1.0, last.load / load)  # more at a time are served no slower
    return coming / load + max(0.0, took_s - _arriving_s(last.runs[-1], last.load))


def _bracketed(probes: list[Probe], search: Search) -> int:
    """Probes until the limit was straddled."""
    return next(k for k in range(1, len(probes) + 1) if _straddled(probes[:k], search)[0])


def _runs_after(probes: list[Probe], search: Search) -> int:
    return sum(len(probe.runs) for probe in probes[_bracketed(probes, search) :])


def _spent(probes: list[Probe], search: Search) -> tuple[float, float]:
    """Seconds of load until the limit was straddled, and since."""
    bracketed = _bracketed(probes, search)
    return _seconds(probes[:bracketed]), _seconds(probes[bracketed:])


def _needed(probes: list[Probe], passed: float, failed: float, search: Search) -> float | None:
    """The seconds spent near the limit count as the square of the precision."""
    if not passed or math.isinf(failed):
        return None
    before, since = _spent(probes, search)
    arriving = before + since * (math.log(failed / passed) / math.log1p(search.tolerance)) ** 2
    return arriving * max(1.0, sum(probe.took_s for probe in probes) / (before + since))


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
    return sum(_arriving_s(run, probe.load) for probe in probes for run in probe.runs)


def _arriving_s(run: Good, load: float) -> float:
    """Seconds in which the requests of a run arrive, of requests sent one at a time unknown and so 0."""
    return len(run) / (1 - RAMP_UP) / load if load else 0.0


def fitted_limit(probes: list[Probe], search: Search) -> Limit | None:
    """Where the limit is, by all runs together; None before one load did well and a higher one did not."""
    passed, failed = _straddled(probes, search)
    if search.whole or not 0 < passed < failed < math.inf:
        return None
    runs = [(probe.load, run) for probe in probes if probe.load for run in probe.runs]
    return posterior(runs, _corrections(probes, search), (passed, failed), search.attainment, search.confidence, search.burstiness)


def _corrections(probes: list[Probe], search: Search) -> Corrections:
    """Of every run under load, in order; of none, unless all their arrivals are known."""
    loaded = [probe for probe in probes if probe.load]
    if any(len(probe.arrivals_s) < len(probe.runs) for probe in loaded):
        return Corrections.none([run for probe in loaded for run in probe.runs])
    runs = [(probe.load, Run(*run)) for probe in loaded for run in zip(probe.runs, probe.arrivals_s, strict=True)]
    return corrections(runs, search.burstiness, MODEL_BATCHES)


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
        done = limit.runs >= LEAST_RUNS and not _open(*_answer(probes, limit), search)
        return None if done else min(limit.following, search.highest)
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
