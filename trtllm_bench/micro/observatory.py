"""Our kernels at the shapes that other engines' are published at, timed as those were.

An op is not invented for this: a model of one layer is compiled whose QKV product has the GEMM's N and K, or whose attention has the heads,
and its ops up to that one run in order, with the lowering, tactics and inputs an engine would have. It is then repeated as AIConfigurator's
collectors do (`trtllm_results.compare.published_ops`), in bursts, once with the work that theirs holds and once alone. All kernels are
compiled before the first is measured. Of each group the smallest shape is checked against its reference; the others run the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trtllm_bench.micro.bench import Bench, BoundOp, KernelCase, compile_cases, ops_until
from trtllm_bench.micro.results import is_right
from trtllm_bench.micro.run import coarsest, roof_us
from trtllm_bench.micro.timing import Bursts, StoppingRule, Timer, Timing, measure
from trtllm_bench.roofline.counts import StepShape
from trtllm_bench.roofline.hardware import Hardware
from trtllm_engines.compiler.plan import Op, Plan
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.presets import preset_config
from trtllm_kernels.dialect.ops import OP_SPECS, Trait
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.lowering import lower
from trtllm_results.compare.published_ops import OpBeside, OpShape

MOST_COPIES = 6
"""Of a weight, as in vLLM's and SGLang's collectors (TensorRT-LLM's takes up to five)."""
KV_HEADS = 8
"""Of the layer whose QKV product has a published N; the rest of N are query heads."""
HEAD_DIM, SMALL = 128, 256
_NORMED = "model.layers.0.input_layernorm"
"""What the QKV product reads."""
BATCH = 1
"""Runs between two looks at the noise."""


@dataclass(frozen=True)
class Group:
    """Shapes that one plan serves."""

    shapes: tuple[OpShape, ...]

    @property
    def family(self) -> str:
        return self.shapes[0].family

    @property
    def precision(self) -> str:
        return self.shapes[0].dtype.partition("/")[0]

    @property
    def kv_dtype(self) -> str:
        return self.shapes[0].dtype.partition("/")[2] or "auto"

    @property
    def last(self) -> str:
        return "linear" if self.family == "gemm" else "paged_attention"

    @property
    def compile_flags(self) -> Mapping[str, Any]:
        """A product is published without a norm: it does not take one itself where the norm's result is asked for."""
        return {"kv_dtype": self.kv_dtype, "mark_outputs": (_NORMED,) if self.family == "gemm" else ()}

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
    for group in groups:
        plan = compile_cases(group.config, group.precision, arch, group.cases, page_size, **group.compile_flags).plan
        ops = ops_until(plan, group.last)
        kernels += [kernel for op in ops for kernel in op.tactics[arch].kernels]
        if quantized(group.shapes[0]):
            x, *_ = ops[-1].inputs
            specs = [spec for _, spec in quantize_inputs(plan, ops[-1])]
            kernels += lower("quantize", specs, [plan.values[x]], {}, arch).kernels
    compile_many(kernels, arch, progress=progress)


def quantized(shape: OpShape) -> bool:
    """Whether the published latency holds a quantization of the op's input."""
    return shape.family == "gemm" and shape.dtype != "bf16"


def quantize_inputs(plan: Plan, product: Op) -> list[tuple[str, TensorSpec]]:
    """Name and specification of what a quantization before a product reads: activations in the wide type, and the product's scale."""
    named = dict(zip(OP_SPECS[product.op].tensors, product.inputs, strict=True))
    x, scale = named["x"], named["x_scale"]
    wide = TensorSpec(plan.values[x].shape, plan.quant.wide_dtype)
    return [(f"{x} in {wide.dtype}", wide), (scale, plan.weights[scale])]


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
    for group in groups:
        bench = Bench(group.config, group.precision, arch, group.cases, page_size, last=group.last, **group.compile_flags)
        for shape in group.shapes:
            bound, whole = parts_of(bench, shape)
            if shape is group.shapes[0]:
                error = bound.error()
                if not is_right(error, coarsest(bound, bound.memory[bound.op.outputs[0]])):
                    wrong.append(f"{shape.family} {shape.dtype} {shape.text}: differs from its reference by {error:.2%} (root mean square)")
            alone = _timing(bench, [bound], timer, rule)
            all_parts = alone if len(whole) == 1 else _timing(bench, whole, timer, rule)
            row = OpBeside(
                shape,
                ours_us=all_parts.mean_us,
                alone_us=alone.mean_us,
                theirs_us=published[shape],
                roof_us=roof_us(bound.cost, hardware),
                noise=all_parts.noise,
                slowed=all_parts.slowed or alone.slowed,
            )
            rows.append(row)
            tell(row)
        del bench
    return rows, wrong


def parts_of(bench: Bench, shape: OpShape) -> tuple[BoundOp, list[BoundOp]]:
    """The op at a shape, and it behind the work that the published latency holds too: a quantization of bf16 activations before an fp8
    product, rotation and cache write before attention, unless attention does them itself."""
    *before, bound = bench.ops(case_of(shape))
    if shape.family != "gemm":
        return bound, [*(part for part in before if Trait.WRITES_CACHE in OP_SPECS[part.op.op].traits and not part.idle), bound]
    if not quantized(shape):
        return bound, [bound]
    return bound, [bench.before(bound, "quantize", quantize_inputs(bench.plan, bound.op), bound.operand("x")), bound]


def _timing(bench: Bench, parts: Sequence[BoundOp], timer: Timer, rule: StoppingRule) -> Timing:
    chain = bench.loop(parts, MOST_COPIES)
    return measure(Bursts(timer), chain.run, "chained", rule).per(chain.calls)


def rule_of(noise: float, seconds: float) -> StoppingRule:
    return StoppingRule(noise=noise, batch=BATCH, seconds=seconds)
