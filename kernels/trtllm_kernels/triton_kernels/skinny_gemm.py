"""Skinny GEMM, of 2 to 64 tokens: nearly all of its time is that of reading the weight, while tensor cores multiply.

Weight rows are the tall side of the tensor core's tile and the tokens, padded to TOKENS, the narrow one: with the operands of a GEMM of
many tokens, 64 rows of x would be multiplied whatever their number. Weights and x are streamed by TMA, several steps of K in advance, so
that the bytes in flight cover the memory's latency. A tile of x is read from L2 once per tile of rows. Tiles of more rows, which read it
less often, gained next to nothing in trials on an H100.
Where tiles of rows alone are too few to fill the GPU, K is split among SPLITS programs each (split-K). Their sums go to memory in fp32, and
`skinny_sum` adds them in order, so that the same step gives the same bits. Rejected: atomic additions, whose order changes.

Before x is available (`pdl.py`), a program prefetches the beginning of its rows into L2 (`prefetch.py`), LINES lines of each: TMA loads
begin after the wait. Rows of x past the step's tokens are read (the buffer has them, or TMA gives zeros), but their results are not stored.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.activations import gelu_tanh, swiglu
from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.prefetch import prefetch_rows
from trtllm_kernels.triton_kernels.quantize import finish, result_scale
from trtllm_kernels.triton_kernels.sampling import keep_best
from trtllm_kernels.triton_kernels.sums import add_product, no_sums


@triton.jit
def _sums(
    X, W, WeightRows, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
    LINES: tl.constexpr, THREADS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """fp32 [BLOCK_N, TOKENS]: this program's rows of W times x over its part of K, after the wait for x. Past N and K TMA reads zeros."""
    SHARE: tl.constexpr = ((K + BLOCK_K - 1) // BLOCK_K + SPLITS - 1) // SPLITS
    row = tl.program_id(0) * BLOCK_N
    first = tl.program_id(1) * (SHARE * BLOCK_K)
    prefetch_rows(WeightRows + row.to(tl.int64) * K + first, K, BLOCK_N, LINES, THREADS)
    wait_for_previous(PDL)
    acc = no_sums(BLOCK_N, TOKENS, W.dtype)
    for step in range(SHARE):
        k = first + step * BLOCK_K
        acc = add_product(W.load([row, k]), X.load([0, k]), acc)
    return acc.to(tl.float32)


@triton.jit
def _weight_scale(WScale, rows, N: tl.constexpr, SCALED: tl.constexpr, SCALED_ROWS: tl.constexpr):
    """The scale of W, a constant, so it is loaded before the wait."""
    if SCALED_ROWS:
        return tl.load(WScale + rows, mask=rows < N, other=0.0)
    elif SCALED:
        return tl.load(WScale)
    else:
        return 1.0


@triton.jit
def _epilogue(
    y, tokens, rows, Bias, Residual, XScale, w_scale, num_tokens, N: tl.constexpr, SCALED: tl.constexpr, SCALED_ROWS: tl.constexpr,
    BIASED: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """fp32 sums [tokens, rows], scaled, with bias and residual added."""
    if SCALED_ROWS:
        y *= w_scale[None, :] * tl.load(XScale + tokens, mask=tokens < num_tokens, other=0.0)[:, None]
    elif SCALED:
        y *= w_scale * tl.load(XScale)
    if BIASED:
        y += tl.load(Bias + rows, mask=rows < N, other=0.0).to(tl.float32)[None, :]
    if ADDED:
        inside = (tokens < num_tokens)[:, None] & (rows < N)[None, :]
        y += tl.load(Residual + tokens[:, None] * N + rows[None, :], mask=inside, other=0.0).to(tl.float32)
    return y


@triton.jit
def skinny_linear(
    X, W, WeightRows, Bias, Residual, XScale, WScale, Y, ArgmaxScratch, SamplingWords, num_tokens,
    N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr, LINES: tl.constexpr,
    THREADS: tl.constexpr, SCALED: tl.constexpr, SCALED_ROWS: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr,
    SAMPLED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """X [tokens, K], W [N, K], TMA descriptors; WeightRows points at W; Y [tokens, N]. Flags as in `gemv.gemv`."""
    let_next_start(PDL)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.arange(0, TOKENS)
    w_scale = _weight_scale(WScale, rows, N, SCALED, SCALED_ROWS)
    sums = tl.trans(_sums(X, W, WeightRows, K, BLOCK_N, BLOCK_K, TOKENS, 1, LINES, THREADS, PDL))
    y = _epilogue(sums, tokens, rows, Bias, Residual, XScale, w_scale, num_tokens, N, SCALED, SCALED_ROWS, BIASED, ADDED)
    y = y.to(Y.dtype.element_ty)
    inside = (tokens < num_tokens)[:, None] & (rows < N)[None, :]
    tl.store(Y + tokens[:, None] * N + rows[None, :], y, mask=inside)
    if SAMPLED:
        keep_best(y, ArgmaxScratch, SamplingWords, tokens, rows, num_tokens, N)


@triton.jit
def skinny_parts(
    X, W, WeightRows, Parts, num_tokens,
    N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
    LINES: tl.constexpr, THREADS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Parts [SPLITS, tokens, N] fp32: sums over each part of K."""
    let_next_start(PDL)
    sums = tl.trans(_sums(X, W, WeightRows, K, BLOCK_N, BLOCK_K, TOKENS, SPLITS, LINES, THREADS, PDL))
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.arange(0, TOKENS)
    inside = (tokens < num_tokens)[:, None] & (rows < N)[None, :]
    tl.store(Parts + (tl.program_id(1) * num_tokens + tokens)[:, None] * N + rows[None, :], sums, mask=inside)


@triton.jit
def skinny_sum(
    Parts, Bias, Residual, XScale, WScale, Y, num_tokens,
    N: tl.constexpr, BLOCK: tl.constexpr, SPLITS: tl.constexpr, SCALED: tl.constexpr, SCALED_ROWS: tl.constexpr, BIASED: tl.constexpr,
    ADDED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Y [tokens, N] from `skinny_parts`, one program per token and BLOCK columns."""
    let_next_start(PDL)
    token = tl.program_id(1) + tl.arange(0, 1)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (columns < N)[None, :]
    w_scale = _weight_scale(WScale, columns, N, SCALED, SCALED_ROWS)
    wait_for_previous(PDL)
    at = Parts + token[:, None] * N + columns[None, :]
    y = tl.load(at, mask=inside, other=0.0)
    for split in tl.static_range(1, SPLITS):
        y += tl.load(at + split * num_tokens * N, mask=inside, other=0.0)
    y = _epilogue(y, token, columns, Bias, Residual, XScale, w_scale, num_tokens, N, SCALED, SCALED_ROWS, BIASED, ADDED)
    tl.store(Y + token[:, None] * N + columns[None, :], y.to(Y.dtype.element_ty), mask=inside)


@triton.jit
def skinny_gate_up_silu(
    X, W, WeightRows, XScale, WScale, OutScale, Y, num_tokens,
    N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr, LINES: tl.constexpr,
    THREADS: tl.constexpr, SCALED: tl.constexpr, SCALED_ROWS: tl.constexpr, QUANTIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """As `gate_up.gate_up_silu`: W's rows interleave gate and up, Y [tokens, N // 2]."""
    let_next_start(PDL)
    out_scale = result_scale(OutScale, QUANTIZE)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    scale = _weight_scale(WScale, rows, N, SCALED, SCALED_ROWS)
    sums = tl.trans(_sums(X, W, WeightRows, K, BLOCK_N, BLOCK_K, TOKENS, 1, LINES, THREADS, PDL))
    tokens = tl.arange(0, TOKENS)
    if SCALED_ROWS:
        sums *= scale[None, :] * tl.load(XScale + tokens, mask=tokens < num_tokens, other=0.0)[:, None]
    elif SCALED:
        sums *= scale * tl.load(XScale)
    gate, up = tl.split(tl.reshape(sums, (TOKENS, BLOCK_N // 2, 2)))
    y = swiglu(gate, up)
    columns = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    inside = (tokens < num_tokens)[:, None] & (columns < N // 2)[None, :]
    tl.store(Y + tokens[:, None] * (N // 2) + columns[None, :], finish(y, out_scale, Y.dtype.element_ty, QUANTIZE), mask=inside)


@triton.jit
def skinny_linear_gelu(
    X, W, WeightRows, Bias, XScale, WScale, OutScale, Y, num_tokens,
    N: tl.constexpr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr, LINES: tl.constexpr,
    THREADS: tl.constexpr, SCALED: tl.constexpr, SCALED_ROWS: tl.constexpr, BIASED: tl.constexpr, QUANTIZE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """As `linear_gelu.linear_gelu`: Y [tokens, N]."""
    let_next_start(PDL)
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.arange(0, TOKENS)
    out_scale = result_scale(OutScale, QUANTIZE)
    w_scale = _weight_scale(WScale, rows, N, SCALED, SCALED_ROWS)
    sums = tl.trans(_sums(X, W, WeightRows, K, BLOCK_N, BLOCK_K, TOKENS, 1, LINES, THREADS, PDL))
    y = _epilogue(sums, tokens, rows, Bias, Bias, XScale, w_scale, num_tokens, N, SCALED, SCALED_ROWS, BIASED, False)
    y = gelu_tanh(y)
    inside = (tokens < num_tokens)[:, None] & (rows < N)[None, :]
    tl.store(Y + tokens[:, None] * N + rows[None, :], finish(y, out_scale, Y.dtype.element_ty, QUANTIZE), mask=inside)
