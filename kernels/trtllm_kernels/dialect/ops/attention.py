"""Causal attention: dense (the model as written) and over the paged KV cache (the model as run)."""

from __future__ import annotations

from collections.abc import Iterator

from trtllm_kernels.dialect.dtypes import bits_of, bytes_of
from trtllm_kernels.dialect.model_shape import ModelTensors
from trtllm_kernels.dialect.op_spec import ExampleCall, OpSpec, Trait, register
from trtllm_kernels.dialect.work import OpInStep, Work, size

_PAIR_FLOP = 4.0
"""Per (query token, key) pair and element of a head: a multiplication and an addition each for the score and for the value."""


def _wide(precision: str) -> str:
    """Attention multiplies 16-bit operands where the GEMMs multiply 8-bit ones."""
    return precision if bits_of(precision) > 8 else "fp16"


def _dense(op: OpInStep) -> Work:
    flop = _PAIR_FLOP * op.step.pairs * size(op.tensors["q"].shape[1])
    return Work(flop, 0.0, 0.0, op.activation_bytes, compute=_wide(op.precision))


register(
    OpSpec(
        "attention(Tensor q, Tensor k, Tensor v, Tensor query_start, int num_heads, int num_kv_heads, float scale) -> Tensor",
        "causal attention of a ragged batch without a cache; replaced by the compiler, so it has no lowering",
        work=_dense,
        traits=frozenset({Trait.COLUMNWISE}),
        kind="attention",
    )
)


_CODES = ("queries", "keys", "values")
"""Of prompts: queries, keys and values once more, as their attention multiplies them."""


def _paged(op: OpInStep) -> Work:
    """Of qkv the queries are read, of the cache every key and value once; what else there is of queries, keys and values repeats them."""
    step, qkv, cache = op.step, op.tensors["qkv"], op.tensors["kv_cache"]
    kv_heads, page_size, head_dim = (size(dim) for dim in cache.shape[3:])
    width = op.integer("num_heads") * head_dim
    lists = 4.0 * (step.pages(page_size) + 3 * step.sequences)
    decodes, codes = step.num_decodes, op.tensors.get("queries")
    queries = bytes_of(decodes * width, qkv.dtype) + bytes_of((step.tokens - decodes) * width, (codes or qkv).dtype)
    outside = queries + op.bytes_without(*op.tensors) + lists
    cached = float(step.kv_tokens * bytes_of(2 * kv_heads * head_dim, cache.dtype))
    if scales := op.tensors.get("kv_scales"):
        cached += float(step.kv_tokens * bytes_of(2 * kv_heads, scales.dtype))
    compute = codes.dtype if codes and decodes < step.sequences else _wide(op.precision)
    return Work(_PAIR_FLOP * step.pairs * width, 0.0, cached, outside, compute=compute)


def _paged_examples(t: ModelTensors) -> Iterator[ExampleCall]:
    qkv, lists, result = t.rows(t.qkv_width), (t.block_table, *t.sequences), t.heads_result
    attrs = {"layer": 0, **t.heads, "scale": t.model.head_dim**-0.5}
    yield (qkv, t.kv_cache, *lists, t.scale, t.scale, None, t.scale), (result,), attrs
    if t.quantized:
        cache, scales = t.int8_cache
        yield (qkv, cache, *lists, None, None, scales, t.scale), (result,), attrs


register(
    OpSpec(
        "paged_attention(Tensor qkv, Tensor kv_cache, Tensor block_table, Tensor seq_slots, Tensor query_start, Tensor kv_lens, int layer, "
        "int num_heads, int num_kv_heads, float scale, Tensor? k_scale=None, Tensor? v_scale=None, "
        "Tensor? kv_scales=None, Tensor? out_scale=None, Tensor? queries=None, Tensor? keys=None, Tensor? values=None) -> Tensor",
        "causal attention over the paged cache and this step's own keys and values",
        work=_paged,
        examples=_paged_examples,
        kind="attention",
        traits=frozenset({Trait.READS_CACHE, Trait.COLUMNWISE}),
        state=("kv_cache", "block_table", "kv_scales"),
        own_dtype=("kv_cache", "kv_scales", *_CODES),
        untuned=_CODES,
    )
)
