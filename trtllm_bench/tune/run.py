"""Tuning one model in one precision: compile what the races need, check every program, race it, decide; then the thresholds.

Tiles come first and thresholds second, since where our kernel overtakes the library's depends on our kernel's tiles. The time limit holds
for all of it. A choice is decided only when all its races were run; when the races left would take longer than there is time, by the
batches measured so far, the choices of the op with the least work are given up first and keep what was recorded before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trtllm_bench.errors import RunFailure
from trtllm_bench.micro.bench import Bench, Chain
from trtllm_bench.micro.bound_op import BoundOp
from trtllm_bench.micro.cases import KernelCase
from trtllm_bench.micro.timing import How, StoppingRule, Timer, Timing
from trtllm_bench.tune.check import checking
from trtllm_bench.tune.decide import Decision, RaceOutcome, decisions
from trtllm_bench.tune.plan import Race, TuningPlan, threshold_steps
from trtllm_bench.tune.race import run_race
from trtllm_kernels.compile.cubin import Cubin
from trtllm_kernels.dialect.types import KernelSpec, Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import shared_limit
from trtllm_kernels.lowering.gemm import LT_VERSION
from trtllm_kernels.tactics import Tactic

REGISTERS_A_BLOCK = 65536
COMPILE_SHARE = 0.5
"""Of the time there is: at most so much for compiling."""
Compile = Callable[[Sequence[KernelSpec], float, Callable[[int, int], None]], Mapping[str, Any]]
"""(kernels, seconds, progress(done, total)) -> machine code by key, or why there is none."""


class Progress(Protocol):
    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None: ...


@dataclass(frozen=True)
class TimedProgram:
    """One run of one program: what the timer calls. `chain`: of a product that memory bounds, `calls` of it in a row."""

    bound: BoundOp
    race: Race
    tactic: Tactic
    chain: Chain | None

    @property
    def calls(self) -> int:
        return 1 if self.chain is None else self.chain.calls

    def __call__(self) -> None:
        (self.bound if self.chain is None else self.chain).run()


@dataclass(frozen=True)
class Tuned:
    decisions: tuple[Decision, ...]
    failed: tuple[str, ...]
    """Ops whose default is wrong."""
    skipped: int
    """Choices there was no time for."""


@dataclass
class Tuner:
    bench: Bench
    course: TuningPlan
    timer: Timer
    rule: StoppingRule
    compile: Compile
    progress: Progress
    label: str = ""
    clock: Callable[[], float] = time.perf_counter

    def tune(self, cases: Sequence[KernelCase], recorded: Mapping[str, Tactic], seconds: float) -> Tuned:
        """`recorded`: what holds of a choice that is not decided here."""
        self._deadline = self.clock() + seconds
        self._failed: list[str] = []
        self._compiled_before: dict[str, Any] = {}
        all_choices = [choice for choices in self.course.choices.values() for choice in choices]
        later = threshold_steps(all_choices, self.bench.plan.profile.max_seq_len - 1)
        reserve = sum(self._least_batches(race) for race in self.course.races(later, True, {}))
        first, skipped = self._run(self.course.races(cases, False, {}), reserve)
        judged = {tunable for choice in all_choices if choice.tokens for tunable in choice.tunables}
        second, more = self._run(self.course.races(later, True, _base(first, recorded, judged)), 0)
        return Tuned((*first, *second), tuple(self._failed), skipped + more)

    def _least_batches(self, race: Race) -> int:
        return len(race.entrants) * self.rule.min_batches

    def _run(self, races: Sequence[Race], reserve: int) -> tuple[list[Decision], int]:
        """`reserve`: batches for which time must be left afterwards."""
        unfit = self._compiled(races)
        began, batches = self.clock(), 0
        waiting = list(races)
        outcomes: list[RaceOutcome] = []
        undecided: set[tuple[str, str]] = set()
        by_case: dict[str, list[Race]] = {}
        for race in races:
            by_case.setdefault(f"{race.case.label} {race.case.shape.tokens}", []).append(race)
        for step, here in by_case.items():
            for bound in self.bench.ops(here[0].case):
                for race in (race for race in here if race.op.name == bound.op.name):
                    if _name(race) in self._too_much(waiting, reserve, began, batches):
                        undecided.add(_name(race))
                        waiting = [one for one in waiting if _name(one) != _name(race)]
                    seconds = self._deadline - self.clock()
                    least = sum(map(self._least_batches, waiting)) + reserve
                    waiting = [one for one in waiting if one is not race]
                    outcome = None
                    if seconds > 0 and race.op.name not in self._failed and _name(race) not in undecided:
                        share = seconds * self._least_batches(race) / max(1, least)
                        outcome = self._measured(bound, race, unfit, share)
                    if outcome is None:
                        undecided.add(_name(race))
                    else:
                        outcomes.append(outcome)
                        batches += sum(len(timing.batches) for timing in outcome.timings if timing is not None)
                    done = len(races) - len(waiting)
                    self.progress(f"measure {self.label}".strip(), done, len(races), f"{race.role} {race.choice.name} {step}")
        skipped = {_name(race) for race in races if _name(race) in undecided and race.op.name not in self._failed}
        return decisions([one for one in outcomes if _name(one.race) not in undecided]), len(skipped)

    def _too_much(self, waiting: Sequence[Race], reserve: int, began: float, batches: int) -> set[tuple[str, str]]:
        """Choices, least stake first, without which what waits fits in the time; none before a tenth of it taught what a batch takes."""
        now = self.clock()
        if not batches or now - began < 0.1 * (self._deadline - began):
            return set()
        room = (self._deadline - now) / ((now - began) / batches)
        least: dict[tuple[str, str], int] = {}
        stakes: dict[tuple[str, str], float] = {}
        for race in waiting:
            least[_name(race)] = least.get(_name(race), 0) + self._least_batches(race)
            stakes[_name(race)] = max(race.stake, stakes.get(_name(race), 0.0))
        needed = sum(least.values()) + reserve
        out: set[tuple[str, str]] = set()
        for name in sorted(stakes, key=stakes.__getitem__):
            if needed <= room:
                break
            out.add(name)
            needed -= least[name]
        return out

    def _compiled(self, races: Sequence[Race]) -> Mapping[str, str]:
        """Compiles all kernels of the races; for each that cannot be used, why."""
        specs = {spec.key: spec for race in races for entrant in race.entrants for spec in entrant.lowered.kernels}
        seconds = COMPILE_SHARE * max(0.0, self._deadline - self.clock())
        stage = f"compile {self.label}".strip()
        missing = [spec for key, spec in specs.items() if key not in self._compiled_before]
        if missing:
            outcomes = self.compile(missing, seconds, lambda done, total: self.progress(stage, done, total))
            self.bench.add_kernels({key: one for key, one in outcomes.items() if isinstance(one, Cubin)})
            self._compiled_before |= outcomes
        limit = shared_limit(self.course.arch)
        return {key: reason for key, one in self._compiled_before.items() if (reason := unfit_reason(one, limit))}

    def _measured(self, bound: BoundOp, race: Race, unfit: Mapping[str, str], seconds: float) -> RaceOutcome | None:
        """None if the default itself is wrong, or cannot be timed."""
        dropped: dict[int, str] = {}
        laps: dict[int, TimedProgram] = {}
        accepted = {spec.key for spec in race.entrants[0].lowered.kernels}
        with checking(bound) as check:
            for index, entrant in enumerate(race.entrants):
                reason = "" if index == 0 else _reason(entrant.lowered, unfit, accepted)
                if not reason:
                    try:
                        variant = self.bench.variant(bound, entrant.lowered)
                        reason = check.error_of(variant)
                        chain = None if reason else self.bench.chain(variant)
                    except (RuntimeError, KernelError) as error:
                        reason = f"does not run: {(str(error).splitlines() or [type(error).__name__])[0]}"
                        self._still_alive(race, entrant.tactic)
                if reason:
                    dropped[index] = reason
                else:
                    laps[index] = TimedProgram(variant, race, entrant.tactic, chain)
        if 0 in dropped:
            self._failed.append(race.op.name)
            self.progress(f"measure {self.label}".strip(), -1, -1, f"{race.role} by default is {dropped[0]}")
            return None
        timings = self._raced(list(laps.values()), seconds)
        if timings is None:
            return None
        known = dict(zip(laps, timings, strict=True))
        return RaceOutcome(race, tuple(known.get(index) for index in range(len(race.entrants))), dropped)

    def _raced(self, laps: Sequence[TimedProgram], seconds: float) -> tuple[Timing, ...] | None:
        """None if the profiler loses kernels twice in a row: five minutes of work do not end for that."""
        for _ in range(2):
            try:
                how: How = "cold" if laps[0].chain is None else "chained"
                timings = run_race(self.timer, laps, self.rule, min(seconds, self.rule.seconds), self.clock, how)
                return tuple(timing.per(lap.calls) for timing, lap in zip(timings, laps, strict=True))
            except RunFailure as error:
                self.progress(f"measure {self.label}".strip(), -1, -1, f"{laps[0].race.role}: {error}")
        return None

    def _still_alive(self, race: Race, tactic: Tactic) -> None:
        """A kernel that reads where it must not ends all work on the device."""
        if self.bench.arch == "cpu":
            return
        import torch

        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise RunFailure(
                f"the GPU stopped at {race.role} with {dict(tactic)} ({str(error).splitlines()[0]}); what was decided before is not written"
            ) from error


def _name(race: Race) -> tuple[str, str]:
    return race.key, race.choice.name


def unfit_reason(compiled: Any, shared: int) -> str:
    """Why a kernel cannot be launched, or is not worth it."""
    if isinstance(compiled, str):
        return compiled
    info = compiled.info
    if info.shared_bytes > shared:
        return f"needs {info.shared_bytes} B of shared memory, of {shared}"
    if info.registers * info.num_warps * 32 > REGISTERS_A_BLOCK:
        return f"needs {info.registers} registers in {info.num_warps} warps"
    return f"spills {info.spill_bytes} B of registers" if info.spill_bytes else ""


def _reason(lowered: Lowered, unfit: Mapping[str, str], accepted: set[str]) -> str:
    """Kernels of the default are accepted as they are."""
    return next((unfit[spec.key] for spec in lowered.kernels if spec.key in unfit and spec.key not in accepted), "")


def _base(decided: Sequence[Decision], recorded: Mapping[str, Tactic], thresholds: set[str]) -> dict[str, Tactic]:
    """What thresholds are judged with: recorded values, but those decided now; thresholds at their defaults."""
    left_out = thresholds | {LT_VERSION}
    base = {key: {name: value for name, value in tactic.items() if name not in left_out} for key, tactic in recorded.items()}
    for decision in decided:
        kept = {name: value for name, value in base.get(decision.key, {}).items() if name not in decision.choice.tunables}
        base[decision.key] = {**kept, **decision.winner}
    return dict(base)
