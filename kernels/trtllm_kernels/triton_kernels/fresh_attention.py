"""Causal attention of context chunks whose own keys and values are read where the projection left them, not from the cache.

A chunk's keys are of two kinds: those computed in this step, still contiguous in the rotated QKV rows, and those of earlier steps, in pages of
the cache. Contiguous ones come as whole tiles through TMA; only a past, if there is one, is gathered page by page. Fresh keys are also exact
where the cache is fp8. Measured on an H100, bf16, head 128 (docs/facts.md): 461 TFLOP/s at 8 x 2048 and 511 at 2 x 8192 against
347 and 388 through pages. Tiles, their order and the search for a tile's sequence are `context_attention`'s.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.quantize import finish


@triton.jit
def _fold(acc, m, l, q, k, v, mask, scale_log2, MASKED: tl.constexpr):
    """One tile of keys into the running softmax (Milakov and Gimelshein 2018)."""
    x = tl.dot(q, tl.trans(k))
    if MASKED:
        x = tl.where(mask, x * scale_log2, float("-inf"))
        highest = tl.maximum(m, tl.max(x, 1))
        p = tl.exp2(x - highest[:, None])
    else:
        highest = tl.maximum(m, tl.max(x, 1) * scale_log2)
        p = tl.exp2(x * scale_log2 - highest[:, None])
    shrink = tl.exp2(m - highest)
    l = l * shrink + tl.sum(p, 1)
    acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
    return acc, highest, l


@triton.jit
def fresh_attention(
    QKV, Fresh, Cache, BlockTable, Slots, QueryStart, KvLens, KScale, VScale, OutScale, Out, scale_log2, table_stride, num_decodes, num_seqs,
    HKV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PAST_N: tl.constexpr, SCALED_CACHE: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    """QKV [tokens, (G*HKV + 2*HKV) * D], rotated; Fresh is its TMA descriptor of [BLOCK_N, D] boxes. Cache: one layer, [pages, 2, HKV, PAGE, D].

    Sequences [num_decodes, num_seqs); decode tokens precede theirs.
    """
    BLOCK_Q: tl.constexpr = BLOCK_M // G
    WIDTH: tl.constexpr = (G + 2) * HKV * D
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    low = num_decodes
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if (tl.load(QueryStart + middle) - num_decodes) // BLOCK_Q + (middle - num_decodes) <= tile:
            low = middle
        else:
            high = middle
    seq = low
    begin = tl.load(QueryStart + seq)
    queries = tl.load(QueryStart + seq + 1) - begin
    first = (tile - ((begin - num_decodes) // BLOCK_Q + (seq - num_decodes))) * BLOCK_Q
    if first >= queries:
        return
    past = tl.load(KvLens + seq) - queries

    row = tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    n = tl.arange(0, BLOCK_N)
    token = first + row // G
    live = (token < queries) & (row < BLOCK_Q * G)
    head = kv_head * G + row % G
    q = tl.load(QKV + (begin + token).to(tl.int64)[:, None] * WIDTH + head[:, None] * D + d[None, :], mask=live[:, None], other=0.0)

    m = tl.full((BLOCK_M,), -1e30, tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    if past > 0:
        table = BlockTable + tl.load(Slots + seq).to(tl.int64) * table_stride
        past_scale = scale_log2
        if SCALED_CACHE:
            past_scale = scale_log2 * tl.load(KScale)
        earlier = tl.arange(0, PAST_N)
        for start in range(0, past, PAST_N):
            key = start + earlier
            present = key < past
            page = tl.load(table + key // PAGE, mask=present, other=0).to(tl.int64)
            at = Cache + ((page * (2 * HKV) + kv_head) * (PAGE * D) + (key % PAGE) * D)[:, None] + d[None, :]
            k = tl.load(at, mask=present[:, None], other=0.0).to(q.dtype)
            v = tl.load(at + HKV * PAGE * D, mask=present[:, None], other=0.0).to(q.dtype)
            acc, m, l = _fold(acc, m, l, q, k, v, present[None, :], past_scale, True)
        if SCALED_CACHE:
            acc *= tl.load(VScale)

    key_column = (G * HKV + kv_head) * D
    value_column = ((G + 1) * HKV + kv_head) * D
    seen_by_all = (first + 1) // BLOCK_N * BLOCK_N
    seen_by_any = tl.minimum(first + BLOCK_Q, queries)
    for start in range(0, seen_by_all, BLOCK_N):
        k = Fresh.load([begin + start, key_column])
        v = Fresh.load([begin + start, value_column])
        acc, m, l = _fold(acc, m, l, q, k, v, live[:, None], scale_log2, False)
    whole = tl.minimum(tl.cdiv(seen_by_any, BLOCK_N), queries // BLOCK_N) * BLOCK_N
    for start in range(seen_by_all, whole, BLOCK_N):
        k = Fresh.load([begin + start, key_column])
        v = Fresh.load([begin + start, value_column])
        acc, m, l = _fold(acc, m, l, q, k, v, (start + n)[None, :] <= token[:, None], scale_log2, True)
    for start in range(whole, seen_by_any, BLOCK_N):
        k = Fresh.load([begin + start, key_column])
        v = Fresh.load([begin + start, value_column])
        v = tl.where((start + n < queries)[:, None], v, 0.0)
        acc, m, l = _fold(acc, m, l, q, k, v, (start + n)[None, :] <= token[:, None], scale_log2, True)
    out = acc / tl.where(l > 0, l, 1.0)[:, None]
    out_row = (begin + token).to(tl.int64) * (HKV * G) + head
    tl.store(Out + out_row[:, None] * D + d[None, :], finish(out, OutScale, Out.dtype.element_ty, QUANTIZE), mask=live[:, None])
