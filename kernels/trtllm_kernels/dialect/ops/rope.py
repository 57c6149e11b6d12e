"""Rotary position embedding, alone and fused with the write to the paged KV cache."""

from __future__ import annotations

from collections.abc import Iterator

from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.dialect.model_shape import ModelTensors
from trtllm_kernels.dialect.op_spec import ExampleCall, OpSpec, Trait, register
from trtllm_kernels.dialect.work import OpInStep, Work, elementwise, size

_ROTATION_FLOP = 3
"""Per element: two multiplications and an addition."""

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


def _rope_kv_write(op: OpInStep) -> Work:
    """Of the table a row per token is read, of the cache keys and values of the new tokens written. In place, what passes through unchanged
    stays where it is, and that part of q is not even read."""
    tokens, qkv, table, cache = op.step.tokens, op.outputs[0], op.tensors["cos_sin"], op.tensors["kv_cache"]
    heads, kv_heads, head_dim = op.integer("num_heads"), op.integer("num_kv_heads"), op.integer("head_dim")
    rotary_dim = size(table.shape[1])
    moved = op.bytes_without("cos_sin") + bytes_of(tokens * rotary_dim, table.dtype)
    if op.in_place:
        passing = head_dim - rotary_dim
        unread = heads * passing
        unwritten = unread + kv_heads * (passing + head_dim)
        moved -= bytes_of(tokens * (unread + unwritten), qkv.dtype)
    written = bytes_of(tokens * 2 * kv_heads * head_dim, cache.dtype)
    if scales := op.tensors.get("kv_scales"):
        written += bytes_of(tokens * 2 * kv_heads, scales.dtype)
    return Work(float(_ROTATION_FLOP * op.elements(qkv)), op.weight_bytes, float(written), moved)


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
