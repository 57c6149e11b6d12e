"""Whole steps raced in turns, and which candidate wins: rounds of a batch of each, compared by what they have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from trtllm_bench.tune.race import ALPHA, DOUBT, advantage
from trtllm_bench.tune.step_bench import StepProgram
from trtllm_results.stats import Evidence

LEAST_GAIN = 0.0015
"""Of a step's time: what a choice must gain."""
FAR = 0.003
"""A candidate leaves once it is slower by so much of a step beyond doubt."""
MIN_ROUNDS, MAX_ROUNDS = 4, 12


def rounds(programs: Mapping[int, StepProgram], time_of: Callable[[StepProgram], float]) -> dict[int, list[float]]:
    """Microseconds of each program, in turns; the first, which is what held, takes part in all rounds. Those slower beyond doubt leave, and
    when all that are left are known to be faster or not, rounds end."""
    times: dict[int, list[float]] = {number: [] for number in programs}
    running = list(programs)
    for done in range(1, MAX_ROUNDS + 1):
        for number in running[done % len(running) :] + running[: done % len(running)]:
            times[number].append(time_of(programs[number]))
        if done >= MIN_ROUNDS:
            far = {one for one in running if one and advantage(times[0], times[one]).p_above(math.log1p(FAR)) < DOUBT}
            running = [one for one in running if one not in far]
            level = ALPHA / max(1, len(programs) - 1)
            if all(_is_known(advantage(times[0], times[one]), level) for one in running if one):
                break
    return times


def _is_known(one: Evidence, level: float) -> bool:
    """Faster by enough, or not, or known too well for that to matter."""
    bound = math.log1p(-LEAST_GAIN)
    return one.p_below(bound) < level or one.p_above(bound) < level


def winner_of(summed: Mapping[int, Evidence], sizes: Mapping[int, Sequence[Evidence]]) -> int | None:
    """The candidate that is fastest by the mean over sizes, among those that are faster beyond doubt and in no size slower."""
    bound, level = math.log1p(-LEAST_GAIN), ALPHA / max(1, len(summed))
    faster = [
        index
        for index, one in summed.items()
        if one.p_below(bound) < level and not any(size.p_above(-bound) < DOUBT for size in sizes[index])
    ]
    return min(faster, key=lambda index: summed[index].mean, default=None)


def mean_over_sizes(sizes: Sequence[Evidence]) -> Evidence:
    """Of what steps of several sizes say of one candidate."""
    count = len(sizes)
    if count == 1:
        return sizes[0]
    error = math.sqrt(sum(one.error**2 for one in sizes)) / count
    return Evidence(sum(one.mean for one in sizes) / count, error, min(one.df for one in sizes))
