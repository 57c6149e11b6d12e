"""From times to tactics: the default stays unless a candidate is faster, summed over the steps it shows in, beyond noise and by 1%,
and in none of them slower by 2%.

Every candidate of a choice is tested against the default at `ALPHA` divided by their number (Bonferroni), since the best of ten equal
programs looks faster than the first of them. A candidate that failed anywhere (it spills, does not fit, or is wrong) is out everywhere:
an engine has one tactic for all its steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from trtllm_bench.micro.timing import Timing
from trtllm_bench.tune.plan import Race
from trtllm_bench.tune.race import ALPHA, LEAST_GAIN, advantage, hopeless
from trtllm_kernels.lowering.space import Choice
from trtllm_kernels.tactics import Tactic
from trtllm_results.stats import Evidence


@dataclass(frozen=True)
class RaceOutcome:
    """A race that was run. `timings`: of each entrant, None for one that was dropped, whose `dropped` says why."""

    race: Race
    timings: tuple[Timing | None, ...]
    dropped: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decision:
    """The result for one choice of one op. `winner` is empty where the default stays."""

    key: str
    role: str
    choice: Choice
    winner: Tactic
    outcomes: tuple[RaceOutcome, ...]

    def times(self, outcome: RaceOutcome) -> tuple[Timing, Timing]:
        """(default, winner) in one step; the same twice where the default stays."""
        default = _timing(outcome, 0)
        if not self.winner:
            return default, default
        index = self.choice.candidates.index(self.winner)
        return default, next(t for e, t in zip(outcome.race.entrants, outcome.timings, strict=True) if index in e.candidates and t)


def decide(outcomes: Sequence[RaceOutcome]) -> Decision:
    """The decision on one choice of one op, from all of its races."""
    race = outcomes[0].race
    candidates = race.choice.candidates
    known = {i: evidence for i in range(len(candidates)) if (evidence := _evidence(i, outcomes)) is not None}
    level = ALPHA / max(1, len(known))
    faster = {i: evidence.mean for i, evidence in known.items() if evidence.p_below(math.log1p(-LEAST_GAIN)) < level}
    winner = candidates[min(faster, key=faster.__getitem__)] if faster else {}
    return Decision(race.key, race.role, race.choice, winner, tuple(outcomes))


def decisions(outcomes: Iterable[RaceOutcome]) -> list[Decision]:
    groups: dict[tuple[str, str], list[RaceOutcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.race.key, outcome.race.choice.name), []).append(outcome)
    return [decide(group) for group in groups.values()]


def _timing(outcome: RaceOutcome, entrant: int) -> Timing:
    timing = outcome.timings[entrant]
    assert timing is not None
    return timing


def _evidence(candidate: int, outcomes: Sequence[RaceOutcome]) -> Evidence | None:
    """Sum of ln(candidate/default) over steps; None if it was dropped in one, or is slower there."""
    mean, variance, freedom = 0.0, 0.0, math.inf
    for outcome in outcomes:
        entrant = next(i for i, one in enumerate(outcome.race.entrants) if candidate in one.candidates)
        if entrant == 0:
            continue
        timing = outcome.timings[entrant]
        if timing is None:
            return None
        one = advantage(_timing(outcome, 0).batches, timing.batches)
        if hopeless(one):
            return None
        mean, variance, freedom = mean + one.mean, variance + one.error**2, min(freedom, one.df)
    return Evidence(mean, math.sqrt(variance), freedom) if freedom < math.inf else None
