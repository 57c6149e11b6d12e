"""Causal grouped-query attention: over a ragged batch without a cache (the model as written) and over the paged cache (the model as run).

References compute in fp32 whatever the dtype. Decode rows (one query each) are batched: gathered, padded to the longest of their chunk and
masked. Context sequences run one by one. Cache rows past a sequence's `kv_len` are never used: pages past the end of a sequence are not
even looked up, and whatever the tail of its last page holds (NaN included) is replaced by zeros in the gathered copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch.nn import functional

from trtllm_kernels.dialect.registry import dialect_op, fake_like_first
from trtllm_kernels.references.quantize import FP8, dequantized, fake_result, finish
from trtllm_kernels.references.rope import columns_of_values

_DECODE_CHUNK_ROWS = 1 << 15
"""Most gathered key rows in a chunk of decode sequences; it bounds the reference's memory."""


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, first_position: int, scale: float) -> torch.Tensor:
    """One sequence: q [n, Hq, D] at positions first_position.., k and v [m, Hkv, D] from position 0; returns [n, Hq, D]."""
    n, num_heads, _ = q.shape
    length, num_kv_heads, _ = k.shape
    mask = torch.arange(length)[None, :] <= torch.arange(first_position, first_position + n)[:, None]
    out = functional.scaled_dot_product_attention(
        q.float().transpose(0, 1)[None],
        k.float().transpose(0, 1)[None],
        v.float().transpose(0, 1)[None],
        attn_mask=mask.to(q.device),
        scale=scale,
        enable_gqa=num_heads != num_kv_heads,
    )
    return out[0].transpose(0, 1)


_P_SCALE = 256.0
"""Probabilities are at most 1 and are multiplied by this before they are rounded to E4M3, whose smallest number is 2^-9."""


def _attend_fp8(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """One sequence, codes in E4M3: its last queries q [n, Hq, D], k and v [m, Hkv, D]; returns [n, Hq, D] fp32, without the values' scale.
    Both products are of codes, and so is the sum of probabilities, which is nearer to exact attention than that of those not yet rounded. A
    kernel rounds them relative to the largest score of the keys that it has seen so far."""
    n, num_heads, head_dim = q.shape
    grouped = q.float().reshape(n, k.shape[1], -1, head_dim).permute(1, 2, 0, 3)
    keys, values = (x.float().transpose(0, 1)[:, None] for x in (k, v))
    seen = torch.ones(n, len(k), dtype=torch.bool).tril(len(k) - n)
    scores = (grouped @ keys.transpose(2, 3) * scale).masked_fill(~seen, -torch.inf)
    probabilities = (scores - scores.amax(-1, keepdim=True)).exp()
    rounded = (probabilities * _P_SCALE).to(FP8).float()
    out = rounded @ values / rounded.sum(-1, keepdim=True)
    return out.permute(2, 0, 1, 3).reshape(n, num_heads, head_dim)


@dialect_op("attention", fake=fake_like_first)
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    query_start: torch.Tensor,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
) -> torch.Tensor:
    """q [T, Hq*D], k and v [T, Hkv*D]; sequence r is rows query_start[r] to query_start[r + 1]."""
    q3, k3, v3 = (x.view(x.shape[0], n, -1) for x, n in ((q, num_heads), (k, num_kv_heads), (v, num_kv_heads)))
    out = torch.zeros_like(q3)
    bounds = query_start.tolist()
    for begin, end in pairwise(bounds):
        if end > begin:
            out[begin:end] = _attend(q3[begin:end], k3[begin:end], v3[begin:end], 0, scale).to(q.dtype)
    return out.flatten(-2)


def _gathered(cache: torch.Tensor, scales: torch.Tensor | None, pages: torch.Tensor) -> torch.Tensor:
    """fp32 [..., 2, Hkv, P, D]: `pages` of a layer's cache [pages, 2, Hkv, P, D], times their scales [pages, 2, Hkv, P]."""
    return cache[pages].float() if scales is None else cache[pages].float() * scales[pages][..., None]


def _decode(
    q: torch.Tensor, cache: torch.Tensor, scales: torch.Tensor | None, pages: torch.Tensor, kv_lens: torch.Tensor, scale: float
) -> torch.Tensor:
    """n sequences of one query each: q [n, Hq, D], cache [pages, 2, Hkv, P, D] with `scales` [pages, 2, Hkv, P] or without, pages [n, most
    pages of any]; returns [n, Hq, D] fp32."""
    n, num_heads, head_dim = q.shape
    _, _, num_kv_heads, page_size, _ = cache.shape
    length = pages.shape[1] * page_size
    valid = torch.arange(length) < kv_lens[:, None]
    pages = torch.where(valid[:, ::page_size], pages, 0).long()
    gathered = _gathered(cache, scales, pages)
    keys_values = gathered.permute(2, 0, 3, 1, 4, 5).reshape(2, n, num_kv_heads, length, head_dim)
    keys_values.masked_fill_(~valid[None, :, None, :, None], 0.0)
    grouped = q.float().reshape(n, num_kv_heads, num_heads // num_kv_heads, head_dim)
    mask = valid[:, None, None, :]
    out = functional.scaled_dot_product_attention(grouped, keys_values[0], keys_values[1], attn_mask=mask, scale=scale)
    return out.reshape(n, num_heads, head_dim)


def _decode_chunks(kv_lens: list[int]) -> Iterator[tuple[int, int]]:
    """(begin, end) of the decode sequences that are computed together, of ascending lengths: as many as have `_DECODE_CHUNK_ROWS` key rows,
    each padded to the longest, and at least one."""
    begin = 0
    while begin < len(kv_lens):
        end = begin + 1
        while end < len(kv_lens) and (end + 1 - begin) * kv_lens[end] <= _DECODE_CHUNK_ROWS:
            end += 1
        yield begin, end
        begin = end


def _fake_paged(qkv: torch.Tensor, kv_cache: torch.Tensor, num_heads: int, out_scale: torch.Tensor | None, **_: Any) -> torch.Tensor:
    return fake_result(qkv, (qkv.shape[0], num_heads * kv_cache.shape[5]), out_scale)


@dialect_op("paged_attention", fake=_fake_paged)
def paged_attention(
    qkv: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    seq_slots: torch.Tensor,
    query_start: torch.Tensor,
    kv_lens: torch.Tensor,
    layer: int,
    num_heads: int,
    num_kv_heads: int,
    scale: float,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    kv_scales: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
    queries: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    values: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of qkv [T, (Hq + 2 Hkv)*D] as `rope_kv_write` returns it, ragged over R sequences; the last query of each is at kv_len - 1.

    kv_cache is [layers, pages, 2, Hkv, page_size, D]; in int8 with `kv_scales` [layers, pages, 2, Hkv, page_size]. A context sequence takes
    the keys and values of this step from qkv and earlier ones from the cache; a decode sequence takes all from the cache. A kernel may take
    a chunk's own keys and values from the cache too, which differs by the cache's rounding. Returns [T, Hq*D].

    With `queries`, `keys` and `values` as `rope_kv_write_quantize` returns them, both products of context sequences are of fp8
    (`_attend_fp8`); those of decode sequences, and here of a chunk of one token, are of what the cache's codes stand for.
    """
    cache, scales = kv_cache[layer], None if kv_scales is None else kv_scales[layer]
    page_size, head_dim = cache.shape[3], cache.shape[4]
    heads = qkv.view(qkv.shape[0], -1, head_dim)
    q3 = heads[:, :num_heads]
    own_keys_values = heads[:, num_heads:].reshape(-1, 2, num_kv_heads, head_dim).float()
    out = torch.zeros(q3.shape, dtype=torch.float32, device=q3.device)
    tables = block_table[seq_slots.long()]
    query_lens = query_start.diff()

    single = torch.nonzero((query_lens == 1) & (kv_lens > 0)).flatten()
    single = single[kv_lens[single].argsort(stable=True)]
    for begin, end in _decode_chunks(kv_lens[single].tolist()):
        chosen = single[begin:end]
        most_pages = -(-int(kv_lens[chosen[-1]]) // page_size)
        rows = query_start[chosen].long()
        decoded = _decode(q3[rows], cache, scales, tables[chosen, :most_pages], kv_lens[chosen], _times(scale, k_scale))
        out[rows] = decoded if v_scale is None else decoded * v_scale

    codes: list[torch.Tensor] = []
    if queries is not None and keys is not None and values is not None:
        by_token = values[:, columns_of_values(query_start)].T
        codes = [x[: len(by_token)].reshape(len(by_token), -1, head_dim) for x in (queries, keys, by_token)]
    for r in torch.nonzero(query_lens > 1).flatten().tolist():
        begin, end = int(query_start[r]), int(query_start[r + 1])
        past = int(kv_lens[r]) - (end - begin)
        pages = tables[r, : -(-past // page_size)].long()
        keys_values = _gathered(cache, scales, pages).transpose(2, 3).transpose(0, 1).flatten(1, 2)[:, :past]
        if codes:
            q8, k8, v8 = (x[begin:end] for x in codes)
            k8, v8 = (torch.cat((cached, own.float())) for cached, own in zip(keys_values, (k8, v8), strict=True))
            attended = _attend_fp8(q8, k8, v8, _times(scale, k_scale))
            out[begin:end] = attended if v_scale is None else attended * v_scale
            continue
        all_keys = torch.cat((dequantized(keys_values[0], k_scale), own_keys_values[begin:end, 0]))
        all_values = torch.cat((dequantized(keys_values[1], v_scale), own_keys_values[begin:end, 1]))
        out[begin:end] = _attend(q3[begin:end], all_keys, all_values, past, scale)
    return finish(out.flatten(-2), qkv.dtype, out_scale)


def _times(scale: float, k_scale: torch.Tensor | None) -> float:
    return scale if k_scale is None else scale * float(k_scale)
