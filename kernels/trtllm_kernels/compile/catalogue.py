"""Every kernel at the shapes it is used at: the ops of whole models with symbolic leading dimensions, as the compiler lowers them.

What the resource report lists and the compile tests hold to zero spills. Both dtype and model matter: registers grow with head_dim and
with the size of an element.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from trtllm_kernels.dialect.types import SAMPLING_WORDS, Attr, KernelSpec, TensorSpec
from trtllm_kernels.lowering import IN_PLACE, lower
from trtllm_kernels.samples import ModelShape

MODELS: Mapping[str, ModelShape] = {
    "llama-3.1-8b": ModelShape(4096, 14336, 32, 8, 128, 128, vocab=128256, layers=32),
    "llama-2-7b": ModelShape(4096, 11008, 32, 32, 128, 128, vocab=32000, layers=32),
    "gptj-6b": ModelShape(4096, 16384, 16, 16, 256, 64, interleaved=True, vocab=50400, layers=28),
    "smollm2-135m": ModelShape(576, 1536, 9, 3, 64, 64, vocab=49152, layers=30),
    "qwen3-8b": ModelShape(4096, 12288, 32, 8, 128, 128, qk_norm=True, vocab=151936, layers=36),
}


@dataclass(frozen=True)
class OpShape:
    op: str
    inputs: tuple[TensorSpec | None, ...]
    outputs: tuple[TensorSpec, ...]
    attrs: Mapping[str, Attr]

    def kernels(self, arch: str) -> tuple[KernelSpec, ...]:
        """In place where there are such, as engines have them."""
        return lower(self.op, self.inputs, self.outputs, self.attrs, arch, in_place=self.op in IN_PLACE).kernels


def ops_of(model: ModelShape, precision: str, *, max_seq_len: int = 4096, max_batch_size: int = 256) -> Iterator[OpShape]:
    """Every op that lowers, at a model's shapes. Precision `fp8`: products, what feeds them and the cache are fp8, the rest bf16."""
    fp8 = precision == "fp8"
    dtype = "bf16" if fp8 else precision
    scale = TensorSpec((1,), "fp32") if fp8 else None

    def ints(*shape: int | str) -> TensorSpec:
        return TensorSpec(shape, "int32")

    def rows(width: int, count: str = "T") -> TensorSpec:
        return TensorSpec((count, width), dtype)

    def codes(*shape: int | str) -> TensorSpec:
        return TensorSpec(shape, precision)

    def vector(n: int) -> TensorSpec:
        return TensorSpec((n,), dtype)

    h, i, d = model.hidden, model.intermediate, model.head_dim
    hidden, weight, inner, eps = rows(h), vector(h), rows(i), {"eps": 1e-5}
    q_width, kv_width = model.heads * d, model.kv_heads * d
    qkv = rows(q_width + 2 * kv_width)
    table = TensorSpec((max_seq_len, model.rotary_dim), "fp32")
    cache = codes(model.layers, 1, 2, model.kv_heads, model.page_size, d)
    blocks = ints(max_batch_size + 1, -(-max_seq_len // model.page_size))
    norm = vector(d) if model.qk_norm else None
    heads: dict[str, Attr] = {"num_heads": model.heads, "num_kv_heads": model.kv_heads}
    rotary: dict[str, Attr] = {"head_dim": d, "interleaved": model.interleaved}
    step = (ints("R"), ints("R + 1"), ints("R"))

    yield OpShape("embedding", (ints("T"), TensorSpec((model.vocab, h), dtype)), (hidden,), {})
    yield OpShape("rms_norm", (hidden, weight, scale), (codes("T", h),), eps)
    yield OpShape("add_rms_norm", (hidden, hidden, weight, None, scale), (codes("T", h), hidden), eps)
    yield OpShape("layer_norm", (hidden, weight, weight, scale), (codes("T", h),), eps)
    yield OpShape("add_layer_norm", (hidden, hidden, weight, weight, hidden, scale), (codes("T", h), hidden), eps)
    yield OpShape("linear", (codes("T", h), codes(q_width + 2 * kv_width, h), vector(q_width + 2 * kv_width), scale, scale), (qkv,), {})
    yield OpShape("linear", (codes("T", i), codes(h, i), None, scale, scale), (hidden,), {})
    yield OpShape("linear", (codes("T", i), codes(h, i), None, scale, scale, hidden), (hidden,), {})
    yield OpShape("linear", (codes("T", i), codes(h, i), vector(h), scale, scale, hidden), (hidden,), {})
    state = (ints("S", SAMPLING_WORDS), ints("S"), ints(1), TensorSpec((max_batch_size,), "int64"), ints(max_batch_size + 1))
    head = (rows(h, "S"), TensorSpec((model.vocab, h), dtype), None, *state, ints(4, max_batch_size))
    yield OpShape("linear_sample", head, (rows(model.vocab, "S"), ints("S")), {})
    yield OpShape("gate_up_silu", (codes("T", h), codes(2 * i, h), scale, scale, scale), (codes("T", i),), {})
    yield OpShape("linear_gelu", (codes("T", h), codes(i, h), vector(i), scale, scale, scale), (codes("T", i),), {})
    yield OpShape("silu_mul", (inner, inner), (inner,), {})
    yield OpShape("silu_mul_packed", (rows(2 * i), scale), (codes("T", i),), {})
    yield OpShape("gelu", (inner, scale), (codes("T", i),), {})
    yield OpShape("add", (hidden, hidden), (hidden,), {})
    yield OpShape("gather_rows", (hidden, ints("S")), (rows(h, "S"),), {})
    yield OpShape("split", (qkv,), (rows(q_width), rows(kv_width)), {"sizes": [q_width, kv_width]})
    yield OpShape("prepare_step", (ints("T"), *step, ints(max_batch_size + 1), blocks), (ints("T"),) * 3, {"page_size": model.page_size})
    yield OpShape("rope", (rows(q_width), ints("T"), table), (rows(q_width),), rotary)
    write: dict[str, Attr] = {"layer": 0, **heads, **rotary, "eps": 1e-6}
    yield OpShape("rope_kv_write", (qkv, ints("T"), table, cache, ints("T"), norm, norm, scale, scale), (qkv,), write)
    attend: dict[str, Attr] = {"layer": 0, **heads, "scale": d**-0.5}
    yield OpShape("paged_attention", (qkv, cache, blocks, *step, scale, scale, scale), (codes("T", q_width),), attend)
    if scale is not None:
        yield OpShape("quantize", (hidden, scale), (codes("T", h),), {})
        by_row = TensorSpec(("T", 1), "fp32")
        yield OpShape("quantize_rows", (hidden,), (codes("T", h), by_row), {})
        yield OpShape("linear", (codes("T", i), codes(h, i), None, by_row, TensorSpec((h, 1), "fp32")), (hidden,), {})


def kernels_of(name: str, precision: str, arch: str, page_size: int = 32) -> dict[str, KernelSpec]:
    """The kernels of a model of `MODELS`, by key."""
    return {spec.key: spec for op in ops_of(replace(MODELS[name], page_size=page_size), precision) for spec in op.kernels(arch)}
