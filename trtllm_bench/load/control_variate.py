"""A control variate for the share of good requests: what a run's own arrivals explain of it (Law, "Simulation Modeling and Analysis", 5th
ed., section 11.4).

Near the limit of a queue, a run of twenty seconds is good or bad by how its arrivals happened to clump; and these are known. So each
request's wait is worked out as a queue of `servers` with constant service times would have it, and the chance of a bad request is fitted to
it, by a logistic curve that all runs share. What the arrivals of a run made worse or better than arrivals at that rate do on average is
then taken off. The average comes from the same recursion over many arrivals, so a server that is not such a queue loses nothing but the
gain: the correction has mean 0 whatever the curve.

How much it explains is judged on runs that the curve was not fitted to, each left out in turn: two parameters and a queue fit the few
clumps of bad requests that there are, even where service times are random and arrivals explain little.

By simulation the standard deviation of a share falls by 10 to 20 times where service times are constant, and little where they are
exponential.

Rejected: reading the limit off the fitted queue itself, which is wrong for whatever is not a queue; arrivals spaced more evenly than
Poisson's, which are another load; one fast server for many slow ones, which leaves 1 to 6% of the variance where many leave under 1%.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import numpy.typing as npt

Good = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

ARRIVALS, WARM_UP = 400_000, 2_000
"""Simulated for an average, and left out at its beginning."""
SERVERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64)
BUSIEST, IDLEST = 0.95, 0.15
"""Utilisations of the fitted queue, between which its service time is looked for, at the highest load that did not fail outright."""
COARSE, HALVINGS, FINALISTS = 12, 4, 3
"""Service times tried of each number of servers, how often the best of a few finalists are refined, and these."""
STEP = math.log(1.03)
"""Between the utilisations for which waits are simulated; averages are interpolated between them."""
BINS, TABLE_BINS = 400, 4_000
OVERLOADED = 0.3
"""Share of bad requests from which on a run is past explaining."""
RIDGE = 1e-2
DOUBT = 3.0
"""Clumps of bad requests, beyond the first, at which what was left unexplained is doubled: few clumps fit many queues."""
STEPS, ENOUGH, FARTHEST = 40, 1e-3, 4.0
BISECTIONS = 8


@dataclass(frozen=True)
class Run:
    """One run at one load."""

    good: Good
    """[counted] Whether each request met the SLO, in order of arrival; those of the ramp-up are left out."""
    arrivals_s: FloatArray
    """[sent] When each request arrived, those of the ramp-up first."""
    took_s: float = math.nan
    """Seconds until the last answer, warm-up and runs that were void included; NaN where only the arrivals are known."""


@dataclass(frozen=True)
class Queue:
    """Constant service times; the chance of a bad request is logistic in its wait."""

    servers: int
    service_s: float
    curve: FloatArray
    """Level, and slope over the wait in service times."""

    def utilisation(self, load: float) -> float:
        return load * self.service_s / self.servers

    def chances(self, run: Run) -> FloatArray:
        """[counted] Of a bad request."""
        return _chance(_counted(run, self.servers, self.service_s), self.curve)

    def average(self, load: float, burstiness: float) -> float:
        """The chance of a bad request over many arrivals at this load."""
        return 1 / (1 + math.exp(self.logit(load, burstiness)))

    def logit(self, load: float, burstiness: float) -> float:
        """Of the share of good requests over many arrivals at this load."""
        place = math.log(self.utilisation(load)) / STEP
        below = math.floor(place)
        first, last = (-_logit(self._tabled(step, burstiness)) for step in (below, below + 1))
        return first + (place - below) * (last - first)

    def limit(self, attainment: float, burstiness: float) -> float:
        """The load at which that share is good."""
        low, high = math.log(IDLEST / 3), 0.0
        full, asked = self.servers / self.service_s, _logit(attainment)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.logit(full * math.exp(middle), burstiness) > asked else (low, middle)
        return full * math.exp((low + high) / 2)

    def _tabled(self, step: int, burstiness: float) -> float:
        waited, weights = _simulated(self.servers, burstiness, step)
        return float(_chance(waited, self.curve) @ weights)


@dataclass(frozen=True)
class Corrections:
    runs: tuple[FloatArray, ...]
    """[counted] of each run: how much worse than on average its arrivals made each request, as a share of a bad one."""
    unseen: tuple[FloatArray, ...]
    """The same, each part of a run by what was fitted without it."""
    explained: float = 0.0
    """Share of the variance between batches that these are, 0 to 1, less what few clumps of bad requests leave in doubt."""
    queue: Queue | None = None
    """The likeliest; None where no request was bad."""

    @classmethod
    def none(cls, runs: Sequence[Good]) -> Corrections:
        zeros = tuple(np.zeros(len(run)) for run in runs)
        return cls(zeros, zeros)


def waits(arrivals: FloatArray, servers: int) -> FloatArray:
    """[n] The wait of each arrival at `servers` servers, first come first served, with all times in units of the constant service time.

    Services end in the order in which they begin, so every `servers`-th arrival has the same server, and each server's waits are Lindley's.
    """
    padded = np.pad(arrivals, (0, -len(arrivals) % servers), mode="edge").reshape(-1, servers)
    ahead = padded - np.arange(len(padded))[:, None]
    return np.asarray((np.maximum.accumulate(ahead, axis=0) - ahead).ravel()[: len(arrivals)])


def corrections(runs: Sequence[tuple[float, Run]], burstiness: float, batches_each: int) -> Corrections:
    """Of runs at (load, run), whose gaps are gamma with shape `burstiness`. All 0 where the arrivals explain nothing."""
    nothing = Corrections.none([run.good for _, run in runs])
    highest = max((load for load, run in runs if 1 - run.good.mean() < OVERLOADED), default=0.0)
    if not highest or not any(not run.good.all() for _, run in runs):
        return nothing
    bad = [(~run.good).astype(np.float64) for _, run in runs]
    whole = [np.ones(len(one)) for one in bad]
    queue = _fitted([run for _, run in runs], bad, whole, highest)
    usable = [place for place, (load, run) in enumerate(runs) if queue.utilisation(load) < 1 and bad[place].mean() < OVERLOADED]
    guess = replace(nothing, queue=queue)
    if not usable:
        return guess
    unseen = [np.zeros(len(one)) for one in bad]
    for fold in range(batches_each):
        kept = [_outside(len(one), fold, batches_each) for one in bad]
        other = _fitted([run for _, run in runs], bad, kept, highest, (queue.servers,))
        for place in usable:
            unseen[place] += (1 - kept[place]) * _luck(runs[place], other, burstiness)
    seen = np.concatenate([_batch_deviations(bad[place], batches_each) for place in usable])
    said = np.concatenate([_batch_deviations(unseen[place], batches_each) for place in usable])
    if not seen.any() or not said.any():
        return guess
    factor = float(np.clip((seen @ said) / (said @ said), 0.0, 1.0))
    clumps = float((seen**2).sum() ** 2 / (seen**4).sum())
    left = float(((seen - factor * said) ** 2).sum() / (seen**2).sum())
    explained = max(0.0, 1 - left * (1 + DOUBT / max(clumps - 1, 1e-9)))
    factor = explained + (1 - explained) * factor
    lucky, apart = list(nothing.runs), list(nothing.runs)
    if explained:
        for place in usable:
            lucky[place] = factor * _luck(runs[place], queue, burstiness)
            apart[place] = factor * unseen[place]
    return Corrections(tuple(lucky), tuple(apart), explained, queue)


def _outside(length: int, fold: int, folds: int) -> FloatArray:
    """[length] 0 in one of so many equal parts, 1 in the others."""
    parts = np.array_split(np.ones(length), folds)
    parts[fold][:] = 0
    return np.concatenate(parts)


def _luck(run: tuple[float, Run], queue: Queue, burstiness: float) -> FloatArray:
    load, seen = run
    if queue.utilisation(load) >= 1:
        return np.zeros(len(seen.good))
    return queue.chances(seen) - queue.average(load, burstiness)


def _counted(run: Run, servers: int, service_s: float) -> FloatArray:
    """[counted] Waits of the requests that count, in service times."""
    return waits(run.arrivals_s / service_s, servers)[len(run.arrivals_s) - len(run.good) :]


def _batch_deviations(values: FloatArray, batches: int) -> FloatArray:
    """[batches] Sums, less what each would be at the mean."""
    return np.asarray([(batch - values.mean()).sum() for batch in np.array_split(values, batches)])


def _fitted(
    runs: Sequence[Run], bad: Sequence[FloatArray], kept: Sequence[FloatArray], highest: float, servers: Sequence[int] = SERVERS
) -> Queue:
    """The likeliest for what is kept: a coarse search over service times for each number of servers, then the best few refined."""
    bads, weights = np.concatenate(bad), np.concatenate(kept)

    def tried(servers: int, service_s: float) -> tuple[float, Queue]:
        work = np.concatenate([_counted(run, servers, service_s) for run in runs])
        curve, likelihood = _logistic(*_binned(work, bads, weights))
        return likelihood, Queue(servers, service_s, curve)

    def likelihood_of(trial: tuple[float, Queue]) -> float:
        return trial[0]

    coarse = [max((tried(c, float(s)) for s in c / highest * np.geomspace(IDLEST, BUSIEST, COARSE)), key=likelihood_of) for c in servers]
    finalists = sorted(coarse, key=likelihood_of)[-FINALISTS:]
    for place, best in enumerate(finalists):
        width = math.log(BUSIEST / IDLEST) / (COARSE - 1)
        for _ in range(HALVINGS):
            width /= 2
            near = [tried(best[1].servers, best[1].service_s * math.exp(way * width)) for way in (-1, 1)]
            best = max([best, *near], key=likelihood_of)
        finalists[place] = best
    return max(finalists, key=likelihood_of)[1]


def _binned(x: FloatArray, y: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(mean x, number, sum of y) of each bin that holds any."""
    place = np.minimum((x * (BINS / (x.max() + 1e-9))).astype(np.int64), BINS - 1)
    number, total, bad = (np.asarray(np.bincount(place, each, BINS), dtype=np.float64) for each in (weights, x * weights, y * weights))
    held = number > 0
    return total[held] / number[held], number[held], bad[held]


def _logistic(x: FloatArray, number: FloatArray, y: FloatArray, begin: FloatArray | None = None) -> tuple[FloatArray, float]:
    """Level and slope by Newton's method, slightly drawn to 0, and their log-likelihood; `y` of `number` at each `x`."""
    columns = np.stack([np.ones_like(x), x])
    share = (y.sum() + 0.01) / (number.sum() + 0.02)
    curve = np.asarray([_logit(share), 0.1]) if begin is None else begin
    for _ in range(STEPS):
        chance = _chance(x, curve)
        curvature = (columns * (number * chance * (1 - chance) + 1e-9)) @ columns.T + RIDGE * np.eye(2)
        step = np.clip(np.linalg.solve(curvature, columns @ (y - number * chance) - RIDGE * curve), -FARTHEST, FARTHEST)
        curve = curve + step
        if np.abs(step).max() < ENOUGH:
            break
    logit = np.clip(curve @ columns, -30, 30)
    return curve, float((y * logit - number * np.logaddexp(0, logit)).sum() - RIDGE / 2 * curve @ curve)


def _chance(x: FloatArray, curve: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-np.clip(curve[0] + curve[1] * x, -30, 30))))


def _logit(share: float) -> float:
    bounded = min(max(share, 1e-9), 1 - 1e-9)
    return math.log(bounded / (1 - bounded))


@cache
def _simulated(servers: int, burstiness: float, step: int) -> tuple[FloatArray, FloatArray]:
    """(waits in service times, how often each occurs) at a utilisation of exp(`step` * `STEP`)."""
    gaps = np.random.default_rng(0).gamma(burstiness, 1 / burstiness, ARRIVALS)
    waited = waits(np.cumsum(gaps) / (math.exp(step * STEP) * servers), servers)[WARM_UP:]
    width = max(float(waited.max()), 1e-9) / TABLE_BINS
    number = np.bincount(np.minimum((waited / width).astype(np.int64), TABLE_BINS - 1))
    held = np.flatnonzero(number)
    return np.asarray((held + 0.5) * width * (held > 0)), np.asarray(number[held] / len(waited))
