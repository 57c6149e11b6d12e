"""Named ranges around what the engine does, for a profiler: NVTX ranges in a domain of our own, or torch's `record_function`.

    annotate(llm.loop, "op")

wraps, on these objects alone, the few methods a range belongs around; an engine that was not annotated runs exactly the code it has always
run, so `off` costs nothing and needs no `if` on the path. Levels, each holding the ones before:

- `step`: `step` (payload: KV pages in use), `schedule` (requests waiting), `launch <phase>` (tokens), `sample` (rows), `finish`, and a mark
  naming the requests admitted;
- `layer`: `layer n` around a layer's launches;
- `op`: each op of the plan by its name.

A CUDA graph replays as one launch, so ranges of layers and ops appear where a step is launched op by op (steps with context tokens, and a
graph's capture); kernels of a graph are matched to ops by their order in the plan instead (`trtllm_bench.profiling.align`).
Without the nvtx package the ranges go through torch's own NVTX, which has no domains and no payload.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.batch import StepBatch
from trtllm_engines.runtime.launch_order import LaunchOrder

if TYPE_CHECKING:
    from trtllm_engines.runtime.engine_loop import EngineLoop

Detail = Literal["off", "step", "layer", "op"]
DETAILS: tuple[str, ...] = get_args(Detail)
DOMAIN = "trtllm"
MAX_IDS = 8
"""Request ids named in a mark; a step may admit hundreds."""


class Marker(Protocol):
    """Where ranges go. `payload` is a number the profiler shows beside the name."""

    def push(self, name: str, payload: int = 0) -> None: ...

    def pop(self) -> None: ...

    def mark(self, name: str) -> None: ...


class NvtxMarker:
    """NVTX in domain `trtllm`. Without a profiler attached the package hands out a domain that does nothing."""

    def __init__(self) -> None:
        import nvtx

        self._domain = nvtx.get_domain(DOMAIN)
        self._attributes: dict[str, Any] = {}

    def push(self, name: str, payload: int = 0) -> None:
        if payload:
            self._domain.push_range(self._domain.get_event_attributes(message=name, payload=payload))
            return
        if name not in self._attributes:
            self._attributes[name] = self._domain.get_event_attributes(message=name)
        self._domain.push_range(self._attributes[name])

    def pop(self) -> None:
        self._domain.pop_range()

    def mark(self, name: str) -> None:
        self._domain.mark(self._domain.get_event_attributes(message=name))


class TorchNvtxMarker:
    """NVTX through torch, for a machine without the nvtx package."""

    def __init__(self) -> None:
        import torch

        self._nvtx: Any = torch.cuda.nvtx

    def push(self, name: str, payload: int = 0) -> None:
        self._nvtx.range_push(f"{DOMAIN}: {name}")

    def pop(self) -> None:
        self._nvtx.range_pop()

    def mark(self, name: str) -> None:
        self._nvtx.mark(f"{DOMAIN}: {name}")


class TorchMarker:
    """Ranges of torch's own profiler, on any device."""

    def __init__(self) -> None:
        from torch.autograd.profiler import record_function

        self._make: Any = record_function
        self._open: list[Any] = []

    def push(self, name: str, payload: int = 0) -> None:
        entered = self._make(f"{DOMAIN}: {name}")
        entered.__enter__()
        self._open.append(entered)

    def pop(self) -> None:
        self._open.pop().__exit__(None, None, None)

    def mark(self, name: str) -> None:
        with self._make(f"{DOMAIN}: {name}"):
            pass


def nvtx_marker() -> Marker:
    """Raises `EngineError` when neither nvtx nor a CUDA build of torch is here."""
    try:
        return NvtxMarker()
    except ImportError:
        import torch

        if torch.version.cuda is None:
            raise EngineError(
                "NVTX ranges need the nvtx package (python3 -m pip install nvtx) or a CUDA build of torch; neither is here."
            ) from None
        return TorchNvtxMarker()


def check_detail(detail: str) -> Detail:
    if detail not in DETAILS:
        raise EngineError(f"Unknown NVTX detail {detail!r}; choose one of {', '.join(DETAILS)}.")
    return detail  # type: ignore[return-value]


def phase_of(batch: StepBatch) -> str:
    if batch.num_decodes == batch.num_seqs:
        return "decode"
    return "mixed" if batch.num_decodes else "prefill"


def annotate(loop: EngineLoop, detail: str, *, arch: str = "cpu", marker: Marker | None = None) -> None:
    """Wraps `loop` and its runner, whose plan was built for `arch`; call it before the first step.

    Raises `EngineError` for an unknown level, and where no NVTX is to be had.
    """
    level = DETAILS.index(check_detail(detail))
    if level == 0:
        return
    to = marker or nvtx_marker()
    runner: Any = loop._runner
    _wrap(loop, "step", to, lambda: "step", lambda: loop.scheduler.pool.used)
    _wrap(loop.scheduler, "receive", to, lambda *args: "finish")
    _annotate_admission(loop, to)
    _wrap(runner, "launch", to, lambda batch: f"launch {phase_of(batch)}", lambda batch: batch.num_tokens)
    state = getattr(runner, "state", None)
    if state is not None:
        _wrap(state, "sample", to, lambda *args: "sample", lambda plan, *rest: plan.count)
    if level > 1 and hasattr(runner, "plan"):
        _annotate_ops(runner, to, arch, by_op=detail == "op")


def _wrap(owner: Any, name: str, to: Marker, label: Callable[..., str], payload: Callable[..., int] = lambda *args, **named: 0) -> None:
    inner = getattr(owner, name)

    def ranged(*args: Any, **named: Any) -> Any:
        to.push(label(*args, **named), payload(*args, **named))
        try:
            return inner(*args, **named)
        finally:
            to.pop()

    setattr(owner, name, ranged)


def _annotate_admission(loop: EngineLoop, to: Marker) -> None:
    inner = loop.scheduler.schedule

    def schedule(step: int) -> StepBatch | None:
        to.push("schedule", loop.scheduler.num_waiting)
        try:
            batch = inner(step)
        finally:
            to.pop()
        if batch is not None and batch.starts:
            ids = [request.request_id for start in batch.starts if (request := loop.scheduler.slots.requests[start.slot]) is not None]
            shown = ", ".join(map(str, ids[:MAX_IDS])) + (", ..." if len(ids) > MAX_IDS else "")
            to.mark(f"admit {len(ids)}: {shown}")
        return batch

    setattr(loop.scheduler, "schedule", schedule)  # noqa: B010


def _annotate_ops(runner: Any, to: Marker, arch: str, by_op: bool) -> None:
    if hasattr(runner, "_calls"):
        _annotate_cpu(runner, to, by_op)
    else:
        runner._program = RangedProgram(runner._program, LaunchOrder(runner.plan, arch), [op.name for op in runner.plan.ops], to, by_op)


def groups_of(names: Sequence[str], by_op: bool) -> list[tuple[str, int, int]]:
    """(range's name, first op, end) of consecutive ops: one an op, or one a layer and one for each op outside the layers."""
    groups: list[tuple[str, int, int]] = []
    for index, name in enumerate(names):
        layer = re.search(r"\.(\d+)\.", name)
        label = name if by_op or layer is None else f"layer {layer.group(1)}"
        if groups and groups[-1][0] == label:
            groups[-1] = (label, groups[-1][1], index + 1)
        else:
            groups.append((label, index, index + 1))
    return groups


def _annotate_cpu(runner: Any, to: Marker, by_op: bool) -> None:
    """The CPU runner calls ops one by one: the first and last call of a group open and close its range."""
    calls = list(runner._calls)
    for label, first, end in groups_of([op.name for op, _, _ in calls], by_op):
        for index in range(first, end):
            op, call, attrs = calls[index]
            calls[index] = (op, _ranged_call(call, to, label if index == first else None, index == end - 1), attrs)
    runner._calls = calls


def _ranged_call(call: Any, to: Marker, opens: str | None, closes: bool) -> Any:
    def ranged(*args: Any, **attrs: Any) -> Any:
        if opens is not None:
            to.push(opens)
        try:
            return call(*args, **attrs)
        finally:
            if closes:
                to.pop()

    return ranged


class RangedProgram:
    """A bound program whose launches are made group by group, each group in its range."""

    def __init__(self, program: Any, order: LaunchOrder, names: Sequence[str], to: Marker, by_op: bool) -> None:
        self._program, self._order, self._to = program, order, to
        self._groups = groups_of(names, by_op)
        self._bounds: list[tuple[str, int, int]] = []

    def set_symbols(self, **symbols: int) -> None:
        self._program.set_symbols(**symbols)
        ends = self._order.ends(symbols)
        self._bounds = [(label, ends[first], ends[end]) for label, first, end in self._groups if ends[end] > ends[first]]

    def run(self) -> None:
        active = self._program._active
        try:
            for label, first, end in self._bounds:
                self._program._active = active[first:end]
                self._to.push(label)
                try:
                    self._program.run()
                finally:
                    self._to.pop()
        finally:
            self._program._active = active
