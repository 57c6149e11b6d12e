"""Tuning by whole decode steps: choice by choice, the largest work first, then what was chosen is held against its absence.

An op alone does not show what it costs where kernels overlap: a tile with much in flight delays the kernel before, one that burns power
slows the clock for all. So candidates are tactics of whole steps (`step_bench`), timed in turns, batch after batch, and compared by their
common rounds. A choice that shows in steps of several sizes is judged by the mean over them: it goes to a candidate that is faster by more
than `step_rounds.LEAST_GAIN` of a step at p < `ALPHA` divided by the number of candidates, and slower by that much in none of the sizes.

Rounds of milliseconds share one clock, since power settles at the mean of all that run. So in the end each winner is replayed for half a
second at a time with and without it, all others in place, and goes if that is not faster; then all of them together against what held
before. A GPU takes about a second to hold its power limit, so both run before either counts, and each comes first as often as last.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from trtllm_bench.micro.cases import KernelCase
from trtllm_bench.tune.plan import Race, TuningPlan
from trtllm_bench.tune.race import advantage
from trtllm_bench.tune.run import COMPILE_SHARE, Compile, Progress, unfit_reason
from trtllm_bench.tune.step_bench import StepProgram, Sustained, Tactics
from trtllm_bench.tune.step_rounds import mean_over_sizes, rounds, winner_of
from trtllm_kernels.compile.cubin import Cubin
from trtllm_kernels.dialect.types import KernelSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import shared_limit
from trtllm_kernels.lowering.space import Choice
from trtllm_kernels.tactics import Tactic
from trtllm_results.stats import Evidence

BATCH_S = 0.005
"""Of a program in a round."""
WARM_S, SUSTAINED_S, TURNS = 0.6, 0.5, (0, 1, 1, 0)
"""Of two programs: how long they run before either counts, how long a turn is, and whose it is."""
FINAL_SHARE = 0.2
"""Of the time after compiling: for holding winners against their absence."""


class Bench(Protocol):
    """What tuning needs of a GPU (`step_bench.StepBench`)."""

    def kernels(self, case: KernelCase, chosen: Tactics, key: str = "") -> Sequence[KernelSpec]: ...
    def add_kernels(self, cubins: Mapping[str, Any]) -> None: ...
    def upload(self, case: KernelCase) -> None: ...
    def program(self, case: KernelCase, chosen: Tactics) -> StepProgram: ...
    def batch(self, program: StepProgram, seconds: float) -> float: ...
    def sustained(self, program: StepProgram, seconds: float) -> Sustained: ...
    def error(self, case: KernelCase, key: str, chosen: Tactics, holding: Tactics) -> str: ...
    def runs(self, case: KernelCase, key: str, chosen: Tactics) -> bool: ...


@dataclass(frozen=True)
class SizeOutcome:
    """Of one choice in steps of `tokens`: microseconds of a step with what held, and with each candidate (by place in the choice)."""

    tokens: int
    held_us: float
    us: Mapping[int, float]
    dropped: Mapping[int, str]


@dataclass(frozen=True)
class StepDecision:
    """What one choice came to. `winner` is empty where what held stays; `gain`: of a step, mean over sizes, of the best candidate."""

    key: str
    role: str
    choice: Choice
    winner: Tactic
    best: Tactic
    gain: float
    sizes: tuple[SizeOutcome, ...]
    confirmed: bool | None = None
    """By sustained replays; None where there was no time."""


@dataclass(frozen=True)
class Whole:
    """Steps of `tokens` before and after tuning, sustained."""

    tokens: int
    before: Sustained
    after: Sustained


@dataclass(frozen=True)
class TunedSteps:
    decisions: tuple[StepDecision, ...]
    whole: tuple[Whole, ...]
    skipped: int
    """Choices there was no time for."""
    failure: str = ""
    """What ended it before its time."""

    @property
    def slower(self) -> bool:
        """Whether the winners together are no faster than what held before, in the mean over sizes: then none is worth recording."""
        return bool(self.whole) and sum(math.log(one.after.us / one.before.us) for one in self.whole) >= 0


@dataclass
class StepTuner:
    bench: Bench
    course: TuningPlan
    compile: Compile
    progress: Progress
    hold: Callable[[str, Choice, Tactic], None]
    """Told the values of a choice's tunables, for one key, as soon as they are decided."""
    label: str = ""
    clock: Callable[[], float] = time.perf_counter
    _unfit: dict[str, str] = field(default_factory=dict)
    _known: dict[str, Any] = field(default_factory=dict)

    def tune(self, cases: Sequence[KernelCase], recorded: Tactics, seconds: float) -> TunedSteps:
        """`recorded`: what holds before, by key."""
        began = self.clock()
        deadline = began + seconds
        races = self._by_stake(cases, recorded)
        waiting = [(key, choice) for key, choice, _ in races]
        self._compile([race for *_, shown in races for race in shown], cases, recorded, COMPILE_SHARE * seconds)
        left = deadline - self.clock()
        finals = min(PAIR_S * len(cases) + FINAL_SHARE * left, left / 2, PAIR_S * (len(cases) + len(waiting)))
        chosen: dict[str, Tactic] = dict(recorded)
        decisions: dict[tuple[str, str], StepDecision] = {}
        done, skipped, stage = 0, 0, f"steps {self.label}".strip()
        while waiting:
            key, choice = waiting.pop(0)
            done += 1
            if self.clock() > deadline - finals:
                skipped += 1
                continue
            try:
                decision = self._decide(key, choice, cases, chosen)
            except RuntimeError as error:
                failure = f"the GPU stopped at {choice.name} of {key} ({str(error).splitlines()[0]})"
                return TunedSteps(tuple(decisions.values()), (), len(waiting), failure)
            if decision is not None:
                before = decisions.get((key, choice.name), decision)
                decisions[key, choice.name] = decision if decision.winner else replace(before, sizes=decision.sizes)
            if decision is not None and decision.winner:
                chosen[key] = _with(chosen.get(key, {}), choice, decision.winner)
                self.hold(key, choice, decision.winner)
                self.progress(stage, -1, -1, _sentence(decision))
                waiting[:0] = self._shown_anew(key, cases, chosen, decisions, waiting)
            self.progress(stage, done, done + len(waiting), f"{decision.role if decision else ''} {choice.name}")
        confirmed = self._confirmed(list(decisions.values()), cases, recorded, chosen, deadline)
        whole = self._whole(cases, recorded, chosen, deadline) if any(one.winner for one in confirmed) else ()
        tuned = TunedSteps(tuple(confirmed), whole, skipped)
        for decision in confirmed:
            if tuned.slower and decision.winner:
                self.hold(decision.key, decision.choice, _held(recorded.get(decision.key, {}), decision.choice))
        return tuned

    def _by_stake(self, cases: Sequence[KernelCase], recorded: Tactics) -> list[tuple[str, Choice, list[Race]]]:
        """Choices and the steps they show in, those of the op with the most work first; an op's own in their order."""
        stakes: dict[str, float] = {}
        shown: list[tuple[str, Choice, list[Race]]] = []
        for key, choices in self.course.choices.items():
            for choice in choices:
                races = self._races(key, choice, cases, recorded)
                if races:
                    stakes[key] = max([stakes.get(key, 0.0), *(race.stake for race in races)])
                    shown.append((key, choice, races))
        return sorted(shown, key=lambda one: -stakes[one[0]])

    def _shown_anew(
        self,
        key: str,
        cases: Sequence[KernelCase],
        chosen: Tactics,
        decisions: Mapping[tuple[str, str], StepDecision],
        waiting: Sequence[tuple[str, Choice]],
    ) -> list[tuple[str, Choice]]:
        """Choices of an op that show in more sizes than those they were decided in: without a GEMV, a tile for few tokens takes one,
        too."""
        shown: list[tuple[str, Choice]] = []
        for choice in self.course.choices[key]:
            before = decisions.get((key, choice.name))
            sizes = {race.case.shape.tokens for race in self._races(key, choice, cases, chosen)}
            if (key, choice) not in waiting and sizes - {one.tokens for one in (before.sizes if before else ())}:
                shown.append((key, choice))
        return shown

    def _races(self, key: str, choice: Choice, cases: Sequence[KernelCase], chosen: Tactics) -> list[Race]:
        here = [case for case in cases if self.bench.runs(case, key, chosen)]
        return self.course.races_of(key, choice, here, chosen.get(key, {}))

    def _compile(self, races: Sequence[Race], cases: Sequence[KernelCase], recorded: Tactics, seconds: float) -> None:
        specs: dict[str, KernelSpec] = {}
        for case in cases:
            specs |= {spec.key: spec for spec in self.bench.kernels(case, recorded)}
        defaults = set(specs)
        for race in races:
            for entrant in race.entrants:
                specs |= {spec.key: spec for spec in self.bench.kernels(race.case, {**recorded, race.key: entrant.tactic}, race.key)}
        self._add(list(specs.values()), seconds)
        for key in defaults:
            if isinstance(self._known[key], str):
                raise KernelError(self._known[key])
            self._unfit.pop(key, None)

    def _add(self, specs: Sequence[KernelSpec], seconds: float) -> None:
        missing = [spec for spec in specs if spec.key not in self._known]
        if not missing:
            return
        stage = f"compile {self.label}".strip()
        outcomes = self.compile(missing, seconds, lambda done, total: self.progress(stage, done, total))
        self.bench.add_kernels({key: one for key, one in outcomes.items() if isinstance(one, Cubin)})
        self._known |= outcomes
        limit = shared_limit(self.course.arch)
        self._unfit |= {key: reason for key, one in outcomes.items() if (reason := unfit_reason(one, limit))}

    def _decide(self, key: str, choice: Choice, cases: Sequence[KernelCase], chosen: Tactics) -> StepDecision | None:
        races = self._races(key, choice, cases, chosen)
        if not races:
            return None
        sizes: list[SizeOutcome] = []
        evidence: dict[int, list[Evidence]] = {index: [] for index in range(len(choice.candidates))}
        for race in races:
            outcome, advantages = self._raced(race, chosen)
            sizes.append(outcome)
            for index in evidence:
                if index in outcome.dropped:
                    evidence[index] = []
                elif index in advantages:
                    evidence[index].append(advantages[index])
        out = {index for outcome in sizes for index in outcome.dropped}
        summed = {index: mean_over_sizes(all_sizes) for index, all_sizes in evidence.items() if all_sizes and index not in out}
        best = min(summed, key=lambda index: summed[index].mean, default=None)
        winner = winner_of(summed, {index: evidence[index] for index in summed})
        return StepDecision(
            key,
            races[0].role,
            choice,
            {} if winner is None else choice.candidates[winner],
            {} if best is None else choice.candidates[best],
            0.0 if best is None else -math.expm1(summed[best if winner is None else winner].mean),
            tuple(sizes),
        )

    def _raced(self, race: Race, chosen: Tactics) -> tuple[SizeOutcome, dict[int, Evidence]]:
        """Times in one step, and ln(candidate/what held) of each candidate that is another program there."""
        case, key = race.case, race.key
        tactics = [{**chosen, key: entrant.tactic} for entrant in race.entrants]
        self._add([spec for one in tactics for spec in self.bench.kernels(case, one)], math.inf)
        programs: dict[int, StepProgram] = {}
        dropped: dict[int, str] = {}
        for number, one in enumerate(tactics):
            reason = "" if number == 0 else next((r for s in self.bench.kernels(case, one) if (r := self._unfit.get(s.key, ""))), "")
            if number and not reason:
                reason = self.bench.error(case, key, one, chosen)
            if not reason:
                try:
                    self.bench.upload(case)
                    programs[number] = self.bench.program(case, one)
                except (RuntimeError, KernelError) as error:
                    if number == 0:
                        raise
                    reason = f"does not run: {(str(error).splitlines() or [type(error).__name__])[0]}"
            if reason:
                dropped |= dict.fromkeys(race.entrants[number].candidates, reason)
        self.bench.upload(case)
        batches = rounds(programs, lambda program: self.bench.batch(program, BATCH_S))
        held = batches[0]
        us: dict[int, float] = {}
        advantages: dict[int, Evidence] = {}
        for number, times in batches.items():
            for index in race.entrants[number].candidates:
                us[index] = float(np.median(times))
                if number:
                    advantages[index] = advantage(held, times)
        return SizeOutcome(case.shape.tokens, float(np.median(held)), us, dropped), advantages

    def _confirmed(
        self, decisions: Sequence[StepDecision], cases: Sequence[KernelCase], recorded: Tactics, chosen: dict[str, Tactic], deadline: float
    ) -> list[StepDecision]:
        """With and without each winner, sustained, as long as there is time; one that is not faster goes."""
        judged: list[StepDecision] = []
        stage = f"confirm {self.label}".strip()
        for done, decision in enumerate(decisions, 1):
            needed = PAIR_S * (len(decision.sizes) + len(cases))
            if decision.winner and self.clock() + needed < deadline:
                held = _held(recorded.get(decision.key, {}), decision.choice)
                without = _with(chosen[decision.key], decision.choice, held)
                ratios = []
                for case in (case for case in cases if case.shape.tokens in {one.tokens for one in decision.sizes}):
                    before, after = self._pair(case, {**chosen, decision.key: without}, chosen)
                    ratios.append(math.log(after.us / before.us))
                confirmed = sum(ratios) < 0
                if not confirmed:
                    chosen[decision.key] = without
                    self.hold(decision.key, decision.choice, held)
                decision = replace(decision, confirmed=confirmed, winner=decision.winner if confirmed else {})
            judged.append(decision)
            self.progress(stage, done, len(decisions), decision.role)
        return judged

    def _whole(self, cases: Sequence[KernelCase], recorded: Tactics, chosen: Tactics, deadline: float) -> tuple[Whole, ...]:
        """Of as many sizes as there is time for."""
        pairs: list[Whole] = []
        for done, case in enumerate(cases, 1):
            if self.clock() + PAIR_S > deadline:
                break
            pairs.append(Whole(case.shape.tokens, *self._pair(case, recorded, chosen)))
            self.progress(f"whole {self.label}".strip(), done, len(cases))
        return tuple(pairs)

    def _pair(self, case: KernelCase, before: Tactics, after: Tactics) -> tuple[Sustained, Sustained]:
        """Both sustained, in turns: means over the turns of each."""
        for chosen in (before, after):
            self._add(self.bench.kernels(case, chosen), math.inf)
        self.bench.upload(case)
        programs = [self.bench.program(case, one) for one in (before, after)]
        for program in programs:
            self.bench.batch(program, WARM_S / 2)
        turns = [(which, self.bench.sustained(programs[which], SUSTAINED_S)) for which in TURNS]
        first, second = (_mean_of([one for which, one in turns if which == order]) for order in (0, 1))
        return first, second


PAIR_S = WARM_S + 1.4 * SUSTAINED_S * len(TURNS)
"""What a pair of sustained programs takes."""


def _sentence(decision: StepDecision) -> str:
    values = " ".join(f"{name}={value}" for name, value in decision.winner.items())
    return f"{decision.role}, {decision.choice.name}: steps are {decision.gain:.2%} faster with {values}"


def _with(tactic: Tactic, choice: Choice, winner: Tactic) -> Tactic:
    return {**{name: value for name, value in tactic.items() if name not in choice.tunables}, **winner}


def _held(tactic: Tactic, choice: Choice) -> Tactic:
    return {name: value for name, value in tactic.items() if name in choice.tunables}


def _mean_of(turns: Sequence[Sustained]) -> Sustained:
    return Sustained(*(float(np.mean([getattr(one, name) for one in turns])) for name in ("us", "watts", "mhz")))
