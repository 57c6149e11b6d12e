"""Lowerings of rotary position embedding, alone and with the write of keys and values to the cache."""

from __future__ import annotations

from trtllm_kernels.dialect.expr import ceil_div
from trtllm_kernels.dialect.types import Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import F32, I32, Builder, OpCall, next_power_of_2, power_of_2
from trtllm_kernels.lowering.registry import lowers
from trtllm_kernels.lowering.space import head_space


def _rotary_half(call: OpCall, head_dim: int) -> int:
    rotary_dim = call["cos_sin"].size(1)
    if rotary_dim > head_dim:
        raise KernelError(f"rotary dimension {rotary_dim} is larger than the head dimension {head_dim}")
    return power_of_2("rotary dimension", rotary_dim, 4, 256) // 2


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


@lowers("rope_kv_write", space=head_space)
def rope_kv_write(call: OpCall) -> Lowered:
    qkv, cache = call["qkv"], call["kv_cache"]
    num_heads, kv_heads, head_dim = call.integer("num_heads"), call.integer("num_kv_heads"), call.integer("head_dim")
    power_of_2("head dimension", head_dim, 16, 256)
    half = _rotary_half(call, head_dim)
    q_norm, k_norm = call.inputs.get("q_norm"), call.inputs.get("k_norm")
    if q_norm is not None and 2 * half != head_dim:
        raise KernelError("QK norm with partial rotary embedding is not supported by the GPU kernels")
    scales = call.get("kv_scales")
    all_heads = num_heads + 2 * kv_heads
    tuned = call.tuned(block_h=min(8, next_power_of_2(all_heads)), warps=2 if head_dim <= 128 else 4)
    builder = Builder(call)
    builder.launch(
        "rope.rope_kv_write",
        {
            "QKV": qkv,
            "Positions": call["positions"],
            "CosSin": call["cos_sin"],
            "Cache": cache.slice(call.integer("layer")),
            "KvSlots": call["kv_slots"],
            "QNorm": q_norm or qkv,
            "KNorm": k_norm or qkv,
            "KScale": scales.slice(call.integer("layer")) if scales else call.get("k_scale") or qkv,
            "VScale": call.get("v_scale") or qkv,
            "Y": call.outputs[0],
            "eps": F32(call.number("eps")),
            "first_token": I32(call.rotated),
        },
        grid=(f"{qkv.shape[0]} - {call.rotated}" if call.rotated else qkv.shape[0], ceil_div(all_heads, tuned["block_h"])),
        constexprs={
            "HQ": num_heads,
            "HKV": kv_heads,
            "D": head_dim,
            "HALF": half,
            "PAGE": cache.size(4),
            "INTERLEAVED": bool(call.attrs["interleaved"]),
            "QK_NORM": q_norm is not None,
            "BLOCK_H": tuned["block_h"],
            "SCALED_CACHE": call.get("k_scale") is not None,
            "SCALED_ROWS": scales is not None,
            "IN_PLACE": call.in_place,
        },
        warps=tuned["warps"],
    )
    return builder.finish()
