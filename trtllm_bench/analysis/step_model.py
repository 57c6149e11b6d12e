"""How long a step should take on a GPU: counts over ceilings, kernel by kernel.

Each op takes the time its bytes need at the bandwidth its kind reaches, or its FLOP at the peak, joined by a 3-norm (near the ridge both
limits are felt: a product at M = 256 is slower than either alone says), and a fixed time a kernel, in which the chip fills and drains. All
constants but two follow single kernels on an H100 (files are in `results/recorded/h100`, the rest in docs/facts/) and not whole steps, so
that a prediction says something. Microseconds, measured and by the constants:

    GEMV  one row, fp8, alone: gate_up 39.9, down 23.0, QKV 10.8, O 9.8, lm_head 344 (kernels-llama-3.1-8b-fp8.json); 39.8, 21.1, 10.5,
          7.8, 336 by 1.03 of bandwidth (which is that of a plain read; lm_head comes to 3.2 TB/s) + 2.5. Overlapping, one layer's four
          73.7, lm_head 325; 73.6, 335 by + 1.1 (profile-fp8-128-128-b1)
    few   2 to 128 rows in our kernels, alone at 64: gate_up 44.3, down 22.6, QKV 11.9, O 8.6, lm_head 366 (the same record); 42.9, 22.7,
          11.1, 8.3, 364 by 0.95 of bandwidth + 2.5. Chained, so overlapping: 41.9, 20.3, 10.4, 6.9, 366; 41.4, 21.2, 9.6, 6.8, 362 by
          + 1.0, the one constant from whole steps: TPOT of 8 to 128 sequences (llama-3.1-8b-fp8)
    GEMM  64 rows by cuBLASLt, a trial: 12.7, 9.6, 46.8, 24.2; 12.4, 9.3, 46.7, 24.8 by 0.87 of bandwidth + 3
    rows  2,048 rows in steps: 2.8 TB/s, 0.93 of bandwidth (profile-fp8-128-128-b2048). One row, overlapping: norms 1.2 and 1.4, rope 1.1
          (the profile of one sequence): 1.1
    attention  decode over 1,511 MB (profile-gptj-128-128-b1152), 992 MB (profile-fp8-128-1100-b432): 525.5, 342.4; 524, 346 by 0.95 of
               bandwidth + 4.5. Fresh prompts of 2,048: 586 TFLOP/s of 776 (kernels-prompts.json); where Triton has them, a trial of
               8 x 2048: 439. Prompts that continue, 2,048 and 8,192 tokens after 6,144: 639, 636 over bf16, 464, 479 over fp8
               (kernels-chunks-bf16.json, -fp8.json); where Triton has them, 2,048 tokens: 352, 278
    beside  a trial of the op: 381 sequences of 2,112 tokens and 3 prompts of 2,048: 667; 669. 2,030 of 192 and 16 of 128: 292; 293. 510 of
            1,500 and 1 of 1,000: 552; 555

    between a step's last kernel and the next one's first: 16 (the profile of one sequence)

So two things make a step less than its kernels in turn, both on Hopper alone. Kernels of ours begin before those before them end, which
hides most of the fixed time; cuBLASLt's, which take the products of more tokens, begin when all before has ended. And decode attention runs
beside whole prompts (`lowering/attention.py` says when): the shorter of the two then costs a third of its time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from trtllm_bench.roofline.counts import OpCost, PlanCounter, StepShape
from trtllm_bench.roofline.hardware import Hardware
from trtllm_engines.compiler.plan import Plan
from trtllm_engines.runtime.buckets import LARGEST_GRAPH
from trtllm_kernels.dialect.ops import OP_SPECS, Trait
from trtllm_kernels.dialect.types import SKINNY_TOKENS
from trtllm_kernels.lowering.skinny_gemm import IN_TRITON as SKINNY_IN_TRITON

BANDWIDTH_SHARE: Mapping[str, float] = {"gemv": 1.03, "few": 0.95, "gemm": 0.87, "attention": 0.95, "rows": 0.93}
PEAK_SHARE: Mapping[str, float] = {"gemm": 1.0, "attention": 586 / 776}
IN_TRITON = 586 / 439
"""Time of whole prompts where Triton has them: beside decode attention, other heads than `CUDA_HEADS`, before Hopper."""
CONTINUED: Mapping[tuple[bool, bool], float] = {
    (False, False): 586 / 637,
    (False, True): 586 / 472,
    (True, False): 586 / 352,
    (True, True): 586 / 278,
}
"""Time of prompts that continue, by (in Triton, over an fp8 cache)."""
CUDA_HEADS = (64, 128)
KERNEL_US: Mapping[str, float] = {"gemv": 2.5, "few": 2.5, "gemm": 3.0, "attention": 4.5, "rows": 2.5}
"""Fixed time a kernel, with the gap before the next."""
STEP_US = 16.0
"""Between one step's last kernel and the next one's first."""
OVERLAPPED_US: Mapping[str, float] = {"gemv": 1.1, "few": 1.0, "rows": 1.1}
"""The same where kernels overlap."""
BESIDE_SHARE = 1 / 3
"""Of the time of the shorter of decode attention and prompts, where they run side by side."""
BESIDE_TOKENS = 32
"""Prompt tokens a decode sequence up to which they do."""
BESIDE_PROGRAMS = 4 * 132
"""Sequences times KV heads from which decode attention is not split, as running beside asks."""
BESIDE_HEAD = (64, 128)
"""Least and largest head of which both find room."""
NORM = 3
LAUNCH_US = 4.7
"""Host time of a launch from Python, where a step is no CUDA graph."""
HOST_US = 250.0
"""Host time of a step besides: scheduling, inputs, tokens taken in."""
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
        self._hopper = hardware.arch == "sm_90"

    def step(self, shape: StepShape) -> StepTime:
        parts = dict.fromkeys(PARTS, 0.0)
        roles: dict[str, float] = {}
        for cost, count in self.kernels(shape):
            memory, compute, fixed = self.op_us(cost)
            joined = _joined(memory, compute)
            share = memory**NORM / joined**NORM if joined else 0.0
            parts[_memory_part(cost)] += count * joined * share
            parts["compute"] += count * joined * (1 - share)
            parts["kernel overhead"] += count * fixed
            roles[cost.role] = roles.get(cost.role, 0.0) + count * (joined + fixed)
        parts["kernel overhead"] += STEP_US
        roles["between steps"] = STEP_US
        device = sum(parts.values())
        eager = shape.phase != "decode" or shape.sequences > LARGEST_GRAPH or not self._graphs
        host = HOST_US + (self._launches * LAUNCH_US if eager else 0.0)
        parts["host"] = max(0.0, host - device)
        return StepTime(parts, device, host, roles)

    def op_us(self, cost: OpCost) -> tuple[float, float, float]:
        """(memory, compute, fixed) microseconds of one kernel."""
        kind = self._kind(cost)
        memory = cost.bytes / (self.hardware.bytes_per_s * BANDWIDTH_SHARE[kind]) * 1e6
        peak = self.hardware.flops(cost.compute) * PEAK_SHARE.get(cost.kind, 0.0)
        fixed = OVERLAPPED_US.get(kind, KERNEL_US[kind]) if self._hopper else KERNEL_US[kind]
        return memory, cost.flop / peak * 1e6 if peak else 0.0, fixed

    def kernels(self, shape: StepShape) -> Iterator[tuple[OpCost, float]]:
        """(cost, how many times its time a step has)."""
        for cost, count in self.counter.classes(shape):
            if cost.kind != "attention" or shape.phase == "decode":
                yield cost, count
                continue
            kinds = (shape.decodes, shape.whole_prompts, shape.continued)
            decode, whole, continued = (self.counter.op(cost.name, some) if some.sequences else None for some in kinds)
            if whole is not None and self._in_triton(shape):
                whole = replace(whole, flop=whole.flop * IN_TRITON)
            if decode is not None and whole is not None:
                shorter, longer = sorted((decode, whole), key=self._us)
                yield shorter, count * (BESIDE_SHARE if self._beside(shape) else 1.0)
                yield longer, count
            elif (only := decode or whole) is not None:
                yield only, count
            if continued is not None:
                key = self._without_cuda(), self.counter.plan.kv_dtype == "fp8"
                yield replace(continued, flop=continued.flop * CONTINUED[key]), count

    def _kind(self, cost: OpCost) -> str:
        if cost.kind != "gemm":
            return cost.kind
        few = 0 if not self._hopper else SKINNY_IN_TRITON[-1] if Trait.SAMPLES in OP_SPECS[cost.op].traits else SKINNY_TOKENS
        return "gemv" if cost.rows == 1 else "few" if cost.rows <= few else "gemm"

    def _us(self, cost: OpCost) -> float:
        memory, compute, fixed = self.op_us(cost)
        return _joined(memory, compute) + fixed

    def _without_cuda(self) -> bool:
        return not self._hopper or self.counter.plan.config.head_dim not in CUDA_HEADS

    def _in_triton(self, shape: StepShape) -> bool:
        return self._without_cuda() or self._beside(shape)

    def _beside(self, shape: StepShape) -> bool:
        config, decodes = self.counter.plan.config, shape.num_decodes
        return (
            self._hopper
            and BESIDE_HEAD[0] <= config.head_dim <= BESIDE_HEAD[1]
            and shape.tokens - decodes <= BESIDE_TOKENS * decodes
            and decodes * config.num_kv_heads >= BESIDE_PROGRAMS
        )


def _joined(memory: float, compute: float) -> float:
    return float((memory**NORM + compute**NORM) ** (1 / NORM))


def _memory_part(cost: OpCost) -> str:
    return {"gemm": "weights", "attention": "KV cache"}.get(cost.kind, "element-wise")
