"""Our kernels at the shapes that other engines' are published at, timed as those were.

An op is not invented for this: a model of one layer is compiled whose QKV product has the GEMM's N and K, or whose attention has the heads,
and its ops up to that one run in order, with the lowering, tactics and inputs an engine would have. It is then repeated as AIConfigurator's
collectors do (`trtllm_results.compare.published_ops`), in bursts, once alone and once with each work that another engine's call of it
holds. All kernels are compiled before the first is measured. Of each group the smallest shape is checked against its reference; the others
run the same kernels.

Two works are of models other than the group's own. A scale for every row is what precision fp8_rowwise has, so a second plan has its
product. The write to the cache without rotation is the same op with a table of no dimensions. Where attention rotates and writes the cache
itself, as in decoding, its one kernel is all three works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch

from trtllm_bench.micro.bench import Bench, lower_in, op_reading
from trtllm_bench.micro.bound_op import BoundOp
from trtllm_bench.micro.cases import KernelCase, compile_cases, ops_until
from trtllm_bench.micro.results import is_right
from trtllm_bench.micro.run import roof_us
from trtllm_bench.micro.timing import Bursts, StoppingRule, Timer, Timing, measure
from trtllm_bench.roofline.counts import StepShape
from trtllm_bench.roofline.hardware import Hardware
from trtllm_engines.compiler.plan import Op, Plan
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.presets import preset_config
from trtllm_kernels.dialect.ops import OP_SPECS, Trait
from trtllm_kernels.dialect.types import Attr, Lowered, TensorSpec
from trtllm_results.compare.published_ops import OpBeside, OpShape, Work

MOST_COPIES = 6
"""Of a weight, as in vLLM's and SGLang's collectors (TensorRT-LLM's takes up to five)."""
KV_HEADS = 8
"""Of the layer whose QKV product has a published N; the rest of N are query heads."""
HEAD_DIM, SMALL = 128, 256
_NORMED = "model.layers.0.input_layernorm"
"""What the QKV product reads."""
_TABLE, _STILL = "cos_sin", "cosines and sines of no dimension"
BATCH = 1
"""Runs between two looks at the noise."""


@dataclass(frozen=True)
class Group:
    """Shapes that one plan serves."""

    shapes: tuple[OpShape, ...]
    by_row: bool = False
    """Whether its fp8 product has a scale for each row of activations and weights, rather than one each."""

    @property
    def family(self) -> str:
        return self.shapes[0].family

    @property
    def precision(self) -> str:
        return "fp8_rowwise" if self.by_row else self.shapes[0].dtype.partition("/")[0]

    @property
    def kv_dtype(self) -> str:
        return self.shapes[0].dtype.partition("/")[2] or "auto"

    @property
    def last(self) -> str:
        return "linear" if self.family == "gemm" else "paged_attention"

    @property
    def compile_flags(self) -> Mapping[str, Any]:
        """A product is published without a norm: it does not take one itself where the norm's result is asked for, nor does one with a
        scale a row. Attention of prompts multiplies fp8 where the cache is fp8, as theirs does (`docs/observatory.md`)."""
        flags: dict[str, Any] = {"kv_dtype": self.kv_dtype, "mark_outputs": (_NORMED,) if self.family == "gemm" and not self.by_row else ()}
        return flags | ({"context_attention": "fp8"} if self.family == "prompt attention" and self.kv_dtype == "fp8" else {})

    @property
    def config(self) -> ModelConfig:
        """Llama 3.1's, of one layer, with nothing of any size but the op's own tensors."""
        base = replace(preset_config("llama-3.1-8b"), name="synthetic", num_layers=1, intermediate_size=SMALL, vocab_size=SMALL)
        if self.family == "gemm":
            n, k = self.shapes[0].sizes
            heads = n // HEAD_DIM - 2 * KV_HEADS
            return replace(base, hidden_size=k, num_heads=heads, num_kv_heads=KV_HEADS, head_dim=HEAD_DIM)
        heads, kv_heads, head_dim, _ = self.shapes[0].sizes
        rope = replace(base.rope, rotary_dim=head_dim)
        return replace(base, hidden_size=SMALL, num_heads=heads, num_kv_heads=kv_heads, head_dim=head_dim, rope=rope)

    @property
    def cases(self) -> list[KernelCase]:
        return [case_of(shape) for shape in self.shapes]


def groups_of(shapes: Sequence[OpShape]) -> list[Group]:
    """By family, sizes but the length, and dtype; smallest shape first."""
    groups: dict[tuple[Any, ...], list[OpShape]] = {}
    for shape in shapes:
        groups.setdefault((shape.family, shape.sizes if shape.family == "gemm" else shape.sizes[:3], shape.dtype), []).append(shape)
    return [Group(tuple(sorted(group, key=lambda one: (one.size, one)))) for group in groups.values()]


def case_of(shape: OpShape) -> KernelCase:
    """The step that has this op: decoding sequences have `length` tokens in the cache before their new one, as TensorRT-LLM's have."""
    if shape.family == "gemm":
        return KernelCase("prefill", StepShape.prefill(1, shape.rows))
    length = shape.sizes[3]
    if shape.family == "decode attention":
        return KernelCase("decode", StepShape.decode(shape.rows, length + 1))
    return KernelCase("prefill", StepShape.prefill(shape.rows, length))


def compile_groups(groups: Sequence[Group], arch: str, page_size: int, progress: Callable[[int, int], None]) -> None:
    """Fills the kernel cache for all groups, on all cores."""
    from trtllm_kernels.compile.pool import compile_many

    kernels = []
    for group in (*groups, *(by_row(group) for group in groups if quantized(group.shapes[0]))):
        plan = compile_cases(group.config, group.precision, arch, group.cases, page_size, **group.compile_flags).plan
        ops = ops_until(plan, group.last)
        lowered = [op.tactics[arch] for op in ops]
        if quantized(group.shapes[0]):
            lowered.append(lowered_quantization(group, plan, ops[-1], arch))
        if group.family == "prompt attention":
            lowered += still_writes(plan, arch)
        kernels += [kernel for one in lowered for kernel in one.kernels]
    compile_many(kernels, arch, progress=progress)


def lowered_quantization(group: Group, plan: Plan, product: Op, arch: str) -> Lowered:
    name, inputs, outputs, attrs = quantization(group, plan, product)
    return lower_in(plan, Op("", name, tuple(inputs), outputs, attrs), arch, inputs)


def still_writes(plan: Plan, arch: str) -> list[Lowered]:
    """What writes a plan's keys and values to the cache without rotation."""
    table = TensorSpec((plan.profile.max_seq_len, 0), "fp32")
    return [lower_in(plan, op_reading(op, _TABLE, _STILL), arch, {_STILL: table}) for op in plan.ops if writes_cache(op)]


def by_row(group: Group) -> Group:
    """The same products with a scale for each row."""
    return replace(group, by_row=True)


def quantized(shape: OpShape) -> bool:
    """Whether the published latency holds a quantization of the op's input."""
    return shape.family == "gemm" and shape.dtype != "bf16"


def writes_cache(op: Op) -> bool:
    return Trait.WRITES_CACHE in OP_SPECS[op.op].traits


def quantization(group: Group, plan: Plan, product: Op) -> tuple[str, dict[str, TensorSpec], tuple[str, ...], dict[str, Attr]]:
    """The op that makes a product's input of activations in the wide type: its kind, inputs, results and attributes. With a scale a row it
    makes the scales too, otherwise it reads the product's."""
    named = dict(zip(OP_SPECS[product.op].tensors, product.inputs, strict=True))
    x, scale = named["x"], named["x_scale"]
    wide = TensorSpec(plan.values[x].shape, plan.quant.wide_dtype)
    inputs = {f"{x} in {wide.dtype}": wide}
    if group.by_row:
        return "quantize_rows", inputs, (x, scale), {"dtype": "fp8"}
    return "quantize", inputs | {scale: plan.weights[scale]}, (x,), {}


def run(
    groups: Sequence[Group],
    published: Mapping[OpShape, Mapping[str, float]],
    arch: str,
    timer: Timer,
    rule: StoppingRule,
    hardware: Hardware | None,
    tell: Callable[[OpBeside], None] = lambda one: None,
    page_size: int = 32,
) -> tuple[list[OpBeside], list[str]]:
    """Ours beside theirs at every shape of the groups, and a sentence for each check that failed. Raises `BenchError`, `KernelError`."""
    rows: list[OpBeside] = []
    wrong: list[str] = []

    def bench_of(group: Group) -> Bench:
        return Bench(group.config, group.precision, arch, group.cases, page_size, last=group.last, **group.compile_flags)

    def check(shape: OpShape, bound: BoundOp) -> None:
        error = bound.error()
        if not is_right(error, bound.coarsest):
            wrong.append(f"{shape.family} {shape.dtype} {shape.text}: {bound.op.op} differs from its reference by {error:.2%} (rms)")

    for group in groups:
        row_scales: dict[OpShape, Timing] = {}
        if quantized(group.shapes[0]):
            bench = bench_of(by_row(group))
            for shape in group.shapes:
                parts = works_of(by_row(group), bench, shape)["row scales"]
                if shape is group.shapes[0]:
                    check(shape, parts[-1])
                row_scales[shape] = _timing(bench, parts, timer, rule)
            del bench
        bench = bench_of(group)
        for shape in group.shapes:
            works = works_of(group, bench, shape)
            (bound,) = works["alone"]
            if shape is group.shapes[0]:
                check(shape, bound)
            timings: dict[Work, Timing] = {work: _timing(bench, parts, timer, rule) for work, parts in works.items()}
            if shape in row_scales:
                timings["row scales"] = row_scales[shape]
            most = max(timings, key=get_args(Work).index)
            row = OpBeside(
                shape,
                ours_us=timings[most].mean_us,
                alone_us=timings["alone"].mean_us,
                theirs_us=published[shape],
                here_us=_theirs_here(bench, bound, timer, rule),
                between_us={work: timing.mean_us for work, timing in timings.items() if work not in ("alone", most)},
                roof_us=roof_us(bound.cost, hardware),
                noise=max(timing.noise for timing in timings.values()),
                slowed=any(timing.slowed for timing in timings.values()),
            )
            rows.append(row)
            tell(row)
        del bench
    return rows, wrong


def works_of(group: Group, bench: Bench, shape: OpShape) -> dict[Work, list[BoundOp]]:
    """The ops of each work at a shape, in order. Attention that rotates and writes the cache itself is `alone`."""
    *before, bound = bench.ops(case_of(shape))
    if shape.family == "gemm":
        if not quantized(shape):
            return {"alone": [bound]}
        name, inputs, outputs, attrs = quantization(group, bench.plan, bound.op)
        parts = [bench.before(bound, name, inputs, outputs, attrs), bound]
        return {"row scales": parts} if group.by_row else {"alone": [bound], "given scale": parts}
    writes = [part for part in before if writes_cache(part.op) and not part.idle]
    if not writes:
        return {"alone": [bound]}
    table = torch.empty(bench.plan.profile.max_seq_len, 0, device=bench.device)
    still = [bench.reading(part, _TABLE, _STILL, table) for part in writes]
    return {"alone": [bound], "cache write": [*still, bound], "rotation": [*writes, bound]}


def _theirs_here(bench: Bench, bound: BoundOp, timer: Timer, rule: StoppingRule) -> float | None:
    """What all three engines call for a product in bf16, torch's, timed on this machine."""
    if bound.cost.kind != "gemm" or bound.cost.compute != "bf16":
        return None
    chain = bench.loop_of(torch.nn.functional.linear, bound, MOST_COPIES)
    return measure(Bursts(timer), chain.run, "chained", rule).per(chain.calls).mean_us


def _timing(bench: Bench, parts: Sequence[BoundOp], timer: Timer, rule: StoppingRule) -> Timing:
    chain = bench.loop(parts, MOST_COPIES)
    return measure(Bursts(timer), chain.run, "chained", rule).per(chain.calls)


def rule_of(noise: float, seconds: float) -> StoppingRule:
    return StoppingRule(noise=noise, batch=BATCH, seconds=seconds)
