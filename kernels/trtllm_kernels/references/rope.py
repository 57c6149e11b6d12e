"""Rotary position embedding (Su et al. 2021), alone and fused with the write of keys and values into the paged cache.

`cos_sin` is an fp32 table [max positions, rotary_dim]: the cosines of the rotary_dim / 2 frequencies, then their sines. Frequency scaling
(Llama 3.1, linear) is therefore a property of the table alone. `interleaved` pairs elements (2i, 2i + 1) as GPT-J does; otherwise the pairs
are (i, i + rotary_dim / 2). Dimensions from rotary_dim on pass through.
"""

from __future__ import annotations

import torch

from trtllm_kernels.dialect.registry import dialect_op, fake_like_first
from trtllm_kernels.references.norm import rms_normalize
from trtllm_kernels.references.quantize import finish as rounded
from trtllm_kernels.references.quantize import int8_rows


def rotate(x: torch.Tensor, table_rows: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotate fp32 x [T, n, head_dim] by table_rows [T, rotary_dim]."""
    rotary_dim = table_rows.shape[-1]
    half = rotary_dim // 2
    cos, sin = table_rows[:, None, :half], table_rows[:, None, half:]
    rotary, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    if interleaved:
        first, second = rotary[..., 0::2], rotary[..., 1::2]
    else:
        first, second = rotary[..., :half], rotary[..., half:]
    rotated = (first * cos - second * sin, second * cos + first * sin)
    rotary = torch.stack(rotated, dim=-1).flatten(-2) if interleaved else torch.cat(rotated, dim=-1)
    return torch.cat((rotary, rest), dim=-1)


@dialect_op("rope", fake=fake_like_first)
def rope(x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, head_dim: int, interleaved: bool) -> torch.Tensor:
    heads = x.float().view(x.shape[0], -1, head_dim)
    return rotate(heads, cos_sin[positions], interleaved).flatten(-2).to(x.dtype)


def _fake_rope_kv_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_cache: torch.Tensor,
    kv_slots: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    layer: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    interleaved: bool,
    eps: float,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    kv_scales: torch.Tensor | None = None,
) -> torch.Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


@dialect_op("rope_kv_write", fake=_fake_rope_kv_write)
def rope_kv_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_cache: torch.Tensor,
    kv_slots: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    layer: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    interleaved: bool,
    eps: float,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    kv_scales: torch.Tensor | None = None,
) -> torch.Tensor:
    """Splits qkv [T, (Hq + 2 Hkv) * head_dim], normalizes q and k if asked, rotates them, and writes k and v at `kv_slots`.

    kv_cache is [layers, pages, 2, Hkv, page_size, head_dim]: of qkv's dtype, fp8 with the two scales, or int8 with `kv_scales` [layers,
    pages, 2, Hkv, page_size], which are written too, each the largest magnitude of its token's head over 127. Returns the changed qkv:
    keys and values are returned as well as cached, so that attention can read this step's own without quantization and without a gather.
    If two tokens name one slot (padding does), it is undefined which of them wins.
    """
    queries, keys, values = torch.split_with_sizes(qkv, [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim], dim=-1)
    rows = cos_sin[positions]

    def finish(x: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        x = x.float() if norm is None else rms_normalize(x.contiguous(), norm, eps)
        return rotate(x.reshape(x.shape[0], -1, head_dim), rows, interleaved)

    page_size = kv_cache.shape[4]
    pages, offsets = (kv_slots // page_size).long(), (kv_slots % page_size).long()
    cache = kv_cache[layer]
    rotated_keys = finish(keys, k_norm)
    heads_of_values = values.float().reshape(values.shape[0], -1, head_dim)
    for index, (rows_of_heads, static) in enumerate(((rotated_keys, k_scale), (heads_of_values, v_scale))):
        if kv_scales is None:
            cache[pages, index, :, offsets] = rounded(rows_of_heads, kv_cache.dtype, static)
        else:
            codes, scales = int8_rows(rows_of_heads)
            cache[pages, index, :, offsets], kv_scales[layer][pages, index, :, offsets] = codes, scales
    rotated = torch.cat((finish(queries, q_norm).flatten(-2), rotated_keys.flatten(-2)), dim=-1)
    return torch.cat((rotated.to(qkv.dtype), values), dim=-1)
