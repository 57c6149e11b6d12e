"""Lowerings of rotary position embedding, alone and with the write of keys and values to the cache."""

from __future__ import annotations

import math
from collections.abc import Mapping

from trtllm_kernels.dialect.expr import ceil_div
from trtllm_kernels.dialect.types import Dim, Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import F32, I32, Builder, OpCall, Parameter, next_power_of_2, power_of_2
from trtllm_kernels.lowering.registry import lowers
from trtllm_kernels.lowering.space import DECODE, PREFILL, Choice, grid, head_space


def _rotary_half(call: OpCall, head_dim: int) -> int:
    """Half of the dimensions of a head that rotate; 0 where none does, which only the ops that write the cache take."""
    rotary_dim = call["cos_sin"].size(1)
    if not rotary_dim and call.op != "rope":
        return 0
    if rotary_dim > head_dim:
        raise KernelError(f"rotary dimension {rotary_dim} is larger than the head dimension {head_dim}")
    return power_of_2("rotary dimension", rotary_dim, 4, 256) // 2


def _tile_space(call: OpCall) -> tuple[Choice, ...]:
    return (Choice("tokens", grid(block_t=(1, 2, 4, 8), warps=(1, 2, 4)), (DECODE, PREFILL)),)


def _block_space(call: OpCall) -> tuple[Choice, ...]:
    shared = math.gcd(call.integer("num_heads"), call.integer("num_kv_heads"))
    heads = tuple(count for count in (1, 2, 4, 8) if shared % count == 0)
    blocks = grid(context_block_t=(16, 32, 64), context_block_h=heads, context_warps=(2, 4, 8))
    return (Choice("tokens", grid(block_t=(1, 2, 4, 8), warps=(1, 2, 4))), Choice("blocks of prompts", blocks, (PREFILL,)))


@lowers("rope", space=head_space)
def rope(call: OpCall) -> Lowered:
    x, head_dim = call["x"], call.integer("head_dim")
    power_of_2("head dimension", head_dim, 16, 256)
    num_heads = x.size(1) // head_dim
    tuned = call.tuned(block_h=min(8, next_power_of_2(num_heads)), warps=2)
    builder = Builder(call)
    builder.launch(
        "rope.rope",
        {"X": x, "Positions": call["positions"], "CosSin": call["cos_sin"], "Y": call.outputs[0]},
        grid=(x.shape[0], ceil_div(num_heads, tuned["block_h"])),
        constexprs={
            "HEADS": num_heads,
            "D": head_dim,
            "HALF": _rotary_half(call, head_dim),
            "INTERLEAVED": bool(call.attrs["interleaved"]),
            "BLOCK_H": tuned["block_h"],
        },
        warps=tuned["warps"],
    )
    return builder.finish()


@lowers("rope_kv_write", space=_tile_space)
def rope_kv_write(call: OpCall) -> Lowered:
    builder = Builder(call)
    _launch(builder, call.tuned(**_tile(call)), call["qkv"].shape[0])
    return builder.finish()


@lowers("rope_kv_write_quantize", space=_block_space, capabilities=(90,))
def rope_kv_write_quantize(call: OpCall) -> Lowered:
    """Codes of prompts, and the rotation of decoding sequences that attention does not rotate itself."""
    qkv, cache = call["qkv"], call["kv_cache"]
    num_heads, kv_heads, head_dim, half = _heads(call)
    queries, keys, values = call.outputs[1:]
    of_prompts = max(count for count in (1, 2, 3, 4) if math.gcd(num_heads, kv_heads) % count == 0)
    tuned = call.tuned(**_tile(call), context_block_t=32, context_block_h=of_prompts, context_warps=4)
    block_t, block_h, tokens = tuned["context_block_t"], tuned["context_block_h"], qkv.shape[0]
    if math.gcd(num_heads, kv_heads) % block_h:
        raise KernelError(f"context_block_h is {block_h}; it must divide {num_heads} query heads and {kv_heads} KV heads")
    builder = Builder(call)
    sequences = f"{call['query_start'].shape[0]} - 1"
    of_step, of_sequences = f"ceil_div({tokens}, {block_t}) - D // {block_t}", f"({tokens} - D) // {block_t} + {sequences} - D"
    builder.launch(
        "rope.rope_kv_write_quantize",
        {
            **_sources(call),
            "QueryStart": call["query_start"],
            "KScale": call["k_scale"],
            "VScale": call["v_scale"],
            "Queries": queries,
            "Keys": keys,
            "Values": values,
            "eps": F32(call.number("eps")),
            "first_token": I32("D"),
            "num_tokens": I32(tokens),
            "num_seqs": I32(sequences),
        },
        grid=(f"max({of_step}, {of_sequences}) * min(1, {tokens} - D)", (num_heads + 2 * kv_heads) // block_h),
        constexprs={
            "HQ": num_heads,
            "HKV": kv_heads,
            "D": head_dim,
            "HALF": half,
            "PAGE": cache.size(4),
            "COLUMNS": values.size(1),
            "INTERLEAVED": bool(call.attrs["interleaved"]),
            "QK_NORM": call.get("q_norm") is not None,
            "BLOCK_T": block_t,
            "BLOCK_H": block_h,
        },
        warps=tuned["context_warps"],
    )
    _launch(builder, tuned, "D")
    return builder.finish()


def _heads(call: OpCall) -> tuple[int, int, int, int]:
    """(query heads, KV heads, dimensions of a head, half of those that rotate)"""
    head_dim = call.integer("head_dim")
    power_of_2("head dimension", head_dim, 16, 256)
    half = _rotary_half(call, head_dim)
    if call.get("q_norm") is not None and 2 * half != head_dim:
        raise KernelError("QK norm with partial rotary embedding is not supported by the GPU kernels")
    return call.integer("num_heads"), call.integer("num_kv_heads"), head_dim, half


def _sources(call: OpCall) -> dict[str, Parameter]:
    """The first parameters of both kernels, in order."""
    qkv = call["qkv"]
    return {
        "QKV": qkv,
        "Positions": call["positions"],
        "CosSin": call["cos_sin"] if call["cos_sin"].size(1) else qkv,
        "Cache": call["kv_cache"].slice(call.integer("layer")),
        "KvSlots": call["kv_slots"],
        "QNorm": call.get("q_norm") or qkv,
        "KNorm": call.get("k_norm") or qkv,
    }


def _tile(call: OpCall) -> dict[str, int]:
    """16 rows of heads, of which a thread of two warps has 64 bytes under way."""
    _, kv_heads, head_dim, _ = _heads(call)
    block_h = min(8, next_power_of_2(kv_heads))
    return {"block_t": 16 // block_h, "block_h": block_h, "warps": 2 if head_dim <= 128 else 4}


def _launch(builder: Builder, tuned: Mapping[str, int], end: Dim) -> None:
    """Rotates tokens up to `end`, from the first on that attention does not rotate."""
    call = builder.call
    count = f"{end} - {call.rotated}" if call.rotated else end
    qkv, cache = call["qkv"], call["kv_cache"]
    num_heads, kv_heads, head_dim, half = _heads(call)
    scales, block_t, block_h = call.get("kv_scales"), tuned["block_t"], tuned["block_h"]
    of_keys_values, of_queries = 2 * ceil_div(kv_heads, block_h), ceil_div(num_heads, block_h)
    sources: dict[str, Parameter] = {
        "KScale": scales.slice(call.integer("layer")) if scales else call.get("k_scale") or qkv,
        "VScale": call.get("v_scale") or qkv,
        "Y": call.outputs[0],
    }
    tokens: dict[str, Parameter] = {"first_token": I32(call.rotated), "end_token": I32(end)}
    tile = {"HQ": num_heads, "HKV": kv_heads, "D": head_dim, "PAGE": cache.size(4), "BLOCK_T": block_t, "BLOCK_H": block_h}
    kinds = {"SCALED_CACHE": call.get("k_scale") is not None, "SCALED_ROWS": scales is not None, "IN_PLACE": call.in_place}
    blocks = ceil_div(count, block_t) if isinstance(count, int) else f"ceil_div({count}, {block_t})"
    if not half:
        builder.launch(
            "rope.kv_write",
            {"QKV": qkv, "Cache": cache.slice(call.integer("layer")), "KvSlots": call["kv_slots"], **sources, **tokens},
            grid=(blocks, of_keys_values + (0 if call.in_place else of_queries)),
            constexprs={**tile, **kinds},
            warps=tuned["warps"],
        )
        return
    rotation = {"HALF": half, "INTERLEAVED": bool(call.attrs["interleaved"]), "QK_NORM": call.get("q_norm") is not None}
    builder.launch(
        "rope.rope_kv_write",
        {**_sources(call), **sources, "eps": F32(call.number("eps")), **tokens},
        grid=(blocks, of_keys_values + of_queries),
        constexprs={**tile, **rotation, **kinds},
        warps=tuned["warps"],
    )
