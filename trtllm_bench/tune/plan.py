"""Which races to run: one for each op of a plan, choice of its search space and step in which the choice shows. No GPU is needed.

Two candidates that launch the same kernels with the same grids and arguments in a step are one program there: they run once and share
the time. A choice of which no candidate differs from the default in a step is not a race. So no rule says that a tile for one token does
not matter at 64; the launches say it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from trtllm_bench.micro.cases import KernelCase, chunk_case, decode_case, prefill_case
from trtllm_bench.roofline.counts import OpCost, PlanCounter, StepShape
from trtllm_engines.compiler.plan import Op
from trtllm_engines.compiler.planning.select_tactics import lowered_together, select_tactics
from trtllm_kernels import tactics
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.types import Launch, Lowered, TensorSpec
from trtllm_kernels.lowering import lower, search_space, step_space
from trtllm_kernels.lowering.space import DECODE, Choice
from trtllm_kernels.tactics import Tactic

PREFILL_FROM = 16
"""Tokens from which a step of M tokens is measured as a prompt and as a part of one, too."""
MOST_CACHED = 1 << 19
"""Tokens in the cache of one step: a few GB, which leaves room for copies."""

BYTES_PER_S, FLOP_PER_S = 3e12, 8e14
"""An H100, roughly: only the order of stakes hangs on it."""


@dataclass(frozen=True)
class Entrant:
    """A program and the candidates (by place in the choice) that are this program; the default is the first entrant of a race."""

    tactic: Tactic
    lowered: Lowered
    candidates: frozenset[int]


@dataclass(frozen=True)
class Race:
    op: Op
    role: str
    key: str
    choice: Choice
    case: KernelCase
    entrants: tuple[Entrant, ...]
    stake: float = 0.0
    """Seconds the op takes at `BYTES_PER_S` and `FLOP_PER_S`: what is worth measuring first when time is short."""


def steps(m: Sequence[int], kv_len: int, longest: int) -> list[KernelCase]:
    """The steps of `--m`, of sequences no longer than `longest`. Many decoding sequences get shorter caches, so that all fit."""
    cases: list[KernelCase] = []
    for tokens in m:
        cases.append(KernelCase(DECODE, StepShape.decode(tokens, max(1, min(kv_len, longest, MOST_CACHED // tokens)))))
        if PREFILL_FROM <= tokens <= longest:
            cases.append(prefill_case(tokens))
        if PREFILL_FROM <= tokens < longest:
            cases.append(chunk_case(tokens, min(kv_len, longest - tokens)))
    return cases


def threshold_steps(choices: Iterable[Choice], longest: int) -> list[KernelCase]:
    return [prefill_case(tokens) for tokens in sorted({tokens for choice in choices for tokens in choice.tokens}) if tokens <= longest]


class TuningPlan:
    """The ops of a plan that have something to choose, one of each kind, on an architecture."""

    def __init__(
        self, counter: PlanCounter, arch: str, done: frozenset[str] = frozenset(), name: str = "", whole_steps: bool = False
    ) -> None:
        """`done`: keys that were tuned already; `name`: only ops whose name or role contains it. `whole_steps`: with the choices that
        only whole decode steps show."""
        space = step_space if whole_steps else search_space
        self.arch, self._specs, self._counter, self._whole_steps = arch, counter.specs, counter, whole_steps
        self._ops: dict[str, tuple[int, Op, str]] = {}
        self.choices: dict[str, tuple[Choice, ...]] = {}
        costs = counter.step(decode_case(1, 1).shape)
        for index, (op, like) in enumerate(zip(counter.plan.ops, counter.likeness, strict=True)):
            key = tactics.key(op.op, *self._tensors(op), op.attrs)
            role = costs[index].role
            if index != like or key in self._ops or key in done or not (name in op.op or name in role):
                continue
            self._ops[key] = (index, op, role)
            self.choices[key] = space(op.op, *self._tensors(op), op.attrs, arch)

    def _tensors(self, op: Op) -> tuple[list[TensorSpec | None], list[TensorSpec]]:
        return [self._specs[name] if name else None for name in op.inputs], [self._specs[name] for name in op.outputs]

    def races(self, cases: Sequence[KernelCase], thresholds: bool, base: Mapping[str, Tactic]) -> list[Race]:
        """Of the choices that are thresholds, or of those that are not; `base`: what was decided before, by key."""
        chosen: list[Race] = []
        programs: dict[tuple[str, str], list[tuple[Tactic, Lowered]]] = {}
        for case in cases:
            costs = self._counter.step(case.shape)
            for key, choices in self.choices.items():
                stake = _stake(costs[self._ops[key][0]])
                for choice in choices:
                    here = case.shape.tokens in choice.tokens if thresholds else not choice.tokens
                    if here and case.label in choice.steps:
                        if (key, choice.name) not in programs:
                            programs[key, choice.name] = self._lowered(key, choice, base.get(key, {}))
                        chosen += self._race(key, choice, case, programs[key, choice.name], stake)
        return chosen

    def races_of(self, key: str, choice: Choice, cases: Sequence[KernelCase], base: Tactic) -> list[Race]:
        """Of one choice, in the steps in which it shows with `base` for the rest."""
        index, programs = self._ops[key][0], self._lowered(key, choice, base)
        costs = (self._counter.step(case.shape)[index] for case in cases)
        return [race for case, cost in zip(cases, costs, strict=True) for race in self._race(key, choice, case, programs, _stake(cost))]

    def _lowered(self, key: str, choice: Choice, base: Tactic) -> list[tuple[Tactic, Lowered]]:
        """With `base`, and with each candidate in place of its part of that."""
        tactics = [{**base, **candidate} for candidate in ({}, *choice.candidates)]
        return [(tactic, self._lowered_with(key, tactic)) for tactic in tactics]

    def _lowered_with(self, key: str, tactic: Tactic) -> Lowered:
        """Alone, or in whole steps with the op before it whose work it may do."""
        ops, (index, op, _) = self._counter.plan.ops, self._ops[key]
        if self._whole_steps and index > 0 and lowered_together(ops[index - 1], op):
            kept = (*self._counter.plan.outputs, *(name for one in ops[index + 1 :] for name in one.inputs))
            both = select_tactics(ops[index - 1 : index + 1], self._specs, (self.arch,), outputs=kept, chosen={key: tactic})
            first, second = (one.tactics[self.arch] for one in both)
            return Lowered(first.launches + second.launches, first.kernels + second.kernels, {**first.workspaces, **second.workspaces})
        inputs, outputs = self._tensors(op)
        return lower(
            op.op,
            inputs,
            outputs,
            op.attrs,
            self.arch,
            tactic=tactic,
            input_names=op.inputs,
            output_names=op.outputs,
            in_place=bool(op.reuses),
        )

    def _race(self, key: str, choice: Choice, case: KernelCase, programs: Sequence[tuple[Tactic, Lowered]], stake: float) -> Iterator[Race]:
        _, op, role = self._ops[key]
        distinct: dict[object, tuple[Tactic, Lowered, set[int]]] = {}
        for index, (tactic, lowered) in enumerate(programs, -1):
            entry = distinct.setdefault(_active(lowered, case.shape.symbols), (tactic, lowered, set()))
            if index >= 0:
                entry[2].add(index)
        if len(distinct) > 1:
            entrants = tuple(Entrant(t, low, frozenset(which)) for t, low, which in distinct.values())
            yield Race(op, role, key, choice, case, entrants, stake)


def _stake(cost: OpCost) -> float:
    return max(cost.bytes / BYTES_PER_S, cost.flop / FLOP_PER_S)


def _active(lowered: Lowered, symbols: Mapping[str, int]) -> object:
    """What of an op runs in a step: kernels or routines, grids and arguments, in order."""
    active = []
    for launch in lowered.launches:
        grid = tuple(evaluate(dim, symbols) for dim in launch.grid)
        if min(grid) > 0:
            active.append((launch.kernel or launch.library, grid, tuple(_argument(launch, i, symbols) for i in range(len(launch.args)))))
    return tuple(active)


def active_launches(lowered: Lowered, symbols: Mapping[str, int]) -> Lowered:
    """What of an op is launched in a step."""
    launches = tuple(launch for launch in lowered.launches if min(evaluate(dim, symbols) for dim in launch.grid) > 0)
    kernels = {launch.kernel for launch in launches}
    return Lowered(launches, tuple(spec for spec in lowered.kernels if spec.key in kernels), lowered.workspaces)


def _argument(launch: Launch, index: int, symbols: Mapping[str, int]) -> object:
    arg = launch.args[index]
    if arg.kind in ("i32", "i64") and not isinstance(arg.value, float):
        return evaluate(arg.value, symbols)
    return (arg.value, arg.box, arg.index)
