"""Rotary position embedding, alone and fused with the write to the paged KV cache."""

from __future__ import annotations

from collections.abc import Iterator

from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.dialect.model_shape import ModelTensors
from trtllm_kernels.dialect.op_spec import ExampleCall, OpSpec, Trait, register
from trtllm_kernels.dialect.work import OpInStep, Work, elementwise, size

_ROTATION_FLOP = 3
"""Per element: two multiplications and an addition."""
_INDEX_BYTES = 4

register(
    OpSpec(
        "rope(Tensor x, Tensor positions, Tensor cos_sin, int head_dim, bool interleaved) -> Tensor",
        "rotary position embedding of every head of x",
        work=elementwise(_ROTATION_FLOP),
        traits=frozenset({Trait.COLUMNWISE}),
        examples=lambda t: [((t.rows(t.q_width), t.ints("T"), t.cos_sin), (t.rows(t.q_width),), t.rotary)],
        own_dtype=("cos_sin",),
    )
)


def _rotated_bytes(op: OpInStep) -> int:
    """Per token: its row of qkv, in and out, that of the table, its position and its slot. In place, what passes through unchanged stays
    where it is, and that part of q is not even read."""
    qkv, table = op.outputs[0], op.tensors["cos_sin"]
    moved, rotary_dim = 2 * size(qkv.shape[1]), size(table.shape[1])
    if op.in_place:
        heads, kv_heads, head_dim = op.integer("num_heads"), op.integer("num_kv_heads"), op.integer("head_dim")
        passing = head_dim - rotary_dim
        unread = heads * passing
        unwritten = unread + kv_heads * (passing + head_dim)
        moved -= unread + unwritten
    return bytes_of(moved, qkv.dtype) + bytes_of(rotary_dim, table.dtype) + 2 * _INDEX_BYTES


def _write_work(op: OpInStep, moved: float) -> Work:
    """Of the cache, keys and values of the new tokens are written."""
    tokens, cache = op.step.tokens, op.tensors["kv_cache"]
    kv_heads, head_dim = op.integer("num_kv_heads"), op.integer("head_dim")
    written = bytes_of(tokens * 2 * kv_heads * head_dim, cache.dtype)
    if scales := op.tensors.get("kv_scales"):
        written += bytes_of(tokens * 2 * kv_heads, scales.dtype)
    return Work(float(_ROTATION_FLOP * op.elements(op.outputs[0])), op.weight_bytes, float(written), float(moved))


def _rope_kv_write(op: OpInStep) -> Work:
    return _write_work(op, op.step.tokens * _rotated_bytes(op))


def _rope_kv_write_quantize(op: OpInStep) -> Work:
    """Of prompts the whole row of qkv is read, and written as codes."""
    qkv, table, codes = op.outputs[0], op.tensors["cos_sin"], op.outputs[1]
    width = size(qkv.shape[1])
    of_prompt = bytes_of(width, qkv.dtype) + bytes_of(width, codes.dtype) + bytes_of(size(table.shape[1]), table.dtype) + 2 * _INDEX_BYTES
    decodes = op.step.num_decodes
    return _write_work(op, decodes * _rotated_bytes(op) + (op.step.tokens - decodes) * of_prompt)


def _rope_kv_write_examples(t: ModelTensors) -> Iterator[ExampleCall]:
    qkv, norm = t.rows(t.qkv_width), t.vector(t.model.head_dim) if t.model.qk_norm else None
    attrs = {"layer": 0, **t.heads, **t.rotary, "eps": 1e-6}
    yield (qkv, t.ints("T"), t.cos_sin, t.kv_cache, t.ints("T"), norm, norm, t.scale, t.scale, None), (qkv,), attrs
    if t.quantized:
        cache, scales = t.int8_cache
        yield (qkv, t.ints("T"), t.cos_sin, cache, t.ints("T"), norm, norm, None, None, scales), (qkv,), attrs


register(
    OpSpec(
        "rope_kv_write(Tensor qkv, Tensor positions, Tensor cos_sin, Tensor(a!) kv_cache, Tensor kv_slots, Tensor? q_norm, Tensor? k_norm, "
        "int layer, int num_heads, int num_kv_heads, int head_dim, bool interleaved, float eps, "
        "Tensor? k_scale=None, Tensor? v_scale=None, Tensor(b!)? kv_scales=None) -> Tensor",
        "normalizes (if asked) and rotates q and k, writes k and v to the cache",
        work=_rope_kv_write,
        examples=_rope_kv_write_examples,
        traits=frozenset({Trait.WRITES_CACHE, Trait.COLUMNWISE}),
        in_place="qkv",
        state=("kv_cache", "kv_scales"),
        own_dtype=("cos_sin", "kv_cache", "kv_scales"),
    )
)


def _rope_kv_write_quantize_examples(t: ModelTensors) -> Iterator[ExampleCall]:
    if not t.context_codes:
        return
    qkv, norm = t.rows(t.qkv_width), t.vector(t.model.head_dim) if t.model.qk_norm else None
    attrs = {"layer": 0, **t.heads, **t.rotary, "eps": 1e-6, "columns": t.columns}
    yield (
        (qkv, t.ints("T"), t.cos_sin, t.kv_cache, t.ints("T"), t.sequences[1], norm, norm, t.scale, t.scale),
        (qkv, *t.context_codes),
        attrs,
    )


register(
    OpSpec(
        "rope_kv_write_quantize(Tensor qkv, Tensor positions, Tensor cos_sin, Tensor(a!) kv_cache, Tensor kv_slots, "
        "Tensor query_start, Tensor? q_norm, Tensor? k_norm, int layer, int num_heads, int num_kv_heads, int head_dim, bool interleaved, "
        "float eps, int columns, Tensor k_scale, Tensor v_scale) -> (Tensor, Tensor, Tensor, Tensor)",
        "rope_kv_write, and what attention of prompts multiplies in fp8: queries, keys, and values transposed",
        work=_rope_kv_write_quantize,
        examples=_rope_kv_write_quantize_examples,
        traits=frozenset({Trait.WRITES_CACHE, Trait.COLUMNWISE}),
        in_place="qkv",
        state=("kv_cache",),
        own_dtype=("cos_sin", "kv_cache"),
    )
)
