"""A control variate for the share of good requests: what a run's own arrivals explain of it (Law, "Simulation Modeling and Analysis", 5th
ed., section 11.4).

Near the limit of a queue, a run of twenty seconds is good or bad by how its arrivals happened to clump; and these are known. So each
request's backlog is worked out as a single server of constant rate would have it (Lindley's recursion over the actual arrivals), and the
chance of a bad request is fitted to it, by a logistic curve that all runs share. What the arrivals of a run made worse or better than
arrivals at that rate do on average is then taken off. The average comes from the same recursion over many arrivals, so a server that is
no such queue loses nothing but the gain: the correction has mean 0 whatever the curve.

By simulation the variance of a run's share falls by 14 to 50 times where service times are constant, and little where they are exponential.

Rejected: reading the limit off the fitted queue itself, which is wrong for whatever is no queue; arrivals spaced more evenly than
Poisson's, which are another load.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Good = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]

ARRIVALS = 200_000
"""Simulated for an average."""
RATES = 20
BUSIEST, IDLEST = 0.92, 0.15
"""Utilisations of the fitted server, between which its rate is looked for, at the highest load that did not fail outright."""
OVERLOADED = 0.3
"""Share of bad requests from which on a run is past explaining."""
RIDGE = 1e-2
STEPS, ENOUGH = 30, 1e-4
BISECTIONS = 6
DOUBT = 0.5
"""Clumps of bad requests, beyond the first, at which the fit is trusted by half: one clump fits any curve."""


@dataclass(frozen=True)
class Run:
    """One run at one load."""

    good: Good
    """[counted] Whether each request met the SLO, in order of arrival; those of the ramp-up are left out."""
    arrivals_s: FloatArray
    """[sent] When each request arrived, those of the ramp-up first."""


@dataclass(frozen=True)
class Corrections:
    runs: tuple[FloatArray, ...]
    """[counted] of each run: how much worse than on average its arrivals made each request, as a share of a bad one."""
    explained: float
    """Share of the variance between batches that this is, 0 to 1, less what few clumps leave in doubt."""
    slope: float = math.nan
    """How many times faster than the load the odds of a good request fall where the asked share of them is, by the fitted curve; NaN where
    it says nothing."""


def backlog(arrivals_s: FloatArray, rate: float) -> FloatArray:
    """[n] The work that each arrival finds at a server of `rate` requests/s, in requests: max(0, before + 1 - rate * gap)."""
    steps = 1.0 - rate * np.diff(arrivals_s, prepend=arrivals_s[:1])
    steps[0] = 0.0
    walk = np.cumsum(steps)
    return np.asarray(walk - np.minimum.accumulate(walk))


def corrections(runs: Sequence[tuple[float, Run]], attainment: float, burstiness: float, batches_each: int) -> Corrections:
    """Of runs at (load, run), whose gaps are gamma with shape `burstiness`. All 0 where the arrivals explain nothing."""
    worse = [np.zeros(len(run.good)) for _, run in runs]
    usable = [place for place, (_, run) in enumerate(runs) if 1 - run.good.mean() < OVERLOADED]
    bad = {place: (~runs[place][1].good).astype(np.float64) for place in usable}
    if not any(one.any() for one in bad.values()):
        return Corrections(tuple(worse), 0.0)
    rate, curve = _fitted([runs[place] for place in usable], np.concatenate(list(bad.values())))
    expected = {place: _chance(_counted(runs[place][1], rate), curve) for place in usable}
    seen = np.concatenate([_batch_deviations(bad[place], batches_each) for place in usable])
    said = np.concatenate([_batch_deviations(expected[place], batches_each) for place in usable])
    if not seen.any() or not said.any():
        return Corrections(tuple(worse), 0.0)
    factor = float(np.clip((seen @ said) / (said @ said), 0.0, 1.0))
    clumps = float((seen**2).sum() ** 2 / (seen**4).sum())
    sure = (clumps - 1) / (clumps - 1 + DOUBT)
    explained = sure * max(0.0, 1 - float(((seen - factor * said) ** 2).sum() / (seen**2).sum()))
    for place in usable:
        utilisation = runs[place][0] / rate
        if utilisation < 1:
            worse[place] = sure * factor * (expected[place] - _average(utilisation, burstiness, curve))
    return Corrections(tuple(worse), explained, _slope(curve, attainment, burstiness) if explained else math.nan)


def _counted(run: Run, rate: float) -> FloatArray:
    """[counted] Backlogs of the requests that count."""
    return backlog(run.arrivals_s, rate)[len(run.arrivals_s) - len(run.good) :]


def _batch_deviations(values: FloatArray, batches: int) -> FloatArray:
    """[batches] Sums, less what each would be at the mean."""
    return np.asarray([(batch - values.mean()).sum() for batch in np.array_split(values, batches)])


def _average(utilisation: float, burstiness: float, curve: FloatArray) -> float:
    """The chance of a bad request over many arrivals."""
    return float(_chance(backlog(np.cumsum(_gaps(burstiness)) / utilisation, 1.0), curve).mean())


def _slope(curve: FloatArray, attainment: float, burstiness: float) -> float:
    """By bisection over the utilisation, and a difference there."""

    def logit(utilisation: float) -> float:
        bad = min(max(_average(utilisation, burstiness, curve), 1e-9), 1 - 1e-9)
        return math.log((1 - bad) / bad)

    low, high = IDLEST / 2, 0.99
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if logit(middle) > math.log(attainment / (1 - attainment)) else (low, middle)
    return (logit(low * 0.95) - logit(low)) / -math.log(0.95)


def _fitted(runs: Sequence[tuple[float, Run]], bad: FloatArray) -> tuple[float, FloatArray]:
    """(the server's rate, level and slope of the curve), the likeliest."""
    highest = max(load for load, _ in runs)
    best, found = -math.inf, (highest / BUSIEST, np.zeros(2))
    for rate in highest / np.geomspace(BUSIEST, IDLEST, RATES):
        work = np.concatenate([_counted(run, float(rate)) for _, run in runs])
        curve, likelihood = _logistic(work, bad)
        if likelihood > best:
            best, found = likelihood, (float(rate), curve)
    return found


def _logistic(x: FloatArray, y: FloatArray) -> tuple[FloatArray, float]:
    """Level and slope by Newton's method, slightly drawn to 0, and their log-likelihood."""
    columns = np.stack([np.ones_like(x), x])
    curve = np.asarray([math.log((y.mean() + 0.01) / (1.01 - y.mean())), 0.1])
    for _ in range(STEPS):
        chance = _chance(x, curve)
        curvature = (columns * (chance * (1 - chance) + 1e-9)) @ columns.T + RIDGE * np.eye(2)
        step = np.clip(np.linalg.solve(curvature, columns @ (y - chance) - RIDGE * curve), -2, 2)
        curve = curve + step
        if np.abs(step).max() < ENOUGH:
            break
    logit = np.clip(curve @ columns, -30, 30)
    return curve, float((y * logit - np.logaddexp(0, logit)).sum() - RIDGE / 2 * curve @ curve)


def _chance(x: FloatArray, curve: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-np.clip(curve[0] + curve[1] * x, -30, 30))))


@cache
def _gaps(burstiness: float) -> FloatArray:
    return np.random.default_rng(0).gamma(burstiness, 1 / burstiness, ARRIVALS)
