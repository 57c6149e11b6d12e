"""Measures programs that do the same work in turns: a batch of each, round after round, so that a clock that drifts does so for all.

Rounds pair the programs, and two are compared by the mean of ln(other/default) over their common rounds (`trtllm_results.stats`). One that
is slower than the default beyond doubt leaves early; the default never leaves. Rounds end by the rule that single kernels are measured
by, when every mean that is left is known well enough, or when time is up; those that look faster and are not yet known to be go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from trtllm_bench.micro.timing import Call, How, Sampler, StoppingRule, Timer, Timing
from trtllm_results.stats import Evidence, paired

HOPELESS, DOUBT = 0.02, 0.01
"""Out of the race: slower than the default by more than this, at this p value."""
ALPHA, LEAST_GAIN = 0.05, 0.01
"""The default is replaced by a candidate that is faster by more than this, at this p value divided by the number of candidates."""


def run_race(
    timer: Timer,
    calls: Sequence[Call],
    rule: StoppingRule,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    how: How = "cold",
) -> tuple[Timing, ...]:
    """Timings of `calls`, the first being the default; `rule.min_batches` rounds at least, whatever the time."""
    began = clock()
    all_samplers = [Sampler(timer, call, how, rule) for call in calls]
    running = list(all_samplers)
    for rounds in range(1, rule.max_batches + 1):
        turn = rounds % len(running)
        for sampler in running[turn:] + running[:turn]:
            sampler.add()
        if rounds >= rule.min_batches:
            first = running[0]
            running = [first, *(one for one in running[1:] if not hopeless(advantage(first.batches, one.batches)))]
            if all(one.settled for one in running):
                running = [first, *(one for one in running[1:] if _open(advantage(first.batches, one.batches), ALPHA / len(calls)))]
            if len(running) == 1 or clock() - began > seconds:
                break
    return tuple(one.timing() for one in all_samplers)


def advantage(default: Sequence[float], other: Sequence[float]) -> Evidence:
    """ln(other/default) over their common rounds: below 0, `other` is faster."""
    rounds = min(len(default), len(other))
    return paired(np.log(np.asarray(other[:rounds]) / np.asarray(default[:rounds])))


def hopeless(evidence: Evidence) -> bool:
    return evidence.p_above(HOPELESS) < DOUBT


def _open(evidence: Evidence, level: float) -> bool:
    """Whether it looks faster by enough but may be so by chance."""
    return evidence.mean < math.log1p(-LEAST_GAIN) and evidence.p_below(math.log1p(-LEAST_GAIN)) >= level
