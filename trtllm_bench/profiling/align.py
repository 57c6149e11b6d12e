"""Which op made each kernel: the trace's kernels laid along the launches the plan says each step makes.

Everything of an engine runs on one stream in an order that the plan fixes, so order is identity: a kernel of ours must be the next launch
of that name, and what lies between two of ours comes from the library calls (matrix products) planned between them. That holds for CUDA
graphs, where a replay leaves no launch a kernel could be traced back to, and asks nothing of the host's clock. Correlation ids and NVTX
ranges were rejected for this: graphs have neither per kernel in torch's traces, and ranges per op slow the launches to be measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from trtllm_bench.errors import RunFailure
from trtllm_bench.profiling.window import SeenStep
from trtllm_bench.tracing.trace import Event
from trtllm_engines.compiler.plan import Op
from trtllm_engines.runtime.launch_order import LaunchOrder, PlannedLaunch

INPUTS, SAMPLE, READ_BACK = -1, -2, -3
"""In place of an op's index: work around the plan, by the runtime."""
AROUND = {INPUTS: "inputs", SAMPLE: "sample", READ_BACK: "read back"}
_FOLLOWS = re.compile(r"split_?k|reduce", re.IGNORECASE)
_INPUTS = re.compile(r"BitwiseOr")
"""The kernel that copies a step's inputs (`runtime/inputs.py`), unless the copy engine does."""
_TO_HOST = re.compile(r"DtoH|Device *-> *(Pinned|Pageable|Host)|device-to-host", re.IGNORECASE)


@dataclass(frozen=True)
class Placed:
    event: Event
    step: int
    """Index into the steps seen."""
    op: int
    """Index into the plan's ops, or one of `AROUND`."""
    beside: bool = False
    """Ran while the kernel before it did."""


def place_kernels(events: Sequence[Event], steps: Sequence[SeenStep], order: LaunchOrder) -> list[Placed]:
    """Every event with its step and op, in time order. Raises `RunFailure` when the trace does not hold the steps' launches."""
    placed: list[Placed] = []
    at = 0
    for index, step in enumerate(steps):
        launches = order.active(step.symbols)
        first = launches[0].function
        begin = next((i for i in range(at, len(events)) if events[i].name == first), None)
        if begin is None:
            raise RunFailure(
                f"the trace ends before step {step.number}: {first}, which begins a step, was seen {index} times for {len(steps)} steps"
            )
        placed += _between(events[at:begin], index)
        at = _place_program(events, begin, launches, index, step, placed)
    return placed + _between(events[at:], len(steps))


def _between(events: Sequence[Event], next_step: int) -> list[Placed]:
    """What lies between two programs: sampling, where more is asked than the plan's last op does, up to the copy of its tokens to the host;
    then the next step's inputs, which else begin with the first copy to the device.
    """
    copies = [i for i, event in enumerate(events) if event.kind == "memcpy" and _TO_HOST.search(event.name)]
    to_device = (i for i, event in enumerate(events) if (event.kind == "memcpy" and i not in copies) or _INPUTS.search(event.name))
    last = copies[-1] if copies else next(to_device, len(events)) - 1
    placed = []
    for i, event in enumerate(events):
        if next_step == 0 or i > last:
            placed.append(Placed(event, next_step, INPUTS))
        else:
            placed.append(Placed(event, next_step - 1, READ_BACK if i in copies else SAMPLE))
    return placed


def _place_program(
    events: Sequence[Event], begin: int, launches: Sequence[PlannedLaunch], index: int, step: SeenStep, placed: list[Placed]
) -> int:
    """Places the kernels of one step's plan from `events[begin]` on; returns where they end."""
    at = begin
    pending: list[PlannedLaunch] = []
    previous = launches[0].op
    for launch in launches:
        if launch.library:
            pending.append(launch)
            continue
        end = next((i for i in range(at, len(events)) if events[i].name == launch.function), None)
        if end is None:
            raise RunFailure(f"step {step.number} of the trace lacks kernel {launch.function}; was another engine profiled?")
        placed += _library(events[at:end], pending, index, previous)
        placed.append(Placed(events[end], index, launch.op, launch.concurrent))
        at, previous, pending = end + 1, launch.op, []
    end = at
    for _ in pending:
        while end < len(events) and events[end].kind != "kernel":
            end += 1
        end += 1
        while end < len(events) and _FOLLOWS.search(events[end].name) and _is_library(events[end].name):
            end += 1
    end = min(end, len(events))
    placed += _library(events[at:end], pending, index, previous)
    return end


def _is_library(name: str) -> bool:
    """Torch's own reductions (arg-max in sampling) are not part of a matrix product."""
    return "at::native" not in name


def _library(events: Sequence[Event], launches: Sequence[PlannedLaunch], index: int, previous: int) -> list[Placed]:
    """Kernels between two of ours, shared out to the library calls planned there: one each, a reduction with the product before it."""
    if not launches:
        return [Placed(event, index, previous) for event in events]
    placed, turn, started = [], 0, False
    for left, event in zip(range(len(events), 0, -1), events, strict=True):
        follows = event.kind != "kernel" or (_FOLLOWS.search(event.name) is not None and left > len(launches) - turn - started)
        if event.kind == "kernel" and started and turn + 1 < len(launches) and not follows:
            turn += 1
        started = started or event.kind == "kernel"
        placed.append(Placed(event, index, launches[turn].op))
    return placed


def place_ranges(ranges: Sequence[Event], steps: Sequence[SeenStep], ops: Sequence[Op]) -> list[Placed]:
    """The same from the ranges of a CPU trace, each named by its op: one `launch` range per step holds one range per op. Raises
    `RunFailure` when the trace has another number of steps."""
    launches = [event for event in ranges if event.name.startswith("launch ")]
    if len(launches) != len(steps):
        raise RunFailure(f"the trace holds {len(launches)} steps and {len(steps)} were launched while it was recorded")
    index_of = {op.name: i for i, op in enumerate(ops)}
    placed, step = [], 0
    for event in ranges:
        while step < len(launches) - 1 and event.start_us >= launches[step].end_us:
            step += 1
        if not launches[step].start_us <= event.start_us < launches[step].end_us:
            continue
        if event.name in index_of:
            index = index_of[event.name]
            placed.append(Placed(replace(event, name=ops[index].op), step, index))
        elif event.name == "sample":
            placed.append(Placed(event, step, SAMPLE))
    return placed
