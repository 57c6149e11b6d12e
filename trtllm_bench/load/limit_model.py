"""One model over all runs of a search: where the share of good requests falls through the one asked for.

Near the limit the logit of the share is close to a line in the logarithm of the load. Where the runs' arrivals explain most of their luck
(`control_variate.py`), the fitted queue says how the logit bends and how steep it is, up to a factor near 1; elsewhere only the slopes that
queues have are known. The posterior of (limit, slope) is taken on a grid. What the arrivals explain is taken off each run's share first.

Requests of one run are not independent: a full queue spoils many at once, and near its limit thirty requests may tell no more than one.
Each load's likelihood is divided by the design effect there, and counts less the further it lies from the limit. The design effect is
pooled over the runs, from how far batches of them lie from the model and not from what is seen inside one: a run in which nothing was
spoiled shows none of it, and one that estimates its own weighs most when it was lucky. Batches are compared with what was learnt from the
others, so that a queue fitted to few clumps of bad requests does not seem to explain them.

Rejected: a logistic fit with clusters' standard errors, whose few clusters gave intervals that held the limit in 83%; the next run at the
estimate, which after an overloaded one crept up through loads at which nothing was spoiled and nothing learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_bench.load.control_variate import OVERLOADED, Corrections, FloatArray, Good

BATCHES, BETWEEN = 5, 1.8
"""Batches of a run that its distance from the model is taken by, and what a design effect grows by from batches to runs."""
SLOPE, FLATTER, STEEPER = 7.0, 0.6, 1.3
"""Before anything is seen: how many times faster than the load the odds of a good request fall at the limit (a lognormal's median and its
standard deviation on either side). Queues have 2 to 25, a wall hundreds."""
EFFECT_S, LEAST_EFFECT, MOST_EFFECT = 0.6, 6.0, 200.0
"""Before anything is seen: the design effect at the limit is what arrives in this time (queues of 10 to 150 requests/s: 0.4 to 1 s), within
these bounds."""
EFFECT_WEIGHT, EFFECT_GROWTH = 6.0, 10.0
"""The number of batches that this is worth, and how fast the design effect grows with the logarithm of the load above the limit."""
KNOWN_SPREAD, KNOWN_WEIGHT, KNOWN_GROWTH, KNOWN_EFFECT = 0.15, 2.0, 0.3, 0.15
"""Where a run's arrivals explain all of its luck: the spread of the slope about the fitted queue's, the batches that the design effect
before is worth, the part of its growth that is left, and its least."""
EXPLAINED = 0.5
"""From which on the fitted queue is asked for the slope."""
LOW_TAIL = 0.2
"""Share of its tail that the interval's lower end leaves out, where nothing is explained: failures come in clumps, so more runs look too
good than too bad, and by simulation the limit then lies below the interval more often than above."""
DOUBT = 0.006
"""Logarithmic distance by which the limit may lie outside, of one run near it, where the fitted queue says how the logit bends: averages
are simulated, and runs of twenty seconds begin empty. It grows with the time in which the queue forgets, as 1 / (1 - utilisation), and
falls with the root of the number of runs."""
LEAST_IDLE = 0.05
LARGEST_LOGIT = 700.0
"""Whose exponential a float holds."""
NEAR = 0.2
"""Logarithmic distance from the limit at which a run still counts in part: the line holds near the limit only."""
FOLLOWING, FARTHEST = 0.7, 0.1
"""Quantile of the limit that is run next, and how far above the median that may lie: it is bad requests that tell."""
BESIDE = 0.04
"""Logarithmic distance between runs that are made at one place."""
THETAS, SLOPES, GRIDS, ROUNDS = 120, 17, 2, 6
"""Of the grids, which narrow, and most rounds on each. A round goes half of the way: whole ways may swing between two centres for ever."""
SETTLED = 2e-3
"""Logarithmic distance of a round's way that is the last; ten times that for the design effect."""
NODES = np.linspace(-0.3, 0.3, 7)
"""Logarithmic distances from its limit at which the fitted queue is simulated; straight on outside."""


@dataclass(frozen=True)
class Limit:
    """Where the model sees the limit: an estimate, and its interval."""

    low: float
    estimate: float
    high: float
    runs: int
    """Runs so near to it that they settle it."""
    following: float
    """The load whose run would tell most."""


def posterior(
    runs: Sequence[tuple[float, Good]],
    corrected: Corrections,
    bracket: tuple[float, float],
    attainment: float,
    confidence: float,
    burstiness: float,
) -> Limit:
    """Of runs at (load, good), `corrected` by their arrivals, whose `bracket` is (a load that did well, a higher one that did not)."""
    raw, sizes = batch_sums([run for _, run in runs], BATCHES)
    loads = np.repeat([load for load, _ in runs], [min(len(run), BATCHES) for _, run in runs])
    x, place = np.unique(np.log(loads), return_inverse=True)
    unseen = raw + batch_sums(corrected.unseen, BATCHES)[0]
    count, good = np.bincount(place, sizes), np.bincount(place, raw + batch_sums(corrected.runs, BATCHES)[0])
    before = _Prior.of(corrected)
    tail = (1 - confidence) / 2
    levels = (tail * before.low_tail, 0.5, 1 - tail, FOLLOWING)
    deviation = np.linspace(-3, 3, SLOPES)
    lowest, highest = math.log(bracket[0]) - 3 * NEAR, math.log(bracket[1]) + 3 * NEAR
    centre = (math.log(bracket[0]) + math.log(bracket[1])) / 2
    effect = before.effect(math.exp(centre))
    fall, slope = _fall(corrected, attainment, burstiness)
    for _ in range(GRIDS):
        theta = np.linspace(lowest, highest, THETAS)
        steepness = slope * np.exp(np.where(deviation < 0, before.spread(FLATTER), before.spread(STEEPER)) * deviation)
        logit = math.log(attainment / (1 - attainment)) + steepness[None, :, None] * (fall(theta)[:, None, None] - fall(x))
        odds = np.exp(np.minimum(logit, LARGEST_LOGIT, out=logit))
        each = good * logit - count * np.log1p(odds)
        shares = odds / (1 + odds)
        for _ in range(ROUNDS):
            growth = np.exp(before.growth * np.clip(x - centre, -NEAR / 2, NEAR))
            weight = np.exp(-(((x - centre) / NEAR) ** 2) / 2)
            if before.luck < 1:
                weight *= np.where(good < (1 - OVERLOADED) * count, before.luck, 1)
            log_density = each @ (weight / np.maximum(effect * growth, before.least_effect)) - deviation**2 / 2
            density = np.exp(log_density - log_density.max())
            density /= density.sum()
            share = np.clip(np.tensordot(density, shares, 2), 1e-4, 1 - 1e-4)
            squares = (unseen - sizes * share[place]) ** 2 / (sizes * (share * (1 - share) * growth)[place])
            seen, weights = float((weight[place] * squares).sum()), float(weight[place].sum())
            pooled = (before.weight * before.effect(math.exp(centre)) + BETWEEN * seen) / (before.weight + weights)
            effect = math.sqrt(effect * pooled) if effect else pooled
            below = np.cumsum(density.sum(axis=1))
            low, estimate, high, following = (float(np.interp(level, below, theta)) for level in levels)
            settled = abs(estimate - centre) < SETTLED and abs(math.log(pooled / max(effect, 1e-9) + 1e-9)) < 10 * SETTLED
            centre = (centre + estimate) / 2
            if settled:
                break
        lowest, highest = max(lowest, low - (high - low)), min(highest, high + (high - low))
    near = sum(abs(math.log(load) - estimate) < NEAR / 2 for load, _ in runs)
    doubt = 0.0
    if corrected.queue is not None:
        idle = max(1 - corrected.queue.utilisation(math.exp(estimate)), LEAST_IDLE)
        doubt = (1 - before.luck) * DOUBT / idle / math.sqrt(max(near, 1))
    return Limit(
        math.exp(estimate - math.hypot(estimate - low, doubt)),
        math.exp(estimate),
        math.exp(estimate + math.hypot(high - estimate, doubt)),
        near,
        _following(runs, corrected, math.exp(min(following, estimate + FARTHEST)), bracket, attainment, burstiness),
    )


def _following(
    runs: Sequence[tuple[float, Good]],
    corrected: Corrections,
    load: float,
    bracket: tuple[float, float],
    attainment: float,
    burstiness: float,
) -> float:
    """The load to run next: where the fitted queue has the limit, if the arrivals explain too little yet and no run was beside it."""
    if corrected.queue is None or corrected.explained > EXPLAINED:
        return load
    likely = corrected.queue.limit(attainment, burstiness)
    beside = min(abs(math.log(run / likely)) for run, _ in runs) < BESIDE
    return likely if bracket[0] < likely < bracket[1] and not beside else load


def batch_sums(runs: Sequence[npt.NDArray[Any]], batches_each: int) -> tuple[FloatArray, FloatArray]:
    """(sum, number of requests) of every batch of every run, in order. A run's batches are as equal as can be, and none is empty."""
    sizes = [_batch_sizes(len(run), batches_each) for run in runs]
    sums = [np.add.reduceat(run, np.cumsum(size) - size, dtype=np.float64) for run, size in zip(runs, sizes, strict=True) if len(size)]
    return np.concatenate([np.zeros(0), *sums]), np.concatenate([np.zeros(0), *sizes])


def _batch_sizes(requests: int, batches: int) -> npt.NDArray[np.int64]:
    least, larger = divmod(requests, batches)
    return np.repeat([least + 1, least], [larger, batches - larger if least else 0])


def _fall(corrected: Corrections, attainment: float, burstiness: float) -> tuple[Callable[[FloatArray], FloatArray], float]:
    """How far the logit has fallen at logarithms of the load, and how many times that it is thought to fall: as the fitted queue's does
    (once), or as the logarithm of the load does (`SLOPE` times)."""
    queue = corrected.queue
    if queue is None or corrected.explained <= EXPLAINED:
        return lambda place: place, SLOPE
    nodes = math.log(queue.limit(attainment, burstiness)) + NODES
    fallen = np.maximum.accumulate([-queue.logit(math.exp(node), burstiness) for node in nodes]) + 1e-3 * np.arange(len(nodes))
    first, last = np.diff(fallen)[[0, -1]] / np.diff(nodes)[[0, -1]]

    def at(place: FloatArray) -> FloatArray:
        outside = first * np.minimum(place - nodes[0], 0) + last * np.maximum(place - nodes[-1], 0)
        return np.asarray(np.interp(place, nodes, fallen) + outside)

    return at, 1.0


@dataclass(frozen=True)
class _Prior:
    """What holds before anything is seen, between a run of which nothing is known but its share (`luck` 1) and one whose arrivals explain
    all of it (0)."""

    luck: float

    @classmethod
    def of(cls, corrected: Corrections) -> _Prior:
        return cls(1 - corrected.explained)

    def _between(self, unknown: float, known: float) -> float:
        return self.luck * unknown + (1 - self.luck) * known

    def spread(self, unknown: float) -> float:
        """Of the logarithm of the slope."""
        return unknown if 1 - self.luck <= EXPLAINED else self._between(unknown, KNOWN_SPREAD)

    def effect(self, load: float) -> float:
        return self.luck * min(max(EFFECT_S * load, LEAST_EFFECT), MOST_EFFECT)

    @property
    def weight(self) -> float:
        return self._between(EFFECT_WEIGHT, KNOWN_WEIGHT)

    @property
    def growth(self) -> float:
        return EFFECT_GROWTH * self._between(1.0, KNOWN_GROWTH)

    @property
    def low_tail(self) -> float:
        return self._between(LOW_TAIL, 1.0)

    @property
    def least_effect(self) -> float:
        return max(self.luck, KNOWN_EFFECT)
