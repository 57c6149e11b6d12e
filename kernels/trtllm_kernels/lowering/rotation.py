"""Rotation by decode attention: in CUDA C++ it rotates queries and keys and writes the cache itself, and `rope_kv_write` is launched for
the tokens that remain, in steps that only decode for none.

Both ops stay in the plan with their meaning. Only what their launches do is divided otherwise, so this is decided where an engine's ops are
lowered, and an op alone is lowered without it.
"""

from __future__ import annotations

from dataclasses import replace

from trtllm_kernels.dialect.types import Dim, Lowered
from trtllm_kernels.lowering.attention import paged_attention, rotated_by_attention
from trtllm_kernels.lowering.call import OpCall
from trtllm_kernels.lowering.decode_cuda import decode_cuda_fits
from trtllm_kernels.lowering.registry import LOWERINGS

_HEAD_DIM, _ROTARY_STEP = 128, 64
"""Head and rotary sizes for which a lane holds both dimensions of each rotated pair. Where a pair is split between the halves of a head,
the head must have `_HEAD_DIM` dimensions; where neighbours form a pair, the number that rotate must be a multiple of `_ROTARY_STEP`."""


def rotate_in_attention(rope: OpCall, attention: OpCall) -> tuple[Lowered, Lowered] | None:
    """Launches of the op that rotates and writes the cache, and of the `paged_attention` that alone reads its result; None where attention
    cannot rotate."""
    rotated = rotated_to(rope, attention)
    if not rotated:
        return None
    return LOWERINGS[rope.op].lower(replace(rope, rotated=rotated)), paged_attention(
        replace(attention, rotation=rope["cos_sin"], interleaved=bool(rope.attrs["interleaved"]))
    )


def rotated_to(rope: OpCall, attention: OpCall) -> Dim:
    """How many of a step's first tokens that attention rotates and writes to the cache; 0 where it cannot. The arguments are those of
    `rotate_in_attention`."""
    return rotated_by_attention(attention) if _fits(rope, attention) else 0


def rotates_in_lane(rotary_dim: int, head_dim: int, interleaved: bool) -> bool:
    """Whether a lane of decode attention holds both dimensions of each pair that rotates."""
    return rotary_dim > 0 and (rotary_dim % _ROTARY_STEP == 0 if interleaved else rotary_dim == head_dim == _HEAD_DIM)


def _fits(rope: OpCall, attention: OpCall) -> bool:
    in_lane = rotates_in_lane(rope["cos_sin"].size(1), rope.integer("head_dim"), bool(rope.attrs["interleaved"]))
    plain = rope.get("q_norm") is None and rope.get("k_norm") is None
    same = rope.outputs[0].name == attention["qkv"].name and rope["kv_cache"].slice(rope.integer("layer")) == attention["kv_cache"].slice(
        attention.integer("layer")
    )
    return in_lane and plain and same and rope.in_place and decode_cuda_fits(attention)
