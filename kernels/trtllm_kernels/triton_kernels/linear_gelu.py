"""y = gelu(x @ W.T + bias), quantized if requested, for many tokens: the first half of a feed-forward without a gate (GPT-J's).

Built like `gate_up.gate_up_silu` (persistent, flattened, TMA): the activation adds no time to the GEMM, whereas a separate kernel reads and
writes [tokens, 4 * hidden] once more.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.activations import gelu_tanh
from trtllm_kernels.triton_kernels.quantize import finish
from trtllm_kernels.triton_kernels.tiling import begin, locate_tile, whole_tiles


@triton.jit
def _activated(
    acc, Bias, column, dequantize, out_scale,
    dtype: tl.constexpr, BLOCK_N: tl.constexpr, BIASED: tl.constexpr, QUANTIZE: tl.constexpr,
):  # fmt: skip
    acc *= dequantize
    if BIASED:
        acc += tl.load(Bias + column + tl.arange(0, BLOCK_N)).to(tl.float32)[None, :]
    return finish(gelu_tanh(acc), out_scale, dtype, QUANTIZE)


@triton.jit
def linear_gelu(
    X, W, WHalf, Y, Bias, XScale, WScale, OutScale, num_tokens,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PROGRAMS: tl.constexpr, HALVES: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr, QUANTIZE: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """X [tokens, K], W [N, K], Y [tokens, N], all TMA descriptors. Boxes of Y and WHalf are half as large as W's are tall. Bias [N]."""
    dequantize, out_scale = begin(XScale, WScale, OutScale, SCALED, QUANTIZE, PDL)
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles_n = N // BLOCK_N
    whole = whole_tiles(tiles_m * tiles_n, PROGRAMS, HALVES)
    for tile in tl.range(tl.program_id(0), whole, PROGRAMS, flatten=True):
        pid_m, pid_n = locate_tile(tile, tiles_m, tiles_n, GROUP)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            acc = tl.dot(X.load([pid_m * BLOCK_M, k]), W.load([pid_n * BLOCK_N, k]).T, acc)
        y = _activated(acc, Bias, pid_n * BLOCK_N, dequantize, out_scale, Y.dtype, BLOCK_N, BIASED, QUANTIZE)
        left, right = tl.split(tl.permute(tl.reshape(y, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        Y.store([pid_m * BLOCK_M, pid_n * BLOCK_N], left)
        Y.store([pid_m * BLOCK_M, pid_n * BLOCK_N + BLOCK_N // 2], right)
    if HALVES:
        half = 2 * whole + tl.program_id(0)
        if half < 2 * tiles_m * tiles_n:
            pid_m, pid_n = locate_tile(half // 2, tiles_m, tiles_n, GROUP)
            column = (2 * pid_n + half % 2) * (BLOCK_N // 2)
            acc = tl.zeros((BLOCK_M, BLOCK_N // 2), dtype=tl.float32)
            for k in range(0, K, BLOCK_K):
                acc = tl.dot(X.load([pid_m * BLOCK_M, k]), WHalf.load([column, k]).T, acc)
            y = _activated(acc, Bias, column, dequantize, out_scale, Y.dtype, BLOCK_N // 2, BIASED, QUANTIZE)
            Y.store([pid_m * BLOCK_M, column], y)
