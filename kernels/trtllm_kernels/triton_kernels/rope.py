"""Rotary embedding, and its fusion with QK norm and the write of keys and values into the paged cache.

A program is BLOCK_H heads of a few tokens, so that a thread has several loads of 16 bytes under way, or of a block of tokens where values
are transposed, since a row of these is tokens. A head is handled as the two halves that rotate into each other (in registers, without
reading the partner again) and the rest that passes through. Query, key and value heads share one grid.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import int8_codes
from trtllm_kernels.triton_kernels.tiles import locate


@triton.jit
def _load_pair(X, offsets, mask, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, ROWS: tl.constexpr):
    """First and second rotary halves of the heads at X + offsets[row], fp32 [ROWS, HALF]."""
    if INTERLEAVED:
        pair = tl.arange(0, 2 * HALF)
        x = tl.load(X + offsets[:, None] + pair[None, :], mask=mask[:, None], other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(x, (ROWS, HALF, 2)))
    else:
        i = tl.arange(0, HALF)
        first = tl.load(X + offsets[:, None] + i[None, :], mask=mask[:, None], other=0.0).to(tl.float32)
        second = tl.load(X + offsets[:, None] + HALF + i[None, :], mask=mask[:, None], other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _store_pair(Y, offsets, first, second, mask, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, ROWS: tl.constexpr):
    """Stores both halves at Y + offsets[row]."""
    if INTERLEAVED:
        pair = tl.arange(0, 2 * HALF)
        x = tl.reshape(tl.join(first, second), (ROWS, 2 * HALF))
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
    first, second = _load_pair(X, heads * D, mask, HALF, INTERLEAVED, BLOCK_H)
    _store_pair(Y, heads * D, first * cos - second * sin, second * cos + first * sin, mask, HALF, INTERLEAVED, BLOCK_H)
    if 2 * HALF < D:
        d = tl.arange(0, D)[None, :]
        rest = mask[:, None] & (d >= 2 * HALF)
        at = heads[:, None] * D + d
        tl.store(Y + at, tl.load(X + at, mask=rest, other=0.0), mask=rest)


@triton.jit
def rope_kv_write(
    QKV, Positions, CosSin, Cache, KvSlots, QNorm, KNorm, KScale, VScale, Y, eps, first_token, end_token,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, PAGE: tl.constexpr,
    INTERLEAVED: tl.constexpr, QK_NORM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, SCALED_CACHE: tl.constexpr,
    SCALED_ROWS: tl.constexpr, IN_PLACE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Y is QKV, normalized and rotated. Cache is one layer, [pages, 2, HKV, PAGE, D]. QK_NORM requires the whole head to be rotary.

    SCALED_CACHE: the cache is fp8, with one scale for keys and one for values. SCALED_ROWS: it is int8, and KScale is the layer's
    [pages, 2, HKV, PAGE], where the scale of each key and value goes.

    Tokens from first_token to end_token: decode attention rotates those before and writes them itself. A program is BLOCK_H heads of one
    kind of BLOCK_T tokens. Along the grid's second axis programs are of keys first, then of values, then of queries.

    IN_PLACE: Y is QKV. Only what changes is written there, which is the rotary part of q and k, and the rest of q is not read.
    """
    let_next_start(PDL)
    GROUPS: tl.constexpr = (HKV + BLOCK_H - 1) // BLOCK_H
    ROWS: tl.constexpr = BLOCK_T * BLOCK_H
    WIDTH: tl.constexpr = (HQ + 2 * HKV) * D
    group = tl.program_id(1)
    row = tl.arange(0, ROWS)
    token = (first_token + tl.program_id(0) * BLOCK_T + row // BLOCK_H).to(tl.int64)
    is_q, is_v = group >= 2 * GROUPS, (group >= GROUPS) & (group < 2 * GROUPS)
    head = (group - tl.where(is_q, 2 * GROUPS, tl.where(is_v, GROUPS, 0))) * BLOCK_H + row % BLOCK_H
    present = token < end_token
    mask = present & (head < tl.where(is_q, HQ, HKV))
    kept = mask & ~is_q
    i = tl.arange(0, HALF)
    if QK_NORM:
        at = i * 2 if INTERLEAVED else i
        other = i * 2 + 1 if INTERLEAVED else i + HALF
        first_weight = tl.where(is_q, tl.load(QNorm + at), tl.load(KNorm + at)).to(tl.float32)[None, :]
        second_weight = tl.where(is_q, tl.load(QNorm + other), tl.load(KNorm + other)).to(tl.float32)[None, :]
    if SCALED_CACHE:
        inverse = 1.0 / tl.where(is_v, tl.load(VScale), tl.load(KScale))
    slot = tl.load(KvSlots + token, mask=present, other=0).to(tl.int64)
    rotates = present & ~is_v
    angles = tl.load(Positions + token, mask=rotates, other=0).to(tl.int64)[:, None] * (2 * HALF) + i[None, :]
    cos = tl.load(CosSin + angles, mask=rotates[:, None], other=0.0)
    sin = tl.load(CosSin + angles + HALF, mask=rotates[:, None], other=0.0)
    wait_for_previous(PDL)
    cached = (((slot // PAGE) * 2 + tl.where(is_v, 1, 0)) * HKV + head) * (PAGE * D) + (slot % PAGE) * D
    x_at = token * WIDTH + (head + tl.where(is_q, 0, HQ + tl.where(is_v, HKV, 0))) * D
    d = tl.arange(0, D)[None, :]
    if is_v:
        values = tl.load(QKV + x_at[:, None] + d, mask=mask[:, None], other=0.0)
        if not IN_PLACE:
            tl.store(Y + x_at[:, None] + d, values, mask=mask[:, None])
        if SCALED_CACHE:
            values = _saturated(values.to(tl.float32) * inverse)
        if SCALED_ROWS:
            values = values.to(tl.float32)
            value_scale = _row_scale(tl.max(tl.abs(values), 1))
            tl.store(KScale + cached // D, value_scale, mask=mask)
            values = int8_codes(tl.div_rn(values, tl.broadcast_to(value_scale[:, None], (ROWS, D))))
        tl.store(Cache + cached[:, None] + d, values.to(Cache.dtype.element_ty), mask=mask[:, None])
    else:
        first, second = _load_pair(QKV, x_at, mask, HALF, INTERLEAVED, ROWS)
        if 2 * HALF < D:
            rest = (kept if IN_PLACE else mask)[:, None] & (d >= 2 * HALF)
            passing = tl.load(QKV + x_at[:, None] + d, mask=rest, other=0.0)
        if IN_PLACE:
            tl.debug_barrier()  # several threads hold a tile smaller than the block: none may load what another has already rotated
        if QK_NORM:
            scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D + eps)[:, None]
            first *= scale * first_weight
            second *= scale * second_weight
        rotated_first, rotated_second = first * cos - second * sin, second * cos + first * sin
        _store_pair(Y, x_at, rotated_first, rotated_second, mask, HALF, INTERLEAVED, ROWS)
        if SCALED_CACHE:
            rotated_first, rotated_second = _saturated(rotated_first * inverse), _saturated(rotated_second * inverse)
        if SCALED_ROWS:
            largest = tl.maximum(tl.max(tl.abs(rotated_first), 1), tl.max(tl.abs(rotated_second), 1))
            if 2 * HALF < D:
                largest = tl.maximum(largest, tl.max(tl.abs(passing.to(tl.float32)), 1))
            row_scale = _row_scale(largest)
            tl.store(KScale + cached // D, row_scale, mask=kept)
            rotated_first = int8_codes(tl.div_rn(rotated_first, tl.broadcast_to(row_scale[:, None], (ROWS, HALF))))
            rotated_second = int8_codes(tl.div_rn(rotated_second, tl.broadcast_to(row_scale[:, None], (ROWS, HALF))))
        _store_pair(Cache, cached, rotated_first, rotated_second, kept, HALF, INTERLEAVED, ROWS)
        if 2 * HALF < D:
            if not IN_PLACE:
                tl.store(Y + x_at[:, None] + d, passing, mask=rest)
            x = passing.to(tl.float32)
            if SCALED_CACHE:
                x = _saturated(x * inverse)
            if SCALED_ROWS:
                x = int8_codes(tl.div_rn(x, tl.broadcast_to(row_scale[:, None], (ROWS, D))))
            tl.store(Cache + cached[:, None] + d, x.to(Cache.dtype.element_ty), mask=kept[:, None] & rest)


@triton.jit
def kv_write(
    QKV, Cache, KvSlots, KScale, VScale, Y, first_token, end_token,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
    SCALED_CACHE: tl.constexpr, SCALED_ROWS: tl.constexpr, IN_PLACE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """`rope_kv_write` of a model that rotates no dimension and normalizes nothing, with its grid. IN_PLACE: there are no programs of
    queries, and nothing is written but the cache."""
    let_next_start(PDL)
    GROUPS: tl.constexpr = (HKV + BLOCK_H - 1) // BLOCK_H
    ROWS: tl.constexpr = BLOCK_T * BLOCK_H
    group = tl.program_id(1)
    row = tl.arange(0, ROWS)
    token = (first_token + tl.program_id(0) * BLOCK_T + row // BLOCK_H).to(tl.int64)
    is_q, is_v = group >= 2 * GROUPS, (group >= GROUPS) & (group < 2 * GROUPS)
    head = (group - tl.where(is_q, 2 * GROUPS, tl.where(is_v, GROUPS, 0))) * BLOCK_H + row % BLOCK_H
    present = token < end_token
    mask = present & (head < tl.where(is_q, HQ, HKV))
    if SCALED_CACHE:
        inverse = 1.0 / tl.where(is_v, tl.load(VScale), tl.load(KScale))
    slot = tl.load(KvSlots + token, mask=present, other=0).to(tl.int64)
    wait_for_previous(PDL)
    cached = (((slot // PAGE) * 2 + tl.where(is_v, 1, 0)) * HKV + head) * (PAGE * D) + (slot % PAGE) * D
    x_at = token * ((HQ + 2 * HKV) * D) + (head + tl.where(is_q, 0, HQ + tl.where(is_v, HKV, 0))) * D
    d = tl.arange(0, D)[None, :]
    x = tl.load(QKV + x_at[:, None] + d, mask=mask[:, None], other=0.0)
    if not IN_PLACE:
        tl.store(Y + x_at[:, None] + d, x, mask=mask[:, None])
    kept = mask & ~is_q
    if SCALED_CACHE:
        x = _saturated(x.to(tl.float32) * inverse)
    if SCALED_ROWS:
        x = x.to(tl.float32)
        row_scale = _row_scale(tl.max(tl.abs(x), 1))
        tl.store(KScale + cached // D, row_scale, mask=kept)
        x = int8_codes(tl.div_rn(x, tl.broadcast_to(row_scale[:, None], (ROWS, D))))
    tl.store(Cache + cached[:, None] + d, x.to(Cache.dtype.element_ty), mask=kept[:, None])


@triton.jit
def _saturated(x):
    """Within what E4M3 holds."""
    return tl.minimum(tl.maximum(x, -448.0), 448.0)


@triton.jit
def _row_scale(largest):
    return tl.maximum(tl.div_rn(largest, 127.0), 1e-12)


@triton.jit
def _rotate_codes(
    QKV, Positions, CosSin, Cache, QNorm, KNorm, k_scale, Queries, Keys, eps, tokens, mask, slots, start,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, PAGE: tl.constexpr,
    INTERLEAVED: tl.constexpr, QK_NORM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Query or key heads from `start` on, of a block of tokens. HALF is 0 where no dimension rotates."""
    if HALF > 0:
        i = tl.arange(0, HALF)
        at = i * 2 if INTERLEAVED else i
        other = i * 2 + 1 if INTERLEAVED else i + HALF
        row = tl.load(Positions + tokens, mask=mask, other=0).to(tl.int64)[:, None] * (2 * HALF) + i[None, :]
        cos, sin = tl.load(CosSin + row), tl.load(CosSin + row + HALF)
    d = tl.arange(0, D)[None, :]
    is_q = start < HQ
    kept = mask & (start >= HQ)
    inverse = tl.where(is_q, 1.0, 1.0 / k_scale)
    Codes = Queries if is_q else Keys
    for h in tl.static_range(BLOCK_H):
        head = start + h
        kv_head = tl.maximum(head - HQ, 0)
        x_at = tokens * ((HQ + 2 * HKV) * D) + head * D
        codes_at = tl.where(is_q, tokens * (HQ * D) + head * D, tokens * (HKV * D) + kv_head * D)
        cached = ((slots // PAGE) * (2 * HKV) + kv_head) * (PAGE * D) + (slots % PAGE) * D
        if HALF > 0:
            first, second = _load_pair(QKV, x_at, mask, HALF, INTERLEAVED, BLOCK_T)
            if QK_NORM:
                scale = tl.rsqrt((tl.sum(first * first, 1) + tl.sum(second * second, 1)) / D + eps)[:, None]
                first *= scale * tl.where(is_q, tl.load(QNorm + at), tl.load(KNorm + at)).to(tl.float32)[None, :]
                second *= scale * tl.where(is_q, tl.load(QNorm + other), tl.load(KNorm + other)).to(tl.float32)[None, :]
            rotated_first = (first * cos - second * sin) * inverse
            rotated_second = (second * cos + first * sin) * inverse
            _store_pair(Codes, codes_at, rotated_first, rotated_second, mask, HALF, INTERLEAVED, BLOCK_T)
            _store_pair(Cache, cached, rotated_first, rotated_second, kept, HALF, INTERLEAVED, BLOCK_T)
        if 2 * HALF < D:
            rest = mask[:, None] & (d >= 2 * HALF)
            x = tl.load(QKV + x_at[:, None] + d, mask=rest, other=0.0).to(tl.float32)
            x = (x * inverse).to(Cache.dtype.element_ty)
            tl.store(Codes + codes_at[:, None] + d, x, mask=rest)
            tl.store(Cache + cached[:, None] + d, x, mask=rest & kept[:, None])


@triton.jit
def _transpose_codes(
    QKV, Cache, KvSlots, v_scale, Values, column, tokens, mask, own, first_head,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Value heads from `first_head` on, of a block of a sequence's tokens. `own`: which columns are the sequence's."""
    d = tl.arange(0, D)
    slots = tl.load(KvSlots + tokens, mask=mask, other=0).to(tl.int64)
    for h in tl.static_range(BLOCK_H):
        head = first_head + h
        x_at = tokens * ((HQ + 2 * HKV) * D) + (HQ + HKV + head) * D
        x = tl.load(QKV + x_at[:, None] + d[None, :], mask=mask[:, None], other=0.0).to(tl.float32)
        x = (x * (1.0 / v_scale)).to(Cache.dtype.element_ty)
        cached = ((slots // PAGE) * (2 * HKV) + HKV + head) * (PAGE * D) + (slots % PAGE) * D
        tl.store(Cache + cached[:, None] + d[None, :], x, mask=mask[:, None])
        row = (head * D + d).to(tl.int64) * COLUMNS
        tl.store(Values + row[:, None] + column[None, :], tl.trans(x), mask=own[None, :])


@triton.jit
def rope_kv_write_quantize(
    QKV, Positions, CosSin, Cache, KvSlots, QNorm, KNorm, QueryStart, KScale, VScale, Queries, Keys, Values, eps,
    first_token, num_tokens, num_seqs,
    HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, HALF: tl.constexpr, PAGE: tl.constexpr, COLUMNS: tl.constexpr,
    INTERLEAVED: tl.constexpr, QK_NORM: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_H: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Codes (E4M3) of tokens from first_token on, for attention of prompts and for the cache: Queries [tokens, HQ * D] without a scale,
    Keys [tokens, HKV * D], and Values [HKV * D, COLUMNS], transposed, with 16 columns to a unit: a sequence's begin at a multiple of that,
    and what is left of its last unit is 0. QKV stays as it is. The conversion to E4M3 saturates.

    A program is BLOCK_H heads of one kind of BLOCK_T tokens: of the step, or of a sequence where they are values (`tiles.locate`).
    """
    let_next_start(PDL)
    start = tl.program_id(1) * BLOCK_H
    k_scale, v_scale = tl.load(KScale), tl.load(VScale)
    i = tl.arange(0, BLOCK_T)
    wait_for_previous(PDL)
    if start < HQ + HKV:
        tokens = ((first_token // BLOCK_T + tl.program_id(0)) * BLOCK_T + i).to(tl.int64)
        mask = (tokens >= first_token) & (tokens < num_tokens)
        slots = tl.load(KvSlots + tokens, mask=mask, other=0).to(tl.int64)
        _rotate_codes(
            QKV, Positions, CosSin, Cache, QNorm, KNorm, k_scale, Queries, Keys, eps, tokens, mask, slots, start,
            HQ, HKV, D, HALF, PAGE, INTERLEAVED, QK_NORM, BLOCK_T, BLOCK_H,
        )  # fmt: skip
    else:
        seq, begin, rows, first = locate(tl.program_id(0), QueryStart, first_token, num_seqs, BLOCK_T)
        unit = begin // 16 + seq + first // 16
        _transpose_codes(
            QKV, Cache, KvSlots, v_scale, Values, (unit * 16 + i).to(tl.int64), (begin + first + i).to(tl.int64), first + i < rows,
            first + i < tl.cdiv(rows, 16) * 16, start - HQ - HKV, HQ, HKV, D, PAGE, COLUMNS, BLOCK_H,
        )  # fmt: skip
