"""Gathers of rows and columns, column slices, and the step's bookkeeping."""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import finish, result_scale


@triton.jit
def gather_rows(X, Rows, Y, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Y[r] = X[Rows[r]]. The embedding uses it, too."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < N
    source = tl.load(Rows + row).to(tl.int64)
    tl.store(Y + row * N + cols, tl.load(X + source * N + cols, mask=mask), mask=mask)


@triton.jit
def slice_columns(X, Y, STRIDE: tl.constexpr, FIRST: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """Y = X[:, FIRST : FIRST + N], X having STRIDE columns."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < N
    tl.store(Y + row * N + cols, tl.load(X + row * STRIDE + FIRST + cols, mask=mask), mask=mask)


@triton.jit
def arrange_columns(
    X, Index, Factor, OutScale, Y,
    N: tl.constexpr, BLOCK: tl.constexpr, INDEXED: tl.constexpr, SCALED: tl.constexpr, QUANTIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Y[:, k] = X[:, Index[k]] * Factor[k]. Index and Factor are constants, so they are loaded where the kernel begins."""
    let_next_start(PDL)
    scale = result_scale(OutScale, QUANTIZE)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < N
    source = tl.load(Index + cols, mask=mask, other=0) if INDEXED else cols
    factor = tl.load(Factor + cols, mask=mask, other=0.0) if SCALED else 1.0
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    x = tl.load(X + row * N + source, mask=mask, other=0.0).to(tl.float32) * factor
    tl.store(Y + row * N + cols, finish(x, scale, Y.dtype.element_ty, QUANTIZE), mask=mask)


@triton.jit
def prepare_step(
    ContextTokens, Slots, QueryStart, KvLens, LastTokens, BlockTable, Ids, Positions, KvSlots,
    num_tokens, num_seqs, table_stride, PAGE: tl.constexpr, STEPS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Each token finds its sequence by bisection of QueryStart (at most 2**STEPS sequences), then its position and cache slot."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = token < num_tokens
    low = tl.zeros((BLOCK,), tl.int32)
    high = low + num_seqs
    for _ in tl.static_range(STEPS):
        middle = (low + high) // 2
        after = tl.load(QueryStart + middle) <= token
        searching = high - low > 1
        low = tl.where(searching & after, middle, low)
        high = tl.where(searching & (after == 0), middle, high)
    end = tl.load(QueryStart + low + 1)
    owned = inside & (token < end)
    slot = tl.load(Slots + low, mask=owned, other=0)
    position = tl.load(KvLens + low, mask=owned, other=0) - (end - token)
    context = tl.load(ContextTokens + token, mask=owned, other=0)
    last = tl.load(LastTokens + slot, mask=owned, other=0)
    page = tl.load(BlockTable + slot.to(tl.int64) * table_stride + position // PAGE, mask=owned, other=0)
    tl.store(Ids + token, tl.where(owned, tl.where(context < 0, last, context), 0), mask=inside)
    tl.store(Positions + token, tl.where(owned, position, 0), mask=inside)
    tl.store(KvSlots + token, tl.where(owned, page * PAGE + position % PAGE, 0), mask=inside)
