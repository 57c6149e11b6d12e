"""Rotary embedding, and its fusion with QK norm and the write of keys and values into the paged cache.

A program is BLOCK_H heads of one token. A head is handled as the two halves that rotate into each other (in registers, without reading the
partner again) and the rest that passes through. Query, key and value heads share one grid: a head's index says which of them it is.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import int8_codes


@triton.jit
def _load_pair(X, heads, mask, D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_H: tl.constexpr):
    """First and second rotary halves of `heads`, fp32 [BLOCK_H, HALF]."""
    if INTERLEAVED:
        pair = tl.arange(0, 2 * HALF)
        x = tl.load(X + heads[:, None] * D + pair[None, :], mask=mask[:, None], other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(x, (BLOCK_H, HALF, 2)))
    else:
        i = tl.arange(0, HALF)
        first = tl.load(X + heads[:, None] * D + i[None, :], mask=mask[:, None], other=0.0).to(tl.float32)
        second = tl.load(X + heads[:, None] * D + HALF + i[None, :], mask=mask[:, None], other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _store_pair(Y, offsets, first, second, mask, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_H: tl.constexpr):
    """Stores both halves at Y + offsets[head]."""
    if INTERLEAVED:
        pair = tl.arange(0, 2 * HALF)
        x = tl.reshape(tl.join(first, second), (BLOCK_H, 2 * HALF))
        tl.store(Y + offsets[:, None] + pair[None, :], x.to(Y.dtype.element_ty), mask=mask[:, None])
    else:
        i = tl.arange(0, HALF)
        tl.store(Y + offsets[:, None] + i[None, :], first.to(Y.dtype.element_ty), mask=mask[:, None])
        tl.store(Y + offsets[:, None] + HALF + i[None, :], second.to(Y.dtype.element_ty), mask=mask[:, None])


@triton.jit
def rope(
    X, Positions, CosSin, Y,
    HEADS: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, BLOCK_H: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_next_start(PDL)
    token = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, HALF)
    row = tl.load(Positions + token).to(tl.int64) * (2 * HALF)
    cos = tl.load(CosSin + row + i)[None, :]
    sin = tl.load(CosSin + row + HALF + i)[None, :]
    wait_for_previous(PDL)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    mask = heads < HEADS
    X += token * (HEADS * D)
    Y += token * (HEADS * D)
    first, second = _load_pair(X, heads, mask, D, HALF, INTERLEAVED, BLOCK_H)
    _store_pair(Y, heads * D, first * cos - second * sin, second * cos + first * sin, mask, HALF, INTERLEAVED, BLOCK_H)
    if 2 * HALF < D:
        d = tl.arange(0, D)[None, :]
        rest = mask[:, None] & (d >= 2 * HALF)
        at = heads[:, None] * D + d
        tl.store(Y + at, tl.load(X + at, mask=rest, other=0.0), mask=rest)


@triton.jit
def rope_kv_write(
    QKV, Positions, CosSin, Cache, KvSlots, QNorm, KNorm, KScale, VScale, Y, eps, first_token,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, PAGE: tl.constexpr,
    INTERLEAVED: tl.constexpr, QK_NORM: tl.constexpr, BLOCK_H: tl.constexpr, SCALED_CACHE: tl.constexpr, SCALED_ROWS: tl.constexpr,
    IN_PLACE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Y is QKV, normalized and rotated. Cache is one layer, [pages, 2, HKV, PAGE, D]. QK_NORM requires the whole head to be rotary.

    SCALED_CACHE: the cache is fp8, with one scale for keys and one for values. SCALED_ROWS: it is int8, and KScale is the layer's
    [pages, 2, HKV, PAGE], where the scale of each key and value goes.

    Tokens before first_token are left to decode attention, which rotates and writes them itself.

    IN_PLACE: Y is QKV. Only what changes is written there, which is the rotary part of q and k, and the rest of q is not read.
    """
    let_next_start(PDL)
    i = tl.arange(0, HALF)
    if QK_NORM:
        at = i * 2 if INTERLEAVED else i
        other = i * 2 + 1 if INTERLEAVED else i + HALF
        wq1, wk1 = tl.load(QNorm + at), tl.load(KNorm + at)
        wq2, wk2 = tl.load(QNorm + other), tl.load(KNorm + other)
    if SCALED_CACHE:
        k_scale, v_scale = tl.load(KScale), tl.load(VScale)
    token = (tl.program_id(0) + first_token).to(tl.int64)
    slot = tl.load(KvSlots + token).to(tl.int64)
    row = tl.load(Positions + token).to(tl.int64) * (2 * HALF)
    cos = tl.load(CosSin + row + i)[None, :]
    sin = tl.load(CosSin + row + HALF + i)[None, :]
    wait_for_previous(PDL)
    heads = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    is_q = heads < HQ
    is_k = (heads >= HQ) & (heads < HQ + HKV)
    is_v = (heads >= HQ + HKV) & (heads < HQ + 2 * HKV)
    rotates = is_q | is_k if IN_PLACE else is_q | is_k | is_v
    passes = is_k | is_v if IN_PLACE else is_q | is_k | is_v
    key_or_value = tl.where(is_v, 1, 0).to(tl.int64)
    kv_head = heads - HQ - tl.where(is_v, HKV, 0)
    cached = (((slot // PAGE) * 2 + key_or_value) * HKV + kv_head) * (PAGE * D) + (slot % PAGE) * D
    QKV += token * ((HQ + 2 * HKV) * D)
    Y += token * ((HQ + 2 * HKV) * D)
    cos = tl.where(is_v[:, None], 1.0, cos)
    sin = tl.where(is_v[:, None], 0.0, sin)
    first, second = _load_pair(QKV, heads, is_q | is_k | is_v, D, HALF, INTERLEAVED, BLOCK_H)
    if 2 * HALF < D:
        d = tl.arange(0, D)[None, :]
        rest = passes[:, None] & (d >= 2 * HALF)
        passing = tl.load(QKV + heads[:, None] * D + d, mask=rest, other=0.0)
    if IN_PLACE:
        tl.debug_barrier()  # several threads hold a tile smaller than the block: none may load what another has already rotated
    if QK_NORM:
        square = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        scale = tl.where(is_v, 1.0, tl.rsqrt(square / D + eps))[:, None]
        weight = tl.where(is_q[:, None], wq1.to(tl.float32)[None, :], wk1.to(tl.float32)[None, :])
        first *= scale * tl.where(is_v[:, None], 1.0, weight)
        weight = tl.where(is_q[:, None], wq2.to(tl.float32)[None, :], wk2.to(tl.float32)[None, :])
        second *= scale * tl.where(is_v[:, None], 1.0, weight)
    rotated_first, rotated_second = first * cos - second * sin, second * cos + first * sin
    _store_pair(Y, heads * D, rotated_first, rotated_second, rotates, HALF, INTERLEAVED, BLOCK_H)
    inverse = 1.0
    if SCALED_CACHE:
        inverse = 1.0 / tl.where(is_v, v_scale, k_scale)[:, None]
        rotated_first = tl.minimum(tl.maximum(rotated_first * inverse, -448.0), 448.0)
        rotated_second = tl.minimum(tl.maximum(rotated_second * inverse, -448.0), 448.0)
    if SCALED_ROWS:
        largest = tl.maximum(tl.max(tl.abs(rotated_first), 1), tl.max(tl.abs(rotated_second), 1))
        if 2 * HALF < D:
            largest = tl.maximum(largest, tl.max(tl.abs(passing.to(tl.float32)), 1))
        row_scale = tl.maximum(tl.div_rn(largest, 127.0), 1e-12)
        tl.store(KScale + cached // D, row_scale, mask=is_k | is_v)
        rotated_first = int8_codes(tl.div_rn(rotated_first, tl.broadcast_to(row_scale[:, None], (BLOCK_H, HALF))))
        rotated_second = int8_codes(tl.div_rn(rotated_second, tl.broadcast_to(row_scale[:, None], (BLOCK_H, HALF))))
    _store_pair(Cache, cached, rotated_first, rotated_second, is_k | is_v, HALF, INTERLEAVED, BLOCK_H)
    if 2 * HALF < D:
        if not IN_PLACE:
            tl.store(Y + heads[:, None] * D + d, passing, mask=rest)
        x = passing.to(tl.float32)
        if SCALED_CACHE:
            x = tl.minimum(tl.maximum(x * inverse, -448.0), 448.0)
        if SCALED_ROWS:
            x = int8_codes(tl.div_rn(x, tl.broadcast_to(row_scale[:, None], (BLOCK_H, D))))
        tl.store(Cache + cached[:, None] + d, x.to(Cache.dtype.element_ty), mask=(is_k | is_v)[:, None] & rest)
