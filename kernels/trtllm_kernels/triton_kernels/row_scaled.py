"""GEMM of many tokens whose operands have one scale per row each, int8 (W8A8) or fp8 by rows, for GPUs before Hopper and for rows that TMA
does not take (`cuda_kernels/row_scaled_gemm.cu` has the others).

    y[t, n] = act(x_scale[t] * w_scale[n] * sum_k x[t, k] * w[n, k] + bias[n] + residual[t, n])

Sums of int8 are int32 and exact. It reads by pointers, one tile per program.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.activations import gelu_tanh, swiglu
from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import finish, result_scale
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
def row_scaled_blocks(
    X, W, Y, Bias, Residual, XScale, WScale, OutScale, num_tokens,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, ACT: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr, QUANTIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """X [tokens, K], W [N, K], Y [tokens, N] or, for SwiGLU of interleaved rows, [tokens, N // 2], divided by OutScale if QUANTIZE."""
    let_next_start(PDL)
    out_scale = result_scale(OutScale, QUANTIZE)
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
        acc = add_product(tl.load(x + k, mask=of_tokens & left, other=0.0), tl.load(w + k, mask=of_weight & left, other=0.0), acc)
    x_scale = tl.load(XScale + rows, mask=rows < num_tokens, other=0.0)
    y = _part(acc, rows, columns, x_scale, WScale, Bias, Residual, num_tokens, N, ACT, BIASED, ADDED)
    WIDTH: tl.constexpr = N // 2 if ACT == SWIGLU else N
    if ACT == SWIGLU:
        gate, up = tl.split(tl.reshape(y, (BLOCK_M, BLOCK_N // 2, 2)))
        y = swiglu(gate, up)
        columns = pid_n * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    to = Y + rows.to(tl.int64)[:, None] * WIDTH + columns[None, :]
    tl.store(to, finish(y, out_scale, Y.dtype.element_ty, QUANTIZE), mask=of_tokens & (columns < WIDTH)[None, :])
