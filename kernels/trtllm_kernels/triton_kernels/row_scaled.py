"""GEMMs whose operands have one scale per row each, for many tokens: int8 (W8A8), and fp8 by rows.

    y[t, n] = act(x_scale[t] * w_scale[n] * sum_k x[t, k] * w[n, k] + bias[n] + residual[t, n])

Sums of int8 are int32 and exact. cuBLASLt's int8 GEMM reaches half of its fp8 GEMM's rate on Hopper and knows no scales of rows, so this is
our own: built like `gate_up.gate_up_silu` (persistent, flattened, TMA), with wgmma's s32.s8.s8. The result is stored in two halves of a
tile's columns, each of which takes half the shared memory, so four stages of 128 x 256 x 128 fit. SwiGLU's halves are computed whole.

`row_scaled_blocks` reads by pointers, one tile per program: for GPUs before Hopper, and for rows that TMA does not take.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.linear_gelu import gelu_tanh
from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.sums import add_product, no_sums
from trtllm_kernels.triton_kernels.tiling import locate_tile

SWIGLU: tl.constexpr = tl.constexpr(1)
GELU: tl.constexpr = tl.constexpr(2)


@triton.jit
def _part(
    acc, rows, columns, x_scale, WScale, Bias, Residual, num_tokens, N: tl.constexpr, ACT: tl.constexpr, BIASED: tl.constexpr,
    ADDED: tl.constexpr,
):  # fmt: skip
    """fp32 results of the sums at `rows` and `columns`."""
    inside = columns < N
    y = acc.to(tl.float32) * (tl.load(WScale + columns, mask=inside, other=0.0)[None, :] * x_scale[:, None])
    if BIASED:
        y += tl.load(Bias + columns, mask=inside, other=0.0).to(tl.float32)[None, :]
    if ADDED:
        at = Residual + rows.to(tl.int64)[:, None] * N + columns[None, :]
        y += tl.load(at, mask=(rows < num_tokens)[:, None] & inside[None, :], other=0.0).to(tl.float32)
    if ACT == GELU:
        y = gelu_tanh(y)
    return y


@triton.jit
def _gated(y, M: tl.constexpr, N: tl.constexpr):
    gate, up = tl.split(tl.reshape(y, (M, N // 2, 2)))
    return gate / (1.0 + tl.exp2(gate * -1.4426950408889634)) * up


@triton.jit
def _halves(x, M: tl.constexpr, N: tl.constexpr):
    return tl.split(tl.permute(tl.reshape(x, (M, 2, N // 2)), (0, 2, 1)))


@triton.jit
def _store(
    Y, acc, row, column, x_scale, WScale, Bias, Residual, num_tokens, N: tl.constexpr, M: tl.constexpr, WIDTH: tl.constexpr,
    ACT: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr,
):  # fmt: skip
    """Stores sums [M, WIDTH] whose first is at (row, column) of Y."""
    rows, columns = row + tl.arange(0, M), column + tl.arange(0, WIDTH)
    y = _part(acc, rows, columns, x_scale, WScale, Bias, Residual, num_tokens, N, ACT, BIASED, ADDED)
    Y.store([row, column], y.to(Y.dtype))


@triton.jit
def row_scaled(
    X, W, Y, Bias, Residual, XScale, WScale, num_tokens,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PROGRAMS: tl.constexpr, ACT: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """X [tokens, K], W [N, K], Y [tokens, N] or, for SwiGLU of interleaved rows, [tokens, N // 2]: TMA descriptors. Boxes of Y are half as
    wide as W's are tall, or a quarter where a residual is ADDED. Rows of Y past `num_tokens` are written inside the buffer; past N TMA
    clips."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    HALF: tl.constexpr = BLOCK_N // 2
    QUARTER: tl.constexpr = BLOCK_N // 4
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, PROGRAMS, flatten=True):
        pid_m, pid_n = locate_tile(tile, tiles_m, tiles_n, GROUP)
        row, column = pid_m * BLOCK_M, pid_n * BLOCK_N
        acc = no_sums(BLOCK_M, BLOCK_N, X.dtype)
        for k in range(0, K, BLOCK_K):
            acc = add_product(X.load([row, k]), W.load([column, k]), acc)
        rows = row + tl.arange(0, BLOCK_M)
        x_scale = tl.load(XScale + rows, mask=rows < num_tokens, other=0.0)
        if ACT == SWIGLU:
            columns = column + tl.arange(0, BLOCK_N)
            y = _part(acc, rows, columns, x_scale, WScale, Bias, Residual, num_tokens, N, ACT, BIASED, ADDED)
            Y.store([row, pid_n * HALF], _gated(y, BLOCK_M, BLOCK_N).to(Y.dtype))
        else:
            left, right = _halves(acc, BLOCK_M, BLOCK_N)
            if ADDED:
                a, b = _halves(left, BLOCK_M, HALF)
                c, d = _halves(right, BLOCK_M, HALF)
                _store(Y, a, row, column, x_scale, WScale, Bias, Residual, num_tokens, N, BLOCK_M, QUARTER, ACT, BIASED, ADDED)
                _store(Y, b, row, column + QUARTER, x_scale, WScale, Bias, Residual, num_tokens, N, BLOCK_M, QUARTER, ACT, BIASED, ADDED)
                _store(Y, c, row, column + HALF, x_scale, WScale, Bias, Residual, num_tokens, N, BLOCK_M, QUARTER, ACT, BIASED, ADDED)
                column += HALF + QUARTER
                _store(Y, d, row, column, x_scale, WScale, Bias, Residual, num_tokens, N, BLOCK_M, QUARTER, ACT, BIASED, ADDED)
            else:
                _store(Y, left, row, column, x_scale, WScale, Bias, Residual, num_tokens, N, BLOCK_M, HALF, ACT, BIASED, ADDED)
                _store(Y, right, row, column + HALF, x_scale, WScale, Bias, Residual, num_tokens, N, BLOCK_M, HALF, ACT, BIASED, ADDED)


@triton.jit
def row_scaled_blocks(
    X, W, Y, Bias, Residual, XScale, WScale, num_tokens,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, ACT: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """As `row_scaled`, with pointers: one tile per program."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    pid_m, pid_n = locate_tile(tl.program_id(0), tl.cdiv(num_tokens, BLOCK_M), (N + BLOCK_N - 1) // BLOCK_N, GROUP)
    rows = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)
    of_tokens, of_weight = (rows < num_tokens)[:, None], (columns < N)[:, None]
    at = tl.arange(0, BLOCK_K)
    x = X + rows.to(tl.int64)[:, None] * K + at[None, :]
    w = W + columns.to(tl.int64)[:, None] * K + at[None, :]
    acc = no_sums(BLOCK_M, BLOCK_N, X.dtype.element_ty)
    for k in range(0, K, BLOCK_K):
        left = (at < K - k)[None, :]
        acc = add_product(tl.load(x + k, mask=of_tokens & left, other=0), tl.load(w + k, mask=of_weight & left, other=0), acc)
    x_scale = tl.load(XScale + rows, mask=rows < num_tokens, other=0.0)
    y = _part(acc, rows, columns, x_scale, WScale, Bias, Residual, num_tokens, N, ACT, BIASED, ADDED)
    WIDTH: tl.constexpr = N // 2 if ACT == SWIGLU else N
    if ACT == SWIGLU:
        y = _gated(y, BLOCK_M, BLOCK_N)
        columns = pid_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    to = Y + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    tl.store(to, y.to(Y.dtype.element_ty), mask=of_tokens & (columns < WIDTH)[None, :])
