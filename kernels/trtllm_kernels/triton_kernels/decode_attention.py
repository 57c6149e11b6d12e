"""Paged attention of one query per sequence: bound by memory, so the design is about streaming the cache.

One program reads all keys and values of one (sequence, KV head), page by page; a page of one head is one contiguous tile. Keys are rows of
the left operand, and a group's heads, padded to 8, are columns of the right one: scores are [PAGE, heads], results [D, heads]. With the
operands swapped, the group would be padded to 16 rows, and twice the registers and instructions would be spent on padding.
Tensor cores need pairs of values that follow each other in time, and the bytes of an fp8 tile can be transposed on the way from shared
memory only one by one. So values are read as words of four dimensions, and the four bytes of a word feed four multiplications, each of
which computes every fourth dimension. This way half of a GPU's SMs nearly suffice to read its memory. It holds for multi-head models (group
1) too, where plain sums are slower.
When there would be too few programs to fill the GPU, each sequence's pages are split among `num_splits` programs, whose partial results
`reduce_splits` merges (Dao et al. 2023, flash-decoding).

What a step of the loop costs is mostly latency: maxima and sums cross warps through shared memory, and each product waits for the one
before. So with few and short sequences, whose programs are too few to hide it, a step may take several pages at once (PAGES), and the page
numbers of the next step may be read in this one (AHEAD): addresses of the cache are then known when a step begins, and every stage of the
pipeline holds keys and values. Else each address waits for a page number, and half of the stages only read those.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.prefetch import prefetch_rows
from trtllm_kernels.triton_kernels.quantize import finish, int8_values, result_scale


@triton.jit
def _byte(words, index: tl.constexpr, dtype: tl.constexpr, INT8: tl.constexpr):
    codes = ((words >> (8 * index)) & 0xFF).to(tl.uint8)
    if INT8:
        return int8_values(codes, dtype)
    else:
        return codes.to(tl.float8e4nv, bitcast=True).to(dtype)


@triton.jit
def _pages_of_part(pages, num_splits, PAGES: tl.constexpr):
    """How many of a sequence's pages one of its parts reads, in whole steps of PAGES."""
    return tl.cdiv(tl.cdiv(pages, PAGES), num_splits) * PAGES


@triton.jit
def _pages(table, first, last, TOKENS: tl.constexpr, PAGE: tl.constexpr):
    """For each of TOKENS tokens from page `first` on, its page; 0 from page `last` on."""
    page = first + tl.arange(0, TOKENS) // PAGE
    return tl.load(table + page, mask=page < last, other=0)


@triton.jit
def decode_attention(
    QKV, Cache, BlockTable, Slots, KvLens, KScale, VScale, OutScale, Out, Acc, Stats, scale_log2, table_stride, num_splits,
    HKV: tl.constexpr, G: tl.constexpr, GP: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, SPLIT: tl.constexpr,
    SCALED_CACHE: tl.constexpr, SCALED_ROWS: tl.constexpr, WORDS: tl.constexpr, QUANTIZE: tl.constexpr, CONCURRENT: tl.constexpr,
    THREADS: tl.constexpr, PAGES: tl.constexpr, AHEAD: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Cache: one layer, [pages, 2, HKV, PAGE, D], fp8 where SCALED_CACHE. The query of sequence s is token s. GP: G padded. PAGES: how
    many pages a step of the loop takes, one unless AHEAD.

    SCALED_ROWS: the cache is int8, and KScale is the layer's [pages, 2, HKV, PAGE], the scale of each key and value.

    CONCURRENT: runs while the kernel before it does (`types.Launch`), so it does not wait. SPLIT: the program has a short part, so
    prefetching its first page into L2 before the wait pays off; what the step itself writes there goes through L2 as well.
    """
    let_next_start(PDL)
    if SCALED_CACHE:
        k_scale, v_scale = tl.load(KScale), tl.load(VScale)
    out_scale = result_scale(OutScale, QUANTIZE)
    kv_head = tl.program_id(0)
    seq = tl.program_id(1).to(tl.int64)
    length = tl.load(KvLens + seq)
    table = BlockTable + tl.load(Slots + seq).to(tl.int64) * table_stride
    last = tl.cdiv(length, PAGE)
    first = 0
    if SPLIT:
        share = _pages_of_part(last, num_splits, PAGES)
        first = tl.program_id(2) * share
        last = tl.minimum(first + share, last)
        if PDL:
            for j in tl.static_range(PAGES):
                first_page = tl.load(table + tl.maximum(tl.minimum(first + j, last - 1), 0)).to(tl.int64)
                at = Cache + (first_page * (2 * HKV) + kv_head) * (PAGE * D)
                prefetch_rows(at, HKV * PAGE * D, 2, PAGE * D * Cache.dtype.element_ty.primitive_bitwidth // 1024, THREADS)
    t = tl.arange(0, PAGES * PAGE)
    if AHEAD:
        pages = _pages(table, first, last, PAGES * PAGE, PAGE)
    wait_for_previous(PDL and not CONCURRENT)
    g = tl.arange(0, GP)
    d = tl.arange(0, D)
    q = tl.load(QKV + (seq * ((G + 2) * HKV) + kv_head * G + g[None, :]) * D + d[:, None], mask=g[None, :] < G, other=0.0)
    if SCALED_CACHE:
        q = q.to(tl.float16)
        scale_log2 *= k_scale
    if SCALED_ROWS:
        q = q.to(tl.float16)
    m = tl.full((GP,), -1e30, tl.float32)
    total = tl.zeros((GP,), tl.float32)
    if WORDS:
        four = tl.arange(0, D // 4)
        Words = Cache.to(tl.pointer_type(tl.int32), bitcast=True)
        acc0 = tl.zeros((D // 4, GP), tl.float32)
        acc1 = tl.zeros((D // 4, GP), tl.float32)
        acc2 = tl.zeros((D // 4, GP), tl.float32)
        acc3 = tl.zeros((D // 4, GP), tl.float32)
    else:
        acc = tl.zeros((D, GP), tl.float32)
    for i in range(first, last, PAGES):
        valid = i * PAGE + t < length
        if AHEAD:
            page = pages.to(tl.int64)
            pages = _pages(table, i + PAGES, last, PAGES * PAGE, PAGE)
        else:
            page = tl.load(table + i).to(tl.int64)
        keys = (page * (2 * HKV) + kv_head) * (PAGE * D)
        values = keys + HKV * PAGE * D
        if AHEAD:
            k_row, v_row, of_page = keys[:, None], values[None, :], t % PAGE
        else:
            k_row, v_row, of_page = keys, values, t
        k = tl.load(Cache + k_row + of_page[:, None] * D + d[None, :])
        k = int8_values(k, q.dtype) if SCALED_ROWS else k.to(q.dtype)
        if WORDS:
            w = tl.load(Words + v_row // 4 + of_page[None, :] * (D // 4) + four[:, None], mask=valid[None, :], other=0)
        else:
            v = tl.load(Cache + v_row + of_page[None, :] * D + d[:, None], mask=valid[None, :], other=0.0)
            v = int8_values(v, q.dtype) if SCALED_ROWS else v.to(q.dtype)
        x = tl.dot(k, q, input_precision="ieee") * scale_log2
        if SCALED_ROWS:
            x *= tl.load(KScale + keys // D + of_page)[:, None]
        x = tl.where(valid[:, None], x, float("-inf"))
        highest = tl.maximum(m, tl.max(x, 0))
        p = tl.exp2(x - highest[None, :])
        shrink = tl.exp2(m - highest)
        total = total * shrink + tl.sum(p, 0)
        if SCALED_ROWS:
            p *= tl.load(KScale + values // D + of_page, mask=valid, other=0.0)[:, None]
        p = p.to(q.dtype)
        shrink = shrink[None, :]
        if WORDS:
            acc0 = tl.dot(_byte(w, 0, q.dtype, SCALED_ROWS), p, acc0 * shrink)
            acc1 = tl.dot(_byte(w, 1, q.dtype, SCALED_ROWS), p, acc1 * shrink)
            acc2 = tl.dot(_byte(w, 2, q.dtype, SCALED_ROWS), p, acc2 * shrink)
            acc3 = tl.dot(_byte(w, 3, q.dtype, SCALED_ROWS), p, acc3 * shrink)
        else:
            acc = tl.dot(v, p, acc * shrink, input_precision="ieee")
        m = highest
    if WORDS:
        both = tl.join(tl.join(acc0, acc2), tl.join(acc1, acc3))
        acc = tl.reshape(tl.permute(both, (0, 2, 3, 1)), (D, GP))
    if SCALED_CACHE:
        acc *= v_scale
    head_row = seq * (HKV * G) + kv_head * G + g
    if SPLIT:
        part = head_row * num_splits + tl.program_id(2)
        tl.store(Acc + part[None, :] * D + d[:, None], acc, mask=g[None, :] < G)
        tl.store(Stats + part * 2, m, mask=g < G)
        tl.store(Stats + part * 2 + 1, total, mask=g < G)
    else:
        out = acc / tl.where(total > 0, total, 1.0)[None, :]
        tl.store(Out + head_row[None, :] * D + d[:, None], finish(out, out_scale, Out.dtype.element_ty, QUANTIZE), mask=g[None, :] < G)


@triton.jit
def reduce_splits(
    Acc, Stats, KvLens, OutScale, Out, num_splits, HEADS: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, PAGES: tl.constexpr,
    MAX_SPLITS: tl.constexpr, QUANTIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Merges the partial results of one (sequence, head), of its parts that have pages."""
    let_next_start(PDL)
    out_scale = result_scale(OutScale, QUANTIZE)
    head_row = tl.program_id(0).to(tl.int64)
    pages = tl.cdiv(tl.load(KvLens + head_row // HEADS), PAGE)
    parts = tl.cdiv(pages, tl.maximum(_pages_of_part(pages, num_splits, PAGES), 1))
    wait_for_previous(PDL)
    s = tl.arange(0, MAX_SPLITS)
    d = tl.arange(0, D)
    mask = s < parts
    part = head_row * num_splits + s
    m = tl.load(Stats + part * 2, mask=mask, other=-1e30)
    totals = tl.load(Stats + part * 2 + 1, mask=mask, other=0.0)
    weight = tl.exp2(m - tl.max(m, 0))
    total = tl.sum(totals * weight, 0)
    acc = tl.load(Acc + part[:, None] * D + d[None, :], mask=mask[:, None], other=0.0)
    out = tl.sum(acc * weight[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(Out + head_row * D + d, finish(out, out_scale, Out.dtype.element_ty, QUANTIZE))
