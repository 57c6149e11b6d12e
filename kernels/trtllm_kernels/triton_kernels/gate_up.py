"""The first half of a gated feed-forward as one kernel, for many tokens: y = silu(x @ gate.T) * (x @ up.T), quantized if requested.

Rows of gate and up are interleaved in the weight (gate 0, up 0, gate 1, ...), so both factors of an output are in one thread's accumulator
and the epilogue needs no exchange. Persistent: each program walks tiles (`tiling.py`), and the loop over tiles and K is flattened, so the
next tile's loads overlap with this tile's epilogue. All three matrices use TMA. Rows past M are read and written inside the buffers (sized
for the profile), and their contents are meaningless.
On an H100 the activation adds no time to the GEMM (docs/facts/kernels-gemm.md). Rejected: `warp_specialize` (no gain in Triton 3.6 on
Hopper), 64-row tiles (slower).
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.activations import swiglu
from trtllm_kernels.triton_kernels.quantize import finish
from trtllm_kernels.triton_kernels.tiling import begin, locate_tile, whole_tiles


@triton.jit
def _gated(acc, dequantize, out_scale, dtype: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, QUANTIZE: tl.constexpr):
    gate, up = tl.split(tl.reshape(acc, (BLOCK_M, BLOCK_N // 2, 2)))
    return finish(swiglu(gate * dequantize, up * dequantize), out_scale, dtype, QUANTIZE)


@triton.jit
def gate_up_silu(
    X, W, WHalf, Y, YHalf, XScale, WScale, OutScale, num_tokens,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PROGRAMS: tl.constexpr, HALVES: tl.constexpr, SCALED: tl.constexpr, QUANTIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """X [tokens, K], W [N, K] interleaved, Y [tokens, N // 2], all TMA descriptors. Boxes of WHalf are half as tall, those of YHalf half
    as wide."""
    dequantize, out_scale = begin(XScale, WScale, OutScale, SCALED, QUANTIZE, PDL)
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles_n = N // BLOCK_N
    whole = whole_tiles(tiles_m * tiles_n, PROGRAMS, HALVES)
    for tile in tl.range(tl.program_id(0), whole, PROGRAMS, flatten=True):
        pid_m, pid_n = locate_tile(tile, tiles_m, tiles_n, GROUP)
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            acc = tl.dot(X.load([pid_m * BLOCK_M, k]), W.load([pid_n * BLOCK_N, k]).T, acc)
        Y.store([pid_m * BLOCK_M, pid_n * (BLOCK_N // 2)], _gated(acc, dequantize, out_scale, Y.dtype, BLOCK_M, BLOCK_N, QUANTIZE))
    if HALVES:
        half = 2 * whole + tl.program_id(0)
        if half < 2 * tiles_m * tiles_n:
            pid_m, pid_n = locate_tile(half // 2, tiles_m, tiles_n, GROUP)
            pid_n = 2 * pid_n + half % 2
            acc = tl.zeros((BLOCK_M, BLOCK_N // 2), dtype=tl.float32)
            for k in range(0, K, BLOCK_K):
                acc = tl.dot(X.load([pid_m * BLOCK_M, k]), WHalf.load([pid_n * (BLOCK_N // 2), k]).T, acc)
            y = _gated(acc, dequantize, out_scale, Y.dtype, BLOCK_M, BLOCK_N // 2, QUANTIZE)
            YHalf.store([pid_m * BLOCK_M, pid_n * (BLOCK_N // 4)], y)
