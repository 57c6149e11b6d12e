"""Named ranges around what the engine does, for a profiler: NVTX ranges in a domain of our own, or torch's `record_function`.

    annotate(llm.loop, "op")

observes the engine (`observer.py`) and turns what it is told into ranges. Levels, each holding the ones before:

- `step`: `step` (payload: KV pages in use), `schedule` (requests waiting), `launch <phase>` (tokens), `sample` (rows), `finish`, and a mark
  naming the requests admitted;
- `layer`: `layer n` around a layer's launches;
- `op`: each op of the plan by its name.

A CUDA graph replays as one launch, so ranges of layers and ops appear where a step is launched op by op (steps with context tokens, and a
graph's capture); kernels of a graph are matched to ops by their order in the plan instead (`trtllm_bench.profiling.align`).
Without the nvtx package the ranges go through torch's own NVTX, which has no domains and no payload.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.batch import StepBatch
from trtllm_engines.runtime.observer import OpDetail, StepObserver

if TYPE_CHECKING:
    from trtllm_engines.runtime.engine_loop import EngineLoop
    from trtllm_engines.runtime.request import Request

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
                "NVTX ranges need the nvtx package (python3 -m pip install nvtx) or a CUDA build of torch; neither is here"
            ) from None
        return TorchNvtxMarker()


def check_detail(detail: str) -> Detail:
    if detail not in DETAILS:
        raise EngineError(f"unknown NVTX detail {detail!r}; choose one of {', '.join(DETAILS)}")
    return detail  # type: ignore[return-value]


def phase_of(batch: StepBatch) -> str:
    if batch.num_decodes == batch.num_seqs:
        return "decode"
    return "mixed" if batch.num_decodes else "prefill"


def annotate(loop: EngineLoop, detail: str, *, marker: Marker | None = None) -> None:
    """Observes `loop` and its runner; call it before the first step.

    Raises `EngineError` for an unknown level, and where no NVTX is to be had.
    """
    if check_detail(detail) != "off":
        loop.observe(RangeObserver(marker or nvtx_marker(), detail))


class RangeObserver(StepObserver):
    """Pushes and pops ranges of `marker`."""

    def __init__(self, marker: Marker, detail: str) -> None:
        self._marker = marker
        self.op_detail = "off" if detail == "step" else cast(OpDetail, detail)

    def step_begins(self, kv_pages_used: int) -> None:
        self._marker.push("step", kv_pages_used)

    def schedule_begins(self, waiting: int) -> None:
        self._marker.push("schedule", waiting)

    def admitted(self, requests: Sequence[Request]) -> None:
        shown = ", ".join(str(request.request_id) for request in requests[:MAX_IDS]) + (", ..." if len(requests) > MAX_IDS else "")
        self._marker.mark(f"admit {len(requests)}: {shown}")

    def launch_begins(self, step: int, batch: StepBatch) -> None:
        self._marker.push(f"launch {phase_of(batch)}", batch.num_tokens)

    def ops_begin(self, label: str) -> None:
        self._marker.push(label)

    def sample_begins(self, rows: int) -> None:
        self._marker.push("sample", rows)

    def receive_begins(self, step: int) -> None:
        self._marker.push("finish")

    def _pop(self) -> None:
        self._marker.pop()

    step_ends = schedule_ends = launch_ends = ops_end = sample_ends = receive_ends = _pop
