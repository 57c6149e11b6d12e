"""Rotary position embedding (Su et al. 2021), alone and fused with the write of keys and values into the paged cache.

`cos_sin` is an fp32 table [max positions, rotary_dim]: the cosines of the rotary_dim / 2 frequencies, then their sines. Frequency scaling
(Llama 3.1, linear) is therefore a property of the table alone. `interleaved` pairs elements (2i, 2i + 1) as GPT-J does; otherwise the pairs
are (i, i + rotary_dim / 2). Dimensions from rotary_dim on pass through.
"""

from __future__ import annotations

from typing import Any

import torch

from trtllm_kernels.dialect.registry import dialect_op, fake_like_first
from trtllm_kernels.dialect.types import KEY_BLOCK, VALUE_COLUMNS
from trtllm_kernels.errors import KernelError
from trtllm_kernels.references.norm import rms_normalize
from trtllm_kernels.references.quantize import FP8, int8_rows
from trtllm_kernels.references.quantize import finish as rounded


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


@dialect_op("rope_kv_write", fake=fake_like_first)
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
    queries, keys, values = _heads(qkv, positions, cos_sin, q_norm, k_norm, num_heads, num_kv_heads, head_dim, interleaved, eps)
    _write(kv_cache, kv_slots, layer, (keys, values), (k_scale, v_scale), kv_scales)
    return _joined(qkv, queries, keys, num_kv_heads * head_dim)


def _heads(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    interleaved: bool,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, normalized if asked and rotated, keys likewise, and values, fp32 [T, heads, head_dim] each."""
    queries, keys, values = torch.split_with_sizes(qkv, [num_heads * head_dim, num_kv_heads * head_dim, num_kv_heads * head_dim], dim=-1)
    rows = cos_sin[positions]

    def finish(x: torch.Tensor, norm: torch.Tensor | None) -> torch.Tensor:
        x = x.float() if norm is None else rms_normalize(x.contiguous(), norm, eps)
        return rotate(x.reshape(x.shape[0], -1, head_dim), rows, interleaved)

    return finish(queries, q_norm), finish(keys, k_norm), values.float().reshape(values.shape[0], -1, head_dim)


def _write(
    kv_cache: torch.Tensor,
    kv_slots: torch.Tensor,
    layer: int,
    keys_values: tuple[torch.Tensor, torch.Tensor],
    static_scales: tuple[torch.Tensor | None, torch.Tensor | None],
    kv_scales: torch.Tensor | None,
) -> None:
    page_size = kv_cache.shape[4]
    pages, offsets = (kv_slots // page_size).long(), (kv_slots % page_size).long()
    cache = kv_cache[layer]
    for index, (rows_of_heads, static) in enumerate(zip(keys_values, static_scales, strict=True)):
        if kv_scales is None:
            cache[pages, index, :, offsets] = rounded(rows_of_heads, kv_cache.dtype, static).to(kv_cache.dtype)
        else:
            codes, scales = int8_rows(rows_of_heads)
            cache[pages, index, :, offsets], kv_scales[layer][pages, index, :, offsets] = codes, scales


def _joined(qkv: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor, kv_width: int) -> torch.Tensor:
    """qkv with its first columns replaced by `queries` and `keys`."""
    rotated = torch.cat((queries.flatten(-2), keys.flatten(-2)), dim=-1)
    return torch.cat((rotated.to(qkv.dtype), qkv[:, qkv.shape[1] - kv_width :]), dim=-1)


def columns_of_values(query_start: torch.Tensor) -> torch.Tensor:
    """int64 [T]: the column of each token's transposed values (`VALUE_COLUMNS`)."""
    lengths = query_start.diff().long()
    first = VALUE_COLUMNS * (query_start[:-1].long() // VALUE_COLUMNS + torch.arange(len(lengths)))
    return torch.arange(int(query_start[-1])) + (first - query_start[:-1]).repeat_interleave(lengths)


def _fake_quantized(
    qkv: torch.Tensor, num_heads: int, num_kv_heads: int, head_dim: int, columns: int, **_: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    kv_width = num_kv_heads * head_dim
    shapes = ((qkv.shape[0], num_heads * head_dim), (qkv.shape[0] + KEY_BLOCK, kv_width), (kv_width, columns))
    queries, keys, values = (qkv.new_empty(shape, dtype=FP8) for shape in shapes)
    return fake_like_first(qkv=qkv), queries, keys, values


@dialect_op("rope_kv_write_quantize", fake=_fake_quantized)
def rope_kv_write_quantize(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    cos_sin: torch.Tensor,
    kv_cache: torch.Tensor,
    kv_slots: torch.Tensor,
    query_start: torch.Tensor,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
    layer: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    interleaved: bool,
    eps: float,
    columns: int,
    k_scale: torch.Tensor,
    v_scale: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """`rope_kv_write` into an fp8 cache, and what attention of prompts multiplies, all in E4M3: queries [T, Hq * head_dim], which
    have no scale, keys [T + block, Hkv * head_dim], the codes of the cache, with room for a block of keys (`KEY_BLOCK`) behind the last
    token, and values [Hkv * head_dim, `columns`], the cache's codes transposed, a token's in the column that `columns_of_values` says. What
    is in no token's row or column may be anything.

    A kernel writes codes of prompts alone, and of the first result the rows of decoding sequences alone: nothing else is read.
    """
    at = columns_of_values(query_start)
    least = len(at) + VALUE_COLUMNS * (len(query_start) - 1)
    if columns % VALUE_COLUMNS or columns < least:
        raise KernelError(f"rope_kv_write_quantize: columns is {columns}; it must be a multiple of {VALUE_COLUMNS}, at least {least}")
    queries, keys, values = _heads(qkv, positions, cos_sin, q_norm, k_norm, num_heads, num_kv_heads, head_dim, interleaved, eps)
    _write(kv_cache, kv_slots, layer, (keys, values), (k_scale, v_scale), None)
    tokens, kv_width = qkv.shape[0], num_kv_heads * head_dim
    query_codes, key_codes, value_codes = (
        rounded(x.flatten(-2), FP8, scale) for x, scale in ((queries, torch.ones(1)), (keys, k_scale), (values, v_scale))
    )
    with_room = torch.zeros(tokens + KEY_BLOCK, kv_width, dtype=FP8)
    with_room[:tokens] = key_codes
    transposed = torch.zeros(kv_width, columns, dtype=FP8)
    transposed[:, at] = value_codes.T
    return _joined(qkv, queries, keys, kv_width), query_codes, with_room, transposed
