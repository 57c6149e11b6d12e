"""Paged causal attention of context chunks: a ragged batch of sequences, each with many queries that end at its cache's last row.

A program is one tile of queries of one KV head. The group's heads are folded into the tile's rows (row = token * G + head in group), so a
key tile is read once per group and short prompts still fill the tile. Late tiles (the longest) start first. Tiles wholly below the diagonal
skip the mask. With SKIP_UNCACHED, sequences without a cached past are left to `uncached_prefill_attention`.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import finish, int8_values, result_scale
from trtllm_kernels.triton_kernels.tiles import locate


@triton.jit
def _visit(
    acc, m, total, q, position, start, length, kv_head, table, Cache, Scales, scale_log2,
    HKV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK_N: tl.constexpr,
    SCALED_ROWS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Folds keys [start, start + BLOCK_N) into the running softmax (Milakov and Gimelshein 2018)."""
    n = start + tl.arange(0, BLOCK_N)
    d = tl.arange(0, D)
    if MASKED:
        present = n < length
        page = tl.load(table + n // PAGE, mask=present, other=0).to(tl.int64)
    else:
        page = tl.load(table + n // PAGE).to(tl.int64)
    keys = (page * (2 * HKV) + kv_head) * (PAGE * D) + (n % PAGE) * D
    at = Cache + keys[:, None] + d[None, :]
    if MASKED:
        k = tl.load(at, mask=present[:, None], other=0.0)
        v = tl.load(at + HKV * PAGE * D, mask=present[:, None], other=0.0)
    else:
        k = tl.load(at)
        v = tl.load(at + HKV * PAGE * D)
    k = int8_values(k, q.dtype) if SCALED_ROWS else k.to(q.dtype)
    v = int8_values(v, q.dtype) if SCALED_ROWS else v.to(q.dtype)
    x = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2
    if SCALED_ROWS:
        present = n < length
        x *= tl.load(Scales + keys // D, mask=present, other=0.0)[None, :]
    if MASKED:
        x = tl.where(n[None, :] <= position[:, None], x, float("-inf"))
    highest = tl.maximum(m, tl.max(x, 1))
    p = tl.exp2(x - highest[:, None])
    shrink = tl.exp2(m - highest)
    total = total * shrink + tl.sum(p, 1)
    if SCALED_ROWS:
        p *= tl.load(Scales + keys // D + HKV * PAGE, mask=present, other=0.0)[None, :]
    acc = tl.dot(p.to(q.dtype), v, acc * shrink[:, None], input_precision="ieee")
    return acc, highest, total


@triton.jit
def context_attention(
    QKV, Cache, BlockTable, Slots, QueryStart, KvLens, KScale, VScale, OutScale, Out, scale_log2, table_stride, num_decodes, num_seqs,
    HKV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    SCALED_CACHE: tl.constexpr, SCALED_ROWS: tl.constexpr, QUANTIZE: tl.constexpr, SKIP_UNCACHED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Cache: one layer, [pages, 2, HKV, PAGE, D]. Sequences [num_decodes, num_seqs); decode tokens precede theirs.

    SCALED_CACHE: the cache is fp8. SCALED_ROWS: it is int8, and KScale is the layer's [pages, 2, HKV, PAGE], a scale for each row.
    """
    let_next_start(PDL)
    if SCALED_CACHE:
        k_scale, v_scale = tl.load(KScale), tl.load(VScale)
    out_scale = result_scale(OutScale, QUANTIZE)
    wait_for_previous(PDL)
    BLOCK_Q: tl.constexpr = BLOCK_M // G
    kv_head = tl.program_id(1)
    seq, begin, queries, first = locate(tl.num_programs(0) - 1 - tl.program_id(0), QueryStart, num_decodes, num_seqs, BLOCK_Q)
    length = tl.load(KvLens + seq)
    if first >= queries or (SKIP_UNCACHED and length == queries):
        return
    table = BlockTable + tl.load(Slots + seq).to(tl.int64) * table_stride

    row = tl.arange(0, BLOCK_M)
    d = tl.arange(0, D)
    token = first + row // G
    live = (token < queries) & (row < BLOCK_Q * G)
    position = length - queries + token
    head_row = (begin + token).to(tl.int64) * (HKV * G) + kv_head * G + row % G
    query_row = (begin + token).to(tl.int64) * ((G + 2) * HKV) + kv_head * G + row % G
    q = tl.load(QKV + query_row[:, None] * D + d[None, :], mask=live[:, None], other=0.0)
    if SCALED_CACHE:
        q = q.to(tl.float16)
        scale_log2 *= k_scale
    if SCALED_ROWS:
        q = q.to(tl.float16)

    m = tl.full((BLOCK_M,), -1e30, tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, D), tl.float32)
    seen_by_all = (length - queries + first + 1) // BLOCK_N * BLOCK_N
    seen_by_any = length - queries + tl.minimum(first + BLOCK_Q, queries)
    for start in range(0, seen_by_all, BLOCK_N):
        acc, m, total = _visit(
            acc, m, total, q, position, start, length, kv_head, table, Cache, KScale, scale_log2, HKV, D, PAGE, BLOCK_N, SCALED_ROWS, False
        )  # fmt: skip
    for start in range(seen_by_all, seen_by_any, BLOCK_N):
        acc, m, total = _visit(
            acc, m, total, q, position, start, length, kv_head, table, Cache, KScale, scale_log2, HKV, D, PAGE, BLOCK_N, SCALED_ROWS, True
        )  # fmt: skip
    if SCALED_CACHE:
        acc *= v_scale
    out = acc / tl.where(total > 0, total, 1.0)[:, None]
    tl.store(Out + head_row[:, None] * D + d[None, :], finish(out, out_scale, Out.dtype.element_ty, QUANTIZE), mask=live[:, None])
