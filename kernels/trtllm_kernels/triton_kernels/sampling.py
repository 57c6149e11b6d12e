"""From logits to tokens, greedy or at a temperature: the arg-max of z, or of z / temperature + Gumbel noise (`references/sampling.py`).

Whatever computes logits (a GEMM's epilogue or `candidates` below) combines the best of its columns into one 64-bit word per row by an
atomic maximum, with the value in the high half and the column in the low half. So one word decides both, the first column wins among
equals, and the result does not depend on the order of arrival. `publish` turns the words into tokens, passes them to the next step and to
the host, and resets the words for the next step.
Rejected: candidates in memory and a second reduction (the GEMV has as many programs as pairs of rows).

Four words say how a row is sampled: its temperature's bits, its seed's low and high half, and its position. Noise is Philox4x32-10 (Salmon
et al., SC 2011) keyed by the seed and counted by position and column, as in the reference.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous


@triton.jit
def _gumbel(words):
    """-log(-log(1 - u)) of uniform words. Small u, which decide, use the series of log(1 - u): the GPU's logarithm is not exact there."""
    u = tl.minimum((words.to(tl.float32) + 0.5) * 2.3283064365386963e-10, 0.99999994)
    series = u * (1.0 + u * (0.5 + u * (0.3333333333 + u * (0.25 + u * (0.2 + u * 0.1666666667)))))
    return -tl.log(tl.where(u < 0.0625, series, -tl.log(1.0 - u)))


@triton.jit
def _ranked(z, columns):
    """int64 whose order is by z, then by the lower column."""
    bits = (z + 0.0).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - columns).to(tl.int64)


@triton.jit
def _temperature(SamplingWords, rows, inside):
    return tl.load(SamplingWords + rows * 4, mask=inside, other=0).to(tl.float32, bitcast=True)


@triton.jit
def _with_noise(z, SamplingWords, rows, columns, inside, temperature):
    """z [rows, columns] / temperature + noise, except in rows of temperature 0."""
    low = tl.load(SamplingWords + rows * 4 + 1, mask=inside, other=0)[:, None].to(tl.uint32, bitcast=True)
    high = tl.load(SamplingWords + rows * 4 + 2, mask=inside, other=0)[:, None].to(tl.uint32, bitcast=True)
    position = tl.load(SamplingWords + rows * 4 + 3, mask=inside, other=0)[:, None]
    every = tl.zeros_like(z).to(tl.int32)
    block = (every + (columns // 4)[None, :]).to(tl.uint32)
    zero = every.to(tl.uint32)
    a, b, c, d = tl.philox_impl(block, zero + position.to(tl.uint32), zero, zero, zero + low, zero + high, 10)
    place = every + (columns % 4)[None, :]
    word = tl.where(place < 2, tl.where(place == 0, a, b), tl.where(place == 2, c, d))
    random = (temperature > 0.0)[:, None]
    return tl.where(random, z / tl.where(random, temperature[:, None], 1.0) + _gumbel(word), z)


@triton.jit
def keep_best(logits, ArgmaxScratch, SamplingWords, rows, columns, num_rows, num_columns):
    """Combines the best of `logits` [rows, columns], as stored, into ArgmaxScratch: of rows below `num_rows` and columns below
    `num_columns`."""
    inside = rows < num_rows
    z = tl.where((columns < num_columns)[None, :], logits.to(tl.float32), float("-inf"))
    temperature = _temperature(SamplingWords, rows, inside)
    if tl.max(temperature, 0) > 0.0:
        z = _with_noise(z, SamplingWords, rows, columns, inside, temperature)
    best = tl.max(z, 1)
    first = tl.min(tl.where(z == best[:, None], columns[None, :], num_columns - 1), 1)
    tl.atomic_max(ArgmaxScratch + rows, _ranked(best, first), mask=inside, sem="relaxed")


@triton.jit
def candidates(
    Logits, ArgmaxScratch, SamplingWords, num_rows, N: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Logits [num_rows, N]. A program takes BLOCKS times BLOCK columns of one row, of which the next two BLOCK are on their way while these
    are compared, each with the best of its place before: only the last comparison is between threads."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0) + tl.arange(0, 1)
    inside = row < num_rows
    temperature = _temperature(SamplingWords, row, inside)
    begin = tl.program_id(1) * (BLOCKS * BLOCK)
    end = tl.minimum(begin + BLOCKS * BLOCK, N)
    columns = begin + tl.arange(0, BLOCK)
    at = Logits + row.to(tl.int64)[:, None] * N
    coming = tl.load(at + columns[None, :], mask=(columns < end)[None, :], other=float("-inf"))
    later = tl.load(at + columns[None, :] + BLOCK, mask=(columns + BLOCK < end)[None, :], other=float("-inf"))
    best = tl.full((1, BLOCK), float("-inf"), tl.float32)
    first = tl.zeros((1, BLOCK), tl.int32) + columns[None, :]
    for _ in range(tl.cdiv(end - begin, BLOCK)):
        z, coming = coming.to(tl.float32), later
        ahead = columns + 2 * BLOCK
        later = tl.load(at + ahead[None, :], mask=(ahead < end)[None, :], other=float("-inf"))
        if tl.max(temperature, 0) > 0.0:
            z = _with_noise(z, SamplingWords, row, columns, inside, temperature)
        better = z > best
        best = tl.where(better, z, best)
        first = tl.where(better, columns[None, :], first)
        columns += BLOCK
    most = tl.max(best, 1)
    first_of_most = tl.min(tl.where(best == most[:, None], first, N - 1), 1)
    tl.atomic_max(ArgmaxScratch + row, _ranked(most, first_of_most), mask=inside, sem="relaxed")


@triton.jit
def rank_candidates(
    Logits, ArgmaxScratch, SamplingWords, Group, num_rows, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """As `candidates`, of this rank's columns of the vocabulary, N a rank in rank order. Group (`dialect/group.py`): its first 32 bits are
    the rank's number."""
    let_next_start(PDL)
    first_column = tl.load(Group).to(tl.int32) * N
    wait_for_previous(PDL)
    row = tl.program_id(0) + tl.arange(0, 1)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(Logits + row.to(tl.int64)[:, None] * N + columns[None, :], mask=(columns < N)[None, :], other=float("-inf"))
    keep_best(logits, ArgmaxScratch, SamplingWords, row, columns + first_column, num_rows, N + first_column)


@triton.jit
def publish(ArgmaxScratch, Slots, RingSlot, Tokens, LastTokens, Ring, num_rows, ring_stride, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Writes Tokens [num_rows], LastTokens of their slots, and row RingSlot of Ring [ring slots, ring_stride] in host memory.

    A row whose best logit is NaN or infinite has no token: the host is told -1, and the next step, whose result nobody wants, reads 0.
    """
    let_next_start(PDL)
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    slot = tl.load(Slots + row, mask=inside, other=0)
    ring_slot = tl.load(RingSlot)
    wait_for_previous(PDL)
    word = tl.load(ArgmaxScratch + row, mask=inside, other=0)
    ordered = (word >> 32).to(tl.int32)
    finite = (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)) & 0x7F800000 != 0x7F800000
    column = 0x7FFFFFFF - (word & 0xFFFFFFFF).to(tl.int32)
    token = tl.where(finite, column, 0)
    tl.store(Tokens + row, token, mask=inside)
    tl.store(LastTokens + slot, token, mask=inside)
    tl.store(Ring + ring_slot * ring_stride + row, tl.where(finite, column, -1), mask=inside)
    tl.store(ArgmaxScratch + row, tl.full((BLOCK,), -9223372036854775808, tl.int64), mask=inside)
