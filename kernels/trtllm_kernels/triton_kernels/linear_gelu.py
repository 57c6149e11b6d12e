"""y = gelu(x @ W.T + bias), quantized if asked, for many tokens: the first half of a feed-forward without a gate (GPT-J's).

Built as `gate_up.gate_up_silu` is (persistent, flattened, TMA): there the activation costs nothing on top of the product, whereas a
separate kernel reads and writes [tokens, 4 * hidden] once more.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.overlap import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import finish, result_scale


@triton.jit
def linear_gelu(
    X, W, Y, Bias, XScale, WScale, OutScale, num_tokens,
    N: tl.constexpr, K: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr, PROGRAMS: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr, QUANTIZE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """X [tokens, K], W [N, K], Y [tokens, N], all TMA descriptors (Y's boxes are half as wide as W's are tall); Bias [N]."""
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
        acc *= dequantize
        if BIASED:
            acc += tl.load(Bias + pid_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.float32)[None, :]
        u = 0.7978845608028654 * (acc + 0.044715 * acc * acc * acc)
        y = finish(acc / (1.0 + tl.exp2(u * -2.8853900817779268)), out_scale, Y.dtype, QUANTIZE)
        left, right = tl.split(tl.permute(tl.reshape(y, (BLOCK_M, 2, BLOCK_N // 2)), (0, 2, 1)))
        Y.store([pid_m * BLOCK_M, pid_n * BLOCK_N], left)
        Y.store([pid_m * BLOCK_M, pid_n * BLOCK_N + BLOCK_N // 2], right)
