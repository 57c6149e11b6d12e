"""The feed-forward's first half as one kernel: y = silu(x @ gate.T) * (x @ up.T), quantized if asked, for many tokens.

Rows of gate and up are interleaved in the weight (gate 0, up 0, gate 1, ...), so both factors of an output sit in one thread's accumulator
and the epilogue needs no exchange. Persistent: each program walks tiles, and the loop over tiles and K is flattened so that the next tile's
loads run under this tile's epilogue. Tiles go down groups of GROUP row blocks, so a weight tile is reused from L2. TMA for all three
matrices; rows past M are read and written inside the buffers (sized for the profile) and mean nothing.
On an H100 the activation costs nothing on top of the product (docs/facts.md). Rejected: `warp_specialize` (no gain in Triton 3.6 on
Hopper), 64-row tiles (slower).
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.overlap import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import finish, result_scale


@triton.jit
def gate_up_silu(
    X, W, Y, XScale, WScale, OutScale, num_tokens,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PROGRAMS: tl.constexpr, SCALED: tl.constexpr, QUANTIZE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """X [tokens, K], W [N, K] interleaved, Y [tokens, N // 2], all TMA descriptors; the scales point at one fp32 each."""
    let_next_start(OVERLAP)
    out_scale = result_scale(OutScale, QUANTIZE)
    dequantize = 1.0
    if SCALED:
        dequantize = tl.load(WScale)
    wait_for_previous(OVERLAP)
    if SCALED:
        dequantize *= tl.load(XScale)
    tiles_m = tl.cdiv(num_tokens, BLOCK_M)
    tiles_n = N // BLOCK_N
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, PROGRAMS, flatten=True):
        group = tile // (GROUP * tiles_n)
        rows = tl.minimum(tiles_m - group * GROUP, GROUP)
        pid_m = group * GROUP + (tile % (GROUP * tiles_n)) % rows
        pid_n = (tile % (GROUP * tiles_n)) // rows
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            acc = tl.dot(X.load([pid_m * BLOCK_M, k]), W.load([pid_n * BLOCK_N, k]).T, acc)
        gate, up = tl.split(tl.reshape(acc, (BLOCK_M, BLOCK_N // 2, 2)))
        gate *= dequantize
        y = gate / (1.0 + tl.exp2(gate * -1.4426950408889634)) * (up * dequantize)
        Y.store([pid_m * BLOCK_M, pid_n * (BLOCK_N // 2)], finish(y, out_scale, Y.dtype, QUANTIZE))
