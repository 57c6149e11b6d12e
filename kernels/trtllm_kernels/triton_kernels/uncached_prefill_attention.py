"""Causal attention of uncached prefill: whole prompts, none of them cached before this step, with keys and values read from the projection.

They are contiguous in the rotated QKV rows, so whole tiles come by TMA, and they are exact even where the cache is fp8. A program is one
tile of tokens of one query head; late tiles (the longest) start first. On an H100 this is faster than reading pages
(docs/facts/kernels-prefill-attention.md). Chunks with a cached past are left to `context_attention`.

When it runs concurrently with decode attention (`lowering/attention.py`), one program per SM walks the tiles. It leaves the rest of every
SM to that kernel, which waits for memory, and computes in the meantime.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import finish, result_scale
from trtllm_kernels.triton_kernels.tiles import locate


@triton.jit
def _fold(acc, m, total, q, Keys, row, key_column, value_column, visible, present, scale_log2, MASKED: tl.constexpr, LAST: tl.constexpr):
    """Folds one tile of keys into the running softmax (Milakov and Gimelshein 2018)."""
    x = tl.dot(q, tl.trans(Keys.load([row, key_column])))
    if MASKED:
        x = tl.where(visible, x * scale_log2, float("-inf"))
        highest = tl.maximum(m, tl.max(x, 1))
        p = tl.exp2(x - highest[:, None])
    else:
        highest = tl.maximum(m, tl.max(x, 1) * scale_log2)
        p = tl.exp2(x * scale_log2 - highest[:, None])
    shrink = tl.exp2(m - highest)
    total = total * shrink + tl.sum(p, 1)
    acc *= shrink[:, None]
    v = Keys.load([row, value_column])
    if LAST:
        v = tl.where(present[:, None], v, 0.0)
    acc = tl.dot(p.to(v.dtype), v, acc)
    return acc, highest, total


@triton.jit
def _tile(
    Queries, Keys, QueryStart, KvLens, Out, out_scale, scale_log2, num_decodes, num_seqs, tile, head,
    HKV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    seq, begin, queries, first = locate(tile, QueryStart, num_decodes, num_seqs, BLOCK_M)
    if first < queries and tl.load(KvLens + seq) <= queries:
        token = first + tl.arange(0, BLOCK_M)
        n = tl.arange(0, BLOCK_N)
        d = tl.arange(0, D)
        key_column = (G * HKV + head // G) * D
        value_column = key_column + HKV * D
        q = Queries.load([begin + first, head * D])

        m = tl.full((BLOCK_M,), -1e30, tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, D), tl.float32)
        seen_by_all = (first + 1) // BLOCK_N * BLOCK_N
        seen_by_any = tl.minimum(first + BLOCK_M, queries)
        whole = tl.minimum(tl.cdiv(seen_by_any, BLOCK_N), queries // BLOCK_N) * BLOCK_N
        for start in range(0, seen_by_all, BLOCK_N):
            acc, m, total = _fold(acc, m, total, q, Keys, begin + start, key_column, value_column, True, True, scale_log2, False, False)
        for start in range(seen_by_all, whole, BLOCK_N):
            visible = (start + n)[None, :] <= token[:, None]
            acc, m, total = _fold(acc, m, total, q, Keys, begin + start, key_column, value_column, visible, True, scale_log2, True, False)
        for start in range(whole, seen_by_any, BLOCK_N):
            visible = (start + n)[None, :] <= token[:, None]
            present = start + n < queries
            acc, m, total = _fold(acc, m, total, q, Keys, begin + start, key_column, value_column, visible, present, scale_log2, True, True)
        out = acc / total[:, None]
        at = ((begin + token).to(tl.int64) * (HKV * G) + head)[:, None] * D + d[None, :]
        tl.store(Out + at, finish(out, out_scale, Out.dtype.element_ty, QUANTIZE), mask=(token < queries)[:, None])


@triton.jit
def uncached_prefill_attention(
    Queries, Keys, QueryStart, KvLens, OutScale, Out, scale_log2, num_decodes, num_seqs, num_tiles,
    HKV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, QUANTIZE: tl.constexpr,
    PROGRAMS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Queries and Keys are TMA descriptors of one matrix, [tokens, (G*HKV + 2*HKV) * D], in boxes [BLOCK_M, D] and [BLOCK_N, D].

    Sequences [num_decodes, num_seqs); decode tokens precede theirs. Those with more keys than queries are skipped.
    PROGRAMS: this many programs walk all tiles; with 0 each tile has its own, on a grid of [num_tiles, heads].
    """
    let_next_start(PDL)
    out_scale = result_scale(OutScale, QUANTIZE)
    wait_for_previous(PDL)
    if PROGRAMS:
        for index in range(tl.program_id(0), num_tiles * (HKV * G), PROGRAMS):
            _tile(
                Queries, Keys, QueryStart, KvLens, Out, out_scale, scale_log2, num_decodes, num_seqs,
                num_tiles - 1 - index // (HKV * G), index % (HKV * G), HKV, G, D, BLOCK_M, BLOCK_N, QUANTIZE,
            )  # fmt: skip
    else:
        _tile(
            Queries, Keys, QueryStart, KvLens, Out, out_scale, scale_log2, num_decodes, num_seqs,
            num_tiles - 1 - tl.program_id(0), tl.program_id(1), HKV, G, D, BLOCK_M, BLOCK_N, QUANTIZE,
        )  # fmt: skip
