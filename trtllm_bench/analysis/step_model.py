"""How long a step should take on a GPU: counts over ceilings, kernel by kernel.

Each op takes the time its bytes need at the bandwidth its kind reaches, or its FLOP at the peak, joined by a 3-norm (near the ridge both
limits are felt: a GEMM of 256 rows is slower than either alone says), and a fixed time a kernel, in which the chip fills and drains. All
constants are in `step_models/<gpu>.toml` (`step_constants.py`), each with what it follows. They start from single kernels and are fitted to
whole runs (`fit.py`). Which kernels a step has is a rule here and not read from the plan's launches, which a plan compiled for counting
lacks; a test holds the two together. Constants of an earlier engine come with the rules of that engine, and a recorded run of a revision
that lacked something of today's is predicted without it (`StepConstants`).

Two things make a step less than its kernels in turn, both on Hopper alone. Kernels of ours begin before those before them end (PDL), which
hides most of the fixed time; cuBLASLt's, which take GEMMs of more tokens, begin when all before has ended. And decode attention runs
concurrently with whole prompts (`lowering/attention.py` says when): the shorter of the two then costs part of its time.

An op in which ranks exchange rows takes what was measured of such reductions (`link_curve.py`): on this machine where its links were
(`trtllm-bench ceilings`), else between two H200. The wait for the slowest rank, which comes on top, is from whole steps. All ranks of a
group have the same plan and the same step, so the model is of one of them. An exchange between hosts takes as long as NCCL over the GPUs'
network adapters (`host_links.py`). A pipeline's stages work on different steps at once; where each has one, a step takes as long as the
slowest stage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from trtllm_bench.analysis.host_links import HostLinks
from trtllm_bench.analysis.kernel_times import Codes, Kernel, KernelWork, clock_within
from trtllm_bench.analysis.link_curve import LinkCurve
from trtllm_bench.analysis.step_constants import StepConstants, constants_for
from trtllm_bench.errors import BenchError
from trtllm_bench.roofline.counts import OpCost, PlanCounter, StepShape
from trtllm_bench.roofline.hardware import LINK_ROW_ELEMENTS, Hardware
from trtllm_engines.compiler.plan import Op, ParallelLayout, Plan
from trtllm_engines.compiler.planning.select_tactics import equal_shares_in_attention, norms_in_products, rotations_in_attention
from trtllm_engines.quantization.scheme import WIDE
from trtllm_engines.runtime.buckets import LARGEST_GRAPH
from trtllm_kernels.dialect.dtypes import bytes_of, num_elements
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.group import ONE_SHOT_ROWS
from trtllm_kernels.dialect.ops import OP_SPECS, Trait
from trtllm_kernels.dialect.packing import is_packed
from trtllm_kernels.dialect.types import SKINNY_TOKENS, TensorSpec
from trtllm_kernels.lowering.call import capability
from trtllm_kernels.lowering.packed_triton import MMA_PADDED, MMA_TILE_TOKENS, mma_takes
from trtllm_kernels.lowering.skinny_gemm import IN_TRITON as SKINNY_IN_TRITON
from trtllm_kernels.lowering.skinny_gemm_cuda import CUDA_ROWS

CUDA_HEADS = (64, 128)
"""Heads whose prompts have attention in CUDA C++ (`lowering/prefill.py`)."""
PROMPT_TILE = 128
"""Queries of a tile of attention of prompts."""
CONCURRENT_TOKENS = 32
"""Prompt tokens a decode sequence up to which decode attention and prompts run concurrently (`lowering/attention.py`)."""
CONCURRENT_HEAD = (64, 128)
"""Least and largest head of which both find room."""
UNSPLIT_PROGRAMS = 4
"""Sequences times KV heads an SM from which decode attention is not split, as running concurrently asks."""
DECODE_FLOP_PER_BYTE = 64
"""Decode attention does up to 32 FLOP a byte of cache (eight heads a KV head, two products, codes of a byte); prompts do hundreds."""
WAITED_ROWS = 64
"""Rows of a reduction up to which ranks wait the longer for each other the more there are."""
PACKED_ARCH = "sm_90"
"""The architecture that our own kernels are for, among them those that multiply packed weights."""
TILE_TOKENS = 256
"""Tokens per tile of a GEMM over packed weights on Hopper; each tile decodes the weight once."""
WIDENED = "bf16"
"""Format into which packed weights, and fp8 inputs, are widened where no kernel multiplies packed weights."""
LONG_INT8_ROW = 8192
"""Bytes of an int8 row above which the skinny kernel takes single tokens too (`lowering/row_scaled.py`)."""
FILLED = 0.9
"""Share of the SMs that blocks of the skinny kernel must have for it to take one token, as `fills_sms` asks."""
PARTS = ("weights", "KV cache", "compute", "element-wise", "communication", "kernel overhead", "host")


@dataclass(frozen=True)
class StepTime:
    """Microseconds. `parts` sum to `total_us`; `device_us` is what the GPU is busy."""

    parts: Mapping[str, float]
    device_us: float
    host_us: float
    ops: Mapping[str, float] = field(default_factory=dict)
    """By role."""
    clock: float | None = None
    """Share of the boost clock that the power limit leaves; None where that is not known."""

    @property
    def total_us(self) -> float:
        return max(self.device_us, self.host_us)


class StepModel:
    """The step times of one plan on one GPU, one kernel per op."""

    def __init__(self, plan: Plan, hardware: Hardware, cuda_graphs: bool = True, constants: StepConstants | None = None) -> None:
        """`constants`: where they are not the GPU's own."""
        self.counter = PlanCounter(plan)
        self.hardware = hardware
        self._launches = len(plan.ops)
        self._graphs = cuda_graphs
        self._hopper = hardware.arch == PACKED_ARCH
        self.constants = constants or constants_for(hardware.name, quantized=is_quantized(plan))
        self._ops = {op.name: op for op in plan.ops}
        self._prompts_in_fp8 = plan.quant.context_attention != WIDE
        self._today = self._hopper and not self.constants.earlier
        lowered = plan.ops, self.counter.specs, hardware.arch, hardware.name, plan.outputs
        self._normed_to = norms_in_products(*lowered) if self._today and not self.constants.norms_apart else {}
        """Norms that products take themselves in steps of up to so many tokens, by name."""
        self._rotated_to = rotations_in_attention(*lowered) if self._today else {}
        """How many of a step's first tokens decode attention rotates and writes to the cache itself, by the op before it."""
        self._even_at = equal_shares_in_attention(*lowered[:-1]) if self._today and not self.constants.keys_by_tiles else {}
        """1 in steps in which decode attention has equal shares, by the name of the attention."""
        self._links = _links_of(hardware) or self.constants.all_reduce
        self.hosts = hosts_of(plan.parallel, hardware, self._links)
        self._limit_w = hardware.power_w * self.constants.power["held"] if self._hopper else 0.0

    @property
    def stages(self) -> int:
        return 1

    def step(self, shape: StepShape) -> StepTime:
        parts = dict.fromkeys(PARTS, 0.0)
        roles: dict[str, float] = {}
        norm, between = self.constants.step["norm"], self.constants.step["between_us"]
        computing: list[tuple[OpCost, float]] = []
        for cost, count in self.kernels(shape):
            exchange = self.communication_us(cost)
            parts["communication"] += count * exchange
            roles[cost.role] = roles.get(cost.role, 0.0) + count * exchange
            if cost.kind != "communication":
                computing.append((cost, count))
        eager = shape.phase != "decode" or shape.sequences > LARGEST_GRAPH or not self._graphs
        host = self.constants.step["host_us"] + (self._launches * self.constants.step["launch_us"] if eager else 0.0)
        times = self.work(computing, shape).times(self.constants, self.hardware, self._hopper)
        other = parts["communication"] + between
        clock = clock_within(times, self.constants, self._limit_w, other, host) if self._limit_w else None
        for (cost, count), memory, compute, fixed in zip(computing, *(part.tolist() for part in times.at(clock)), strict=True):
            joined = self._joined(memory, compute)
            share = memory**norm / joined**norm if joined else 0.0
            parts[_memory_part(cost)] += count * joined * share
            parts["compute"] += count * joined * (1 - share)
            parts["kernel overhead"] += count * fixed
            roles[cost.role] += count * (joined + fixed)
        parts["kernel overhead"] += between
        roles["between steps"] = between
        device = sum(parts.values())
        parts["host"] = max(0.0, host - device)
        return StepTime(parts, device, host, roles, clock)

    def work(self, kernels: Iterable[tuple[OpCost, float]], shape: StepShape) -> KernelWork:
        """Of some of a step's kernels. Attention of a step that has both phases decodes where it reads more than it computes."""
        programs = shape.num_decodes * self.counter.plan.kv_heads
        split = 2 * programs <= UNSPLIT_PROGRAMS * self.constants.concurrent["sms"]
        return KernelWork.of((self._kernel(cost, count, shape) for cost, count in kernels), self.hardware, split)

    def _kernel(self, cost: OpCost, count: float, shape: StepShape) -> Kernel:
        decodes = _decodes(cost, shape)
        even = decodes and self._even(cost, shape)
        pairs = tiles = 0
        if cost.kind == "attention" and self._today:
            pairs = shape.num_decodes * self.counter.plan.kv_heads if decodes else 0
            tiles = 0 if decodes else cost.rows
        return Kernel(cost, count, self._kind(cost), decodes, even, self._codes(cost), pairs, tiles)

    def _even(self, cost: OpCost, shape: StepShape) -> bool:
        return evaluate(self._even_at.get(cost.name, 0), shape.symbols) > 0

    def op_us(self, cost: OpCost) -> tuple[float, float, float]:
        """(memory, compute, fixed) microseconds of one kernel, at the boost clock but for its arithmetic, which is at the rate measured."""
        kernel = Kernel(cost, 1, self._kind(cost), codes=self._codes(cost))
        times = KernelWork.of([kernel], self.hardware).times(self.constants, self.hardware, self._hopper)
        memory, compute, fixed = (float(part[0]) for part in times.at(None))
        return memory, compute, fixed

    def communication_us(self, cost: OpCost) -> float:
        """Microseconds in which an op exchanges data with other ranks; 0 for one that does not."""
        plan, constants, links = self.counter.plan, self.constants.communication, self._links
        ranks = plan.parallel.tp
        if cost.op == "send":
            return links.send_us(cost.link_bytes) if self.hosts is None else self.hosts.send_us(cost.link_bytes, plan.stage.index)
        if cost.op == "receive":
            if self.hosts is not None:  # NCCL's receive waits for the send, and no copy follows
                return self.hosts.send_us(cost.activation_bytes / 2, plan.stage.index - 1)
            return self._rows_us(cost)
        if ranks == 1:
            return 0.0
        if self.hosts is not None and plan.parallel.group_way == "nccl":
            return self._over_hosts_us(cost, self.hosts)
        narrower = constants["one_shot_row_us"] * (plan.config.hidden_size - links.row_elements) / 1024
        if Trait.SAMPLES in OP_SPECS[cost.op].traits:  # one word per row: nothing but the fixed time
            return constants["wait_us"] + links.one_shot_us(0.0, ranks) - constants["one_shot_row_us"] * links.row_elements / 1024
        if cost.kind != "communication":
            return 0.0
        rows_bytes = cost.link_bytes / (ranks - 1)
        wait = self.wait_us(rows_bytes / bytes_of(plan.config.hidden_size, plan.quant.wide_dtype))
        if rows_bytes <= bytes_of(ONE_SHOT_ROWS * plan.config.hidden_size, plan.quant.wide_dtype):
            return wait + links.one_shot_us(rows_bytes, ranks) + narrower
        return wait + links.two_shot_us(rows_bytes, ranks)

    def _over_hosts_us(self, cost: OpCost, hosts: HostLinks) -> float:
        """NCCL's all-reduce, and the kernel that adds, normalises and quantizes after it. Sampling, with one word per row, counts as no
        bytes."""
        if Trait.SAMPLES in OP_SPECS[cost.op].traits:
            return self.constants.communication["wait_us"] + hosts.all_reduce_us(0.0)
        if cost.kind != "communication":
            return 0.0
        plan = self.counter.plan
        rows_bytes = cost.link_bytes / (plan.parallel.tp - 1)
        wait = self.wait_us(rows_bytes / bytes_of(plan.config.hidden_size, plan.quant.wide_dtype))
        return wait + hosts.all_reduce_us(rows_bytes) + (0.0 if cost.op == "all_reduce" else self._rows_us(cost))

    def _rows_us(self, cost: OpCost) -> float:
        memory, _, fixed = self.op_us(replace(cost, kind="rows"))
        return memory + fixed

    def wait_us(self, rows: float) -> float:
        """What a reduction of so many rows takes longer in a step than alone."""
        constants = self.constants.communication
        return constants["wait_us"] + constants["wait_row_us"] * min(rows, WAITED_ROWS)

    def kernels(self, shape: StepShape) -> Iterator[tuple[OpCost, float]]:
        """(cost, how many times its time a step has)."""
        for cost, count in self.counter.classes(shape):
            if evaluate(self._rotated_to.get(cost.name, 0), shape.symbols) == shape.tokens:
                continue
            if self._rows(cost, shape) <= self._normed_to.get(cost.name, 0):
                continue
            if cost.kind == "gemm" and _packed(operands := self._operands(cost)) and not self._reads_codes(cost, operands):
                yield from ((part, count) for part in self._widened(cost))
                continue
            if cost.kind != "attention" or shape.phase == "decode":
                yield cost, count
                continue
            kinds = (shape.decodes, shape.whole_prompts, shape.continued)
            decode, whole, continued = (self._attention(cost, some) if some.sequences else None for some in kinds)
            if whole is not None and self._in_triton(shape):
                whole = replace(whole, flop=whole.flop * self.constants.prefill_time["uncached_triton"])
            if whole is not None and self._prompts_in_fp8:
                whole = self._in_fp8(whole, "in_fp8")
            if decode is not None and whole is not None:
                shorter, longer = sorted((decode, whole), key=self._us)
                yield shorter, count * (self.constants.concurrent["shorter_share"] if self._concurrent(shape) else 1.0)
                yield longer, count
            elif (only := decode or whole) is not None:
                yield only, count
            if continued is not None and self._prompts_in_fp8:
                yield self._in_fp8(continued, "continued_in_fp8"), count
            elif continued is not None:
                cache = "cached_fp8" if self.counter.plan.kv_dtype == "fp8" else "cached_bf16"
                time = self.constants.prefill_time[f"{cache}_triton" if self._without_cuda() else cache]
                yield replace(continued, flop=continued.flop * time), count

    def _attention(self, cost: OpCost, part: StepShape) -> OpCost:
        """Of a part of a step; for prompts `rows` are the tiles of their queries, of all heads."""
        tiles = 0 if part.num_decodes else int((-(-part.query_lens // PROMPT_TILE)).sum()) * self.counter.plan.config.num_heads
        return replace(self.counter.op(cost.name, part), rows=tiles // self.counter.plan.parallel.tp)

    def _in_fp8(self, cost: OpCost, time: str) -> OpCost:
        """Attention of prompts in fp8, as 16-bit FLOP that take the same time: exponentials and the softmax bind it more than products do.
        Joules fall as time does (docs/facts/kernels-prefill-attention.md)."""
        return replace(cost, flop=cost.flop * self.constants.prefill_time[time], compute="fp16")

    def _operands(self, cost: OpCost) -> dict[str, TensorSpec]:
        return _operands_of(self.counter.specs, self._ops[cost.name])

    def _codes(self, cost: OpCost) -> Codes | None:
        if cost.kind != "gemm" or not self._reads_codes(cost, operands := self._operands(cost)):
            return None
        weight, scales = operands["weight"], operands.get("group_scale")
        form = f"{weight.dtype}_fp8" if operands["x"].dtype == "fp8" else weight.dtype
        times = math.ceil(cost.rows / (TILE_TOKENS if self._hopper else MMA_TILE_TOKENS))
        return Codes(form, times * num_elements(weight), times * num_elements(scales) if scales is not None else 0.0)

    def _reads_codes(self, cost: OpCost, operands: Mapping[str, TensorSpec]) -> bool:
        """Whether a GEMM multiplies a packed weight as it is: before Hopper only of few tokens (`lowering/packed_triton.py`), on a CPU
        none, whose reference widens it."""
        weight, scales = operands["weight"], operands.get("group_scale")
        if not _packed(operands) or self._hopper:
            return _packed(operands)
        if not self.hardware.arch:
            return False
        group = int(weight.shape[1]) // int(scales.shape[0]) if scales is not None else 0
        return cost.rows <= MMA_PADDED[-1] and mma_takes(operands["x"].dtype, weight.dtype, group, capability(self.hardware.arch))

    def _widened(self, cost: OpCost) -> Iterator[OpCost]:
        """The two kernels of a GEMM where none multiplies packed weights: one that widens them, and the GEMM over the result."""
        weight, x = self._operands(cost)["weight"], self._operands(cost)["x"]
        wide = bytes_of(num_elements(weight), WIDENED)
        more = bytes_of(cost.rows * int(x.shape[1]), WIDENED) if x.dtype == "fp8" else 0
        yield replace(cost, kind="rows", flop=0.0, activation_bytes=float(wide))
        yield replace(cost, op="linear", weight_bytes=float(wide), activation_bytes=cost.activation_bytes + more, compute=WIDENED)

    def _kind(self, cost: OpCost) -> str:
        if cost.kind != "gemm":
            return cost.kind
        operands = self._operands(cost)
        if self._reads_codes(cost, operands):
            return "packed" if self._hopper else "packed_mma"
        skinny = 0 if not self._hopper else SKINNY_IN_TRITON[-1] if Trait.SAMPLES in OP_SPECS[cost.op].traits else SKINNY_TOKENS
        if cost.rows == 1 and self._by_gemv(cost):
            return "gemv"
        if cost.rows <= skinny:
            return "skinny"
        return "row_scaled" if self._hopper and _by_rows(operands) else "gemm"

    def _by_gemv(self, cost: OpCost) -> bool:
        """Whether a GEMV takes a product of one token: the skinny kernel does where its blocks fill the SMs (`fills_sms` of
        `lowering/skinny_gemm.py`). Of a product that took an activation in, a few rows more or less do not matter."""
        columns = int(self.counter.specs[self._ops[cost.name].outputs[0]].shape[-1])
        filled = 2 * math.ceil(columns / CUDA_ROWS) >= FILLED * self.constants.concurrent["sms"]
        if cost.compute == "int8" and self._today:
            return bytes_of(int(self._operands(cost)["weight"].shape[1]), "int8") <= LONG_INT8_ROW
        return not self._today or not filled

    def _rows(self, cost: OpCost, shape: StepShape) -> int:
        """Of the op's first result."""
        return evaluate(self.counter.specs[self._ops[cost.name].outputs[0]].shape[0], shape.symbols)

    def _us(self, cost: OpCost) -> float:
        memory, compute, fixed = self.op_us(cost)
        return self._joined(memory, compute) + fixed

    def _joined(self, memory: float, compute: float) -> float:
        norm = self.constants.step["norm"]
        return float((memory**norm + compute**norm) ** (1 / norm))

    def _without_cuda(self) -> bool:
        return not self._hopper or self.counter.plan.config.head_dim not in CUDA_HEADS

    def _in_triton(self, shape: StepShape) -> bool:
        return self._without_cuda() or self._concurrent(shape)

    def _concurrent(self, shape: StepShape) -> bool:
        config, decodes = self.counter.plan.config, shape.num_decodes
        return (
            self._hopper
            and not self._prompts_in_fp8
            and CONCURRENT_HEAD[0] <= config.head_dim <= CONCURRENT_HEAD[1]
            and shape.tokens - decodes <= CONCURRENT_TOKENS * decodes
            and decodes * config.num_kv_heads >= UNSPLIT_PROGRAMS * self.constants.concurrent["sms"]
        )


class PipelineModel:
    """Of the stages of a pipeline. `step` is of the stage that takes longest, which the others wait for."""

    def __init__(self, stages: Sequence[StepModel]) -> None:
        self.models = tuple(stages)
        self.counter, self.hardware, self.constants = stages[0].counter, stages[0].hardware, stages[0].constants

    @property
    def stages(self) -> int:
        return len(self.models)

    @property
    def hosts(self) -> HostLinks | None:
        return self.models[0].hosts

    def step(self, shape: StepShape) -> StepTime:
        return max(self.each(shape), key=lambda time: time.total_us)

    def each(self, shape: StepShape) -> list[StepTime]:
        """Of one step, stage after stage."""
        return [model.step(shape) for model in self.models]


def step_model(plans: Sequence[Plan], hardware: Hardware, constants: StepConstants | None = None) -> StepModel | PipelineModel:
    """Of an engine: the plan of each stage."""
    models = [StepModel(plan, hardware, constants=constants) for plan in plans]
    return models[0] if len(models) == 1 else PipelineModel(models)


def is_quantized(plan: Plan) -> bool:
    """Whether the plan has GEMMs over packed weights or with a scale per row, whose kernels are not those of wide weights or plain fp8."""
    return any(_packed(operands) or _by_rows(operands) for operands in _products(plan))


def widens(plan: Plan, hardware: Hardware) -> bool:
    """Whether the plan has packed weights that `hardware` must widen before each GEMM of many tokens."""
    return hardware.arch != PACKED_ARCH and any(map(_packed, _products(plan)))


def _products(plan: Plan) -> Iterator[dict[str, TensorSpec]]:
    specs = {**plan.step_inputs, **plan.constants, **plan.weights, **plan.values}
    return (_operands_of(specs, op) for op in plan.ops if OP_SPECS[op.op].kind == "gemm")


def _operands_of(specs: Mapping[str, TensorSpec], op: Op) -> dict[str, TensorSpec]:
    """Specs of the op's input tensors, by argument name."""
    return {argument: specs[name] for argument, name in zip(OP_SPECS[op.op].tensors, op.inputs, strict=False) if name}


def _packed(operands: Mapping[str, TensorSpec]) -> bool:
    return is_packed(operands["weight"].dtype, operands["x"].dtype)


def _by_rows(operands: Mapping[str, TensorSpec]) -> bool:
    """Whether inputs and weight are codes of one format, with a scale per row of each."""
    x_scale = operands.get("x_scale")
    return operands["x"].dtype == operands["weight"].dtype and x_scale is not None and len(x_scale.shape) == 2


def _links_of(hardware: Hardware) -> LinkCurve | None:
    """Of this machine, where enough of it was measured."""
    if hardware.link_gpus < 2:
        return None
    curve = LinkCurve.of(hardware.link_gpus, LINK_ROW_ELEMENTS, hardware.all_reduce_us, hardware.peer_copy_bytes_per_s)
    return curve if min(len(curve.one_shot), len(curve.two_shot)) > 1 else None


def hosts_of(layout: ParallelLayout, hardware: Hardware, links: LinkCurve | None = None) -> HostLinks | None:
    """Links between the hosts of an engine; None for one on a single host. `links`: those within a host, by default those of two H200.
    Raises `BenchError` where it is unknown how hosts with such GPUs are connected."""
    if layout.nnodes == 1 or not hardware.arch:  # ranks on CPUs
        return None
    if not hardware.adapter_bytes_per_s:
        raise BenchError(f"what connects hosts with {hardware.name.upper()} GPUs is not known here; leave --nnodes out")
    within = links or constants_for(hardware.name).all_reduce
    return HostLinks(layout, hardware.adapter_bytes_per_s, within.copy_bytes_per_s)


def _decodes(cost: OpCost, shape: StepShape) -> bool:
    """Whether it is attention of sequences that decode, whose keys and values each serve one token."""
    return cost.kind == "attention" and shape.num_decodes > 0 and cost.flop < DECODE_FLOP_PER_BYTE * cost.kv_bytes


def _memory_part(cost: OpCost) -> str:
    return {"gemm": "weights", "attention": "KV cache"}.get(cost.kind, "element-wise")
