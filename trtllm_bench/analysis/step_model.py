"""How long a step should take on a GPU: counts over ceilings, kernel by kernel.

Each op takes the time its bytes need at the bandwidth its kind reaches, or its FLOP at the peak, joined by a 3-norm (near the ridge both
limits are felt: a product at M = 256 is slower than either alone says), and a fixed time a kernel, in which the chip fills and drains. The
constants follow single kernels on an H100 (GEMV and decode attention: profiles, docs/facts.md; the others: trials that the tool did not
record), not fits to whole steps, so that a prediction says something.

    GEMM  fp8, 64 rows, four products of Llama-3.1-8B: 12.7, 9.6, 46.8, 24.2 us measured; 12.4, 9.3, 46.7, 24.8 by 0.87 of bandwidth + 3 us
    GEMV  one row, the same: 11.0, 8.4, 39.7, 21.9 us measured; 10.6, 7.8, 41.3, 21.8 by 0.97 of bandwidth + 2.2 us
    attention  decode over 1,511 MB (gptj-6b), 992 MB (llama-3.1-8b): 525.5, 342.4 us measured; 524, 346 by 0.95 of bandwidth + 4.5 us
               fresh prompts 8 x 2048: 439 TFLOP/s of 776
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trtllm_bench.analysis.counts import OpCost, PlanCounter, StepShape
from trtllm_bench.analysis.hardware import Hardware
from trtllm_engines.plan import Plan
from trtllm_engines.runtime.buckets import LARGEST_GRAPH

BANDWIDTH_SHARE: Mapping[str, float] = {"gemv": 0.97, "gemm": 0.87, "attention": 0.95, "rows": 0.75, "sample": 0.50}
PEAK_SHARE: Mapping[str, float] = {"gemm": 1.0, "attention": 439 / 776}
KERNEL_US: Mapping[str, float] = {"gemv": 2.2, "gemm": 3.0, "attention": 4.5, "rows": 2.5, "sample": 40.0}
"""Fixed time a kernel, with the gap before the next."""
NORM = 3
LAUNCH_US = 4.7
"""Host time of a launch from Python, where a step is no CUDA graph."""
HOST_US = 250.0
"""Host time of a step besides: scheduling, inputs, sampling's launches, tokens taken in."""
PARTS = ("weights", "KV cache", "compute", "element-wise", "kernel overhead", "host")


@dataclass(frozen=True)
class StepTime:
    """Microseconds. `parts` sum to `total_us`; `device_us` is what the GPU is busy."""

    parts: Mapping[str, float]
    device_us: float
    host_us: float
    ops: Mapping[str, float] = field(default_factory=dict)
    """By role."""

    @property
    def total_us(self) -> float:
        return max(self.device_us, self.host_us)


class StepModel:
    """Of one plan on one GPU, one kernel an op."""

    def __init__(self, plan: Plan, hardware: Hardware, cuda_graphs: bool = True) -> None:
        self.counter = PlanCounter(plan)
        self.hardware = hardware
        self._launches = len(plan.ops)
        self._graphs = cuda_graphs

    def step(self, shape: StepShape) -> StepTime:
        parts = dict.fromkeys(PARTS, 0.0)
        roles: dict[str, float] = {}
        for cost, count in self.counter.classes(shape):
            memory, compute, fixed = self.op_us(cost)
            joined = (memory**NORM + compute**NORM) ** (1 / NORM)
            share = memory**NORM / joined**NORM if joined else 0.0
            parts[_memory_part(cost)] += count * joined * share
            parts["compute"] += count * joined * (1 - share)
            parts["kernel overhead"] += count * fixed
            roles[cost.role] = roles.get(cost.role, 0.0) + count * (joined + fixed)
        device = sum(parts.values())
        eager = shape.phase != "decode" or shape.sequences > LARGEST_GRAPH or not self._graphs
        host = HOST_US + (self._launches * LAUNCH_US if eager else 0.0)
        parts["host"] = max(0.0, host - device)
        return StepTime(parts, device, host, roles)

    def op_us(self, cost: OpCost) -> tuple[float, float, float]:
        """(memory, compute, fixed) microseconds of one op."""
        kind = "sample" if cost.op == "sample" else "gemv" if cost.kind == "gemm" and cost.rows == 1 else cost.kind
        memory = cost.bytes / (self.hardware.bytes_per_s * BANDWIDTH_SHARE[kind]) * 1e6
        peak = self.hardware.flops(cost.compute) * PEAK_SHARE.get(cost.kind, 0.0)
        return memory, cost.flop / peak * 1e6 if peak else 0.0, KERNEL_US[kind]


def _memory_part(cost: OpCost) -> str:
    return {"gemm": "weights", "attention": "KV cache"}.get(cost.kind, "element-wise")
