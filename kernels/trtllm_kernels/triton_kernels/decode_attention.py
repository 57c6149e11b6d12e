"""Paged attention of one query a sequence: memory-bound, so the design is about streaming the cache.

One program reads all keys and values of one (sequence, KV head), page by page; a page of one head is one contiguous tile. The heads of a
group are the rows of one tile (padded to 16), so a key is read once. Multi-head models (group 1) use plain sums: a 16-row tensor-core tile
would be 15/16 padding. When programs would be too few to fill the chip, each sequence's pages are divided among `num_splits` programs
whose partial results `reduce_splits` merges (Dao et al. 2023, flash-decoding).
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.quantize import finish


@triton.jit
def _store_grouped(
    Out, Acc, Stats, OutScale, acc, m, total, seq, kv_head, num_splits,
    HKV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, GP: tl.constexpr, SPLIT: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    g = tl.arange(0, GP)
    d = tl.arange(0, D)
    head_row = seq * (HKV * G) + kv_head * G + g
    if SPLIT:
        part = head_row * num_splits + tl.program_id(2)
        tl.store(Acc + part[:, None] * D + d[None, :], acc, mask=g[:, None] < G)
        tl.store(Stats + part * 2, m, mask=g < G)
        tl.store(Stats + part * 2 + 1, total, mask=g < G)
    else:
        out = acc / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(Out + head_row[:, None] * D + d[None, :], finish(out, OutScale, Out.dtype.element_ty, QUANTIZE), mask=g[:, None] < G)


@triton.jit
def decode_grouped(
    QKV, Cache, BlockTable, Slots, KvLens, KScale, VScale, OutScale, Out, Acc, Stats, scale_log2, table_stride, num_splits,
    HKV: tl.constexpr, G: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, GP: tl.constexpr, SPLIT: tl.constexpr,
    SCALED_CACHE: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    """Cache: one layer, [pages, 2, HKV, PAGE, D]. Query of sequence s is token s."""
    kv_head = tl.program_id(0)
    seq = tl.program_id(1).to(tl.int64)
    length = tl.load(KvLens + seq)
    table = BlockTable + tl.load(Slots + seq).to(tl.int64) * table_stride
    last = tl.cdiv(length, PAGE)
    first = 0
    if SPLIT:
        share = tl.cdiv(last, num_splits)
        first = tl.program_id(2) * share
        last = tl.minimum(first + share, last)
    g = tl.arange(0, GP)
    d = tl.arange(0, D)
    t = tl.arange(0, PAGE)
    q = tl.load(QKV + (seq * ((G + 2) * HKV) + kv_head * G + g[:, None]) * D + d[None, :], mask=g[:, None] < G, other=0.0)
    if SCALED_CACHE:
        q = q.to(tl.float16)
        scale_log2 *= tl.load(KScale)
    m = tl.full((GP,), -1e30, tl.float32)
    total = tl.zeros((GP,), tl.float32)
    acc = tl.zeros((GP, D), tl.float32)
    for i in range(first, last):
        page = tl.load(table + i).to(tl.int64)
        keys = Cache + (page * (2 * HKV) + kv_head) * (PAGE * D)
        valid = i * PAGE + t < length
        k = tl.load(keys + t[None, :] * D + d[:, None]).to(q.dtype)
        v = tl.load(keys + HKV * PAGE * D + t[:, None] * D + d[None, :], mask=valid[:, None], other=0.0).to(q.dtype)
        x = tl.dot(q, k, input_precision="ieee") * scale_log2
        x = tl.where(valid[None, :], x, float("-inf"))
        highest = tl.maximum(m, tl.max(x, 1))
        p = tl.exp2(x - highest[:, None])
        shrink = tl.exp2(m - highest)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(q.dtype), v, acc * shrink[:, None], input_precision="ieee")
        m = highest
    if SCALED_CACHE:
        acc *= tl.load(VScale)
    _store_grouped(Out, Acc, Stats, OutScale, acc, m, total, seq, kv_head, num_splits, HKV, G, D, GP, SPLIT, QUANTIZE)


@triton.jit
def decode_single(
    QKV, Cache, BlockTable, Slots, KvLens, KScale, VScale, OutScale, Out, Acc, Stats, scale_log2, table_stride, num_splits,
    HKV: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr, SPLIT: tl.constexpr, SCALED_CACHE: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    """As `decode_grouped` for one query head a KV head."""
    head = tl.program_id(0)
    seq = tl.program_id(1).to(tl.int64)
    length = tl.load(KvLens + seq)
    table = BlockTable + tl.load(Slots + seq).to(tl.int64) * table_stride
    last = tl.cdiv(length, PAGE)
    first = 0
    if SPLIT:
        share = tl.cdiv(last, num_splits)
        first = tl.program_id(2) * share
        last = tl.minimum(first + share, last)
    d = tl.arange(0, D)
    t = tl.arange(0, PAGE)
    head_row = seq * HKV + head
    if SCALED_CACHE:
        scale_log2 *= tl.load(KScale)
    q = tl.load(QKV + (seq * (3 * HKV) + head) * D + d).to(tl.float32) * scale_log2
    m = -1e30
    total = 0.0
    acc = tl.zeros((D,), tl.float32)
    for i in range(first, last):
        page = tl.load(table + i).to(tl.int64)
        keys = Cache + (page * (2 * HKV) + head) * (PAGE * D)
        valid = i * PAGE + t < length
        k = tl.load(keys + t[:, None] * D + d[None, :])
        v = tl.load(keys + HKV * PAGE * D + t[:, None] * D + d[None, :], mask=valid[:, None], other=0.0)
        if SCALED_CACHE:
            k = k.to(tl.float16)
            v = v.to(tl.float16)
        k = k.to(tl.float32)
        v = v.to(tl.float32)
        x = tl.where(valid, tl.sum(k * q[None, :], 1), float("-inf"))
        highest = tl.maximum(m, tl.max(x, 0))
        p = tl.exp2(x - highest)
        shrink = tl.exp2(m - highest)
        total = total * shrink + tl.sum(p, 0)
        acc = acc * shrink + tl.sum(p[:, None] * v, 0)
        m = highest
    if SCALED_CACHE:
        acc *= tl.load(VScale)
    if SPLIT:
        part = head_row * num_splits + tl.program_id(2)
        tl.store(Acc + part * D + d, acc)
        tl.store(Stats + part * 2, m)
        tl.store(Stats + part * 2 + 1, total)
    else:
        out = acc / tl.where(total > 0, total, 1.0)
        tl.store(Out + head_row * D + d, finish(out, OutScale, Out.dtype.element_ty, QUANTIZE))


@triton.jit
def reduce_splits(Acc, Stats, OutScale, Out, num_splits, D: tl.constexpr, MAX_SPLITS: tl.constexpr, QUANTIZE: tl.constexpr):
    """Merge the partial results of one (sequence, head)."""
    head_row = tl.program_id(0).to(tl.int64)
    s = tl.arange(0, MAX_SPLITS)
    d = tl.arange(0, D)
    mask = s < num_splits
    part = head_row * num_splits + s
    m = tl.load(Stats + part * 2, mask=mask, other=-1e30)
    totals = tl.load(Stats + part * 2 + 1, mask=mask, other=0.0)
    weight = tl.exp2(m - tl.max(m, 0))
    total = tl.sum(totals * weight, 0)
    acc = tl.load(Acc + part[:, None] * D + d[None, :], mask=mask[:, None], other=0.0)
    out = tl.sum(acc * weight[:, None], 0) / tl.where(total > 0, total, 1.0)
    tl.store(Out + head_row * D + d, finish(out, OutScale, Out.dtype.element_ty, QUANTIZE))
