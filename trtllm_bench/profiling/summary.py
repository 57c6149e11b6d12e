"""From placed kernels to the profile's tables: what each kernel did beside what its op had to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtllm_bench.profiling.align import AROUND, SAMPLE, Placed
from trtllm_bench.profiling.record import KernelRow, StepRow
from trtllm_bench.profiling.window import SeenStep
from trtllm_bench.roofline.counts import OpCost, PlanCounter, StepShape
from trtllm_bench.roofline.hardware import Hardware
from trtllm_engines.compiler.plan import Op
from trtllm_kernels.lowering import Phase, kernel_phase

TIMELINE_STEPS = 3
LATENCY_SHARE = 0.3
"""Below this share of both ceilings nothing of the chip's is the limit: too little work in a kernel, or waiting within it."""


@dataclass
class _Sum:
    calls: int = 0
    time_us: float = 0.0
    bytes: float = 0.0
    flop: float = 0.0
    memory_us: float = 0.0
    compute_us: float = 0.0
    ideal_us: float = 0.0
    compute: str = ""
    op: str = ""
    at_once: bool = False
    """Of two kernels a call, which use memory and arithmetic at the same time."""
    communicates: bool = False
    """Bound by the links between GPUs and by the other ranks, which have no ceiling here."""

    @property
    def least_us(self) -> float:
        """What the ceilings allow."""
        return max(self.memory_us, self.compute_us) if self.at_once else self.ideal_us


def summarise(
    placed: Sequence[Placed], steps: Sequence[SeenStep], counter: PlanCounter, hardware: Hardware | None, lead_in: int
) -> tuple[tuple[KernelRow, ...], tuple[StepRow, ...], dict[str, float], tuple[dict[str, Any], ...]]:
    """(kernel table, step table, time by role, timeline) of the steps after the lead-in, from placed events of one stream in time order."""
    names = [op.name for op in counter.plan.ops]
    kept = [one for one in placed if lead_in <= one.step < len(steps)]
    step_rows, exclusive = _steps(placed, steps, lead_in)
    costs = [_Costs(counter, step.shape) for step in steps]
    rows: dict[tuple[str, str], _Sum] = {}
    roles: dict[str, float] = {}
    for one, carries, pair in zip(kept, _carriers(kept, counter.plan.ops), _pairs(kept), strict=True):
        cost = costs[one.step].of(one)
        role = cost.role if cost is not None else AROUND[one.op]
        total = rows.setdefault((role, pair or one.event.name), _Sum(op=cost.op if cost is not None else "", at_once=bool(pair)))
        total.calls += not (pair and one.beside)
        total.time_us += exclusive[id(one)]
        roles[role] = roles.get(role, 0.0) + exclusive[id(one)]
        if cost is not None and carries:
            _add(total, cost, hardware)
    window = sum(step.span_us for step in step_rows)
    table = [_row(role, kernel, total, window) for (role, kernel), total in rows.items()]
    return tuple(sorted(table, key=lambda row: -row.time_us)), step_rows, roles, _timeline(kept, costs, names, lead_in)


class _Costs:
    """Costs of one step's ops; attention apart for its decode and its context kernels."""

    def __init__(self, counter: PlanCounter, shape: StepShape) -> None:
        self._whole = counter.step(shape)
        self._shape, self._counter = shape, counter
        self._split: dict[Phase, list[OpCost]] = {}

    def of(self, one: Placed) -> OpCost | None:
        if one.op == SAMPLE:
            return self._counter.sampling(self._shape)
        if one.op < 0:
            return None
        cost = self._whole[one.op]
        if cost.kind != "attention" or self._shape.phase != "mixed":
            return cost
        phase = kernel_phase(cost.op, one.event.name)
        if phase is None:
            return cost
        if phase not in self._split:
            self._split[phase] = self._counter.step(part(self._shape, phase))
        return self._split[phase][one.op]


def part(shape: StepShape, phase: Phase) -> StepShape:
    """The decode sequences of a step alone, or the others."""
    decoding = phase == "decode"
    chosen = slice(0, shape.num_decodes) if decoding else slice(shape.num_decodes, None)
    count = shape.num_decodes if decoding else 0
    samples = shape.num_decodes if decoding else shape.samples - shape.num_decodes
    return StepShape(shape.query_lens[chosen], shape.kv_lens[chosen], count, samples)


def _pairs(kept: Sequence[Placed]) -> list[str]:
    """For each of two kernels that ran at once the name of both, which are one row: neither has a rate of its own. Else nothing."""
    names = [""] * len(kept)
    for i, one in enumerate(kept):
        if i and one.beside and (kept[i - 1].step, kept[i - 1].op) == (one.step, one.op):
            names[i - 1] = names[i] = f"{kept[i - 1].event.name} + {one.event.name}"
    return names


def _carriers(kept: Sequence[Placed], ops: Sequence[Op]) -> list[bool]:
    """For each event whether it carries its op's counts: the longest of those an op made in a step, of each phase if kernels have one."""
    longest: dict[tuple[int, int, Phase | None], int] = {}
    for i, one in enumerate(kept):
        key = (one.step, one.op, kernel_phase(ops[one.op].op, one.event.name) if one.op >= 0 else None)
        if key not in longest or one.event.duration_us > kept[longest[key]].event.duration_us:
            longest[key] = i
    carrying = set(longest.values())
    return [i in carrying for i in range(len(kept))]


def _add(total: _Sum, cost: OpCost, hardware: Hardware | None) -> None:
    total.bytes += cost.bytes
    total.flop += cost.flop
    total.compute = cost.compute
    if cost.kind == "communication":
        total.communicates = True
    if hardware is None or total.communicates:
        return
    memory, compute = hardware.ceiling_us(cost)
    total.memory_us += memory
    total.compute_us += compute
    total.ideal_us += max(memory, compute)


def _row(role: str, kernel: str, total: _Sum, window_us: float) -> KernelRow:
    share = total.least_us / total.time_us if total.least_us and total.time_us else None
    bound = "communication" if total.communicates else ""
    if share is not None:
        bound = "latency" if share < LATENCY_SHARE else "memory" if total.memory_us >= total.compute_us else "compute"
    return KernelRow(
        role=role,
        op=total.op,
        kernel=kernel,
        calls=total.calls,
        time_us=total.time_us,
        share=total.time_us / window_us if window_us else 0.0,
        bytes=total.bytes,
        flop=total.flop,
        compute=total.compute,
        ceiling_share=share,
        bound=bound,
    )


def _steps(placed: Sequence[Placed], steps: Sequence[SeenStep], lead_in: int) -> tuple[tuple[StepRow, ...], dict[int, float]]:
    """Step rows, and each kept event's exclusive time by its id: where events overlap, the instant is the earlier one's."""
    rows: list[StepRow] = []
    exclusive: dict[int, float] = {}
    clock: float | None = None
    per_step: dict[int, list[Placed]] = {}
    for one in placed:
        per_step.setdefault(one.step, []).append(one)
    for index, step in enumerate(steps):
        events = per_step.get(index, [])
        if not events:
            continue
        begin = clock if clock is not None else events[0].event.start_us
        busy = inside = before = 0.0
        now = begin
        for position, one in enumerate(events):
            gap = max(0.0, one.event.start_us - now)
            before, inside = (before + gap, inside) if position == 0 else (before, inside + gap)
            own = max(0.0, one.event.end_us - max(one.event.start_us, now))
            exclusive[id(one)] = own
            busy += own
            now = max(now, one.event.end_us)
        clock = now
        if index < lead_in:
            continue
        shape = step.shape
        sizes = (shape.tokens, shape.sequences, shape.num_decodes, shape.samples, shape.kv_tokens)
        rows.append(StepRow(step.number, shape.phase, *sizes, step.graph, events[0].event.start_us, now - begin, busy, inside, before))
    return tuple(rows), exclusive


def _timeline(kept: Sequence[Placed], costs: Sequence[_Costs], names: Sequence[str], lead_in: int) -> tuple[dict[str, Any], ...]:
    shown = [one for one in kept if one.step < lead_in + TIMELINE_STEPS]
    origin = shown[0].event.start_us if shown else 0.0
    return tuple(
        {
            "name": one.event.name,
            "op": names[one.op] if one.op >= 0 else AROUND[one.op],
            "role": cost.role if (cost := costs[one.step].of(one)) is not None else AROUND[one.op],
            "start_us": round(one.event.start_us - origin, 3),
            "duration_us": round(one.event.duration_us, 3),
            "step": one.step - lead_in,
        }
        for one in shown
    )
