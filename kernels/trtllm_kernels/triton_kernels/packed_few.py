"""Product of few tokens with a packed weight (`formats/`) by mma.sync: where `cuda_kernels/packed_gemm.cu`, which is Hopper's, is not.

The weight is read as codes, 16 bytes a thread, several steps of K in advance (cp.async, by Triton's pipelining), and decoded in registers
(`packed_codes.py`). Its rows are the tall side of the tensor core's tile, and tokens the narrow one, as in `skinny_gemm.py`. SPLITS
programs divide K where rows alone would leave SMs idle, and `skinny_gemm.skinny_sum` adds their sums in order.

Scales of groups that whole steps of K divide are factors of fp32 sums. Those of shorter groups (FOLDED) are factors of the codes, rounded
to the inputs' format, which of fp4 is exact. Zero points are taken from the codes in that format, which is exact for whole numbers. Both
are loaded a step of K in advance, into registers: a row has too few bytes of them for cp.async.

x fp8 and weight int4: E4M3 is made of a code less 8, and other zero points are one more product, of ones, whose sums are those of x.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.activations import gelu_tanh, swiglu
from trtllm_kernels.triton_kernels.packed_codes import arranged, decoded, of_groups, raw_values, rows_of, scale_values, spread, twice
from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import finish, result_scale

SWIGLU: tl.constexpr = tl.constexpr(1)
GELU: tl.constexpr = tl.constexpr(2)


@triton.constexpr_function
def _power(FORMAT, HALF):
    """`packed_codes.decoded` makes 2^_power times the numbers."""
    return -9 if FORMAT == "int4_fp8" else -7 if FORMAT == "int4" and not HALF else 0


@triton.constexpr_function
def _folded_powers(FORMAT, HALF):
    """(that of numbers whose scales are factors, that of the factors)."""
    return {"fp4": (-126, 100), "fp4_fp16": (-14, 7)}.get(FORMAT, (_power(FORMAT, HALF), 0))


@triton.jit
def _product(a, x, of_x_sums, CORRECTED: tl.constexpr):
    """fp32 a @ x.T, plus the sums of x's rows times `of_x_sums` [rows, 1] if CORRECTED."""
    product = tl.dot(a, x.T)
    if CORRECTED:
        ones = tl.full(a.shape, 0x38, tl.uint8).to(a.dtype, bitcast=True)
        product += tl.dot(ones, x.T) * of_x_sums
    return product


@triton.jit
def _sums(
    X, W, GroupScale, WeightZero, num_tokens,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, FORMAT: tl.constexpr, E8M0: tl.constexpr, ZERO: tl.constexpr,
    FOLDED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """fp32 [BLOCK_N, TOKENS]: this program's rows of W, but for the weight's own scale, times x over its part of K."""
    dtype: tl.constexpr = X.dtype.element_ty
    FP8: tl.constexpr = FORMAT == "int4_fp8"
    TILES: tl.constexpr = BLOCK_N // 64
    STEPS: tl.constexpr = BLOCK_K // 64
    WORDS: tl.constexpr = 1024 if FORMAT == "int8" or FORMAT == "fp8" else 512
    WIDTH: tl.constexpr = min(TOKENS, 32)
    SHARE: tl.constexpr = ((K // BLOCK_K + SPLITS - 1) // SPLITS) * BLOCK_K
    POWER: tl.constexpr = _power(FORMAT, dtype == tl.float16)
    first, last = tl.program_id(2) * SHARE, tl.minimum(tl.program_id(2) * SHARE + SHARE, K)
    tiles = tl.program_id(1) * TILES + tl.arange(0, TILES)
    of_tiles = tiles[:, None, None] * (K // 64) + tl.arange(0, STEPS)[None, :, None]
    words = W.to(tl.pointer_type(tl.int32)) + of_tiles * WORDS + tl.arange(0, WORDS)[None, None, :]
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, WIDTH)
    x = X + tokens[:, None] * K + tl.arange(0, BLOCK_K)[None, :]
    inside, last_inside = (tokens < num_tokens)[:, None], (tokens + WIDTH < num_tokens)[:, None]
    row = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_g = tl.program_id(1) * BLOCK_N + rows_of(0, TILES)
    row_h = row_g + 8
    if GROUP and FOLDED:
        next_g, next_h = of_groups(GroupScale, row_g, first, N, GROUP), of_groups(GroupScale, row_h, first, N, GROUP)
    elif GROUP:
        next_g = raw_values(GroupScale + first // GROUP * N + row)
    if ZERO and FP8:
        next_zero_g = raw_values(WeightZero + first // GROUP * N + row)
    elif ZERO:
        next_zero_g, next_zero_h = of_groups(WeightZero, row_g, first, N, GROUP), of_groups(WeightZero, row_h, first, N, GROUP)
    acc, last_acc = tl.zeros((BLOCK_N, WIDTH), dtype=tl.float32), tl.zeros((BLOCK_N, WIDTH), dtype=tl.float32)
    for k in range(first, last, BLOCK_K):
        codes = tl.load(words + k // 64 * WORDS)
        of_x = arranged(tl.load(x + k, mask=inside, other=0.0), WIDTH, BLOCK_K)
        if TOKENS > WIDTH:
            last_x = arranged(tl.load(x + (k + WIDTH * K), mask=last_inside, other=0.0), WIDTH, BLOCK_K)
        following = tl.minimum(k + BLOCK_K, K - BLOCK_K)
        zero_g, zero_h, factor_g, factor_h = 0, 0, 0, 0
        if GROUP and FOLDED:
            FACTOR: tl.constexpr = 2.0 ** _folded_powers(FORMAT, dtype == tl.float16)[1]
            factor_g = spread(twice(scale_values(next_g, E8M0) * FACTOR, dtype), FORMAT)
            factor_h = spread(twice(scale_values(next_h, E8M0) * FACTOR, dtype), FORMAT)
            next_g, next_h = of_groups(GroupScale, row_g, following, N, GROUP), of_groups(GroupScale, row_h, following, N, GROUP)
        elif GROUP:
            scale = scale_values(next_g, E8M0)
            next_g = raw_values(GroupScale + following // GROUP * N + row)
        if ZERO and FP8:
            of_x_sums = (8.0 - next_zero_g.to(tl.float32)) * 2.0**POWER
            next_zero_g = raw_values(WeightZero + following // GROUP * N + row)
        elif ZERO:
            zero_g = spread(twice(next_zero_g.to(tl.float32) * (-(2.0**POWER)), dtype), FORMAT)
            zero_h = spread(twice(next_zero_h.to(tl.float32) * (-(2.0**POWER)), dtype), FORMAT)
            next_zero_g, next_zero_h = of_groups(WeightZero, row_g, following, N, GROUP), of_groups(WeightZero, row_h, following, N, GROUP)
        values = decoded(codes, zero_g, zero_h, factor_g, factor_h, dtype, TILES, STEPS, FORMAT, ZERO, FOLDED)
        if GROUP and not FOLDED:
            scale, of_x_sums = scale[:, None], of_x_sums[:, None] if ZERO and FP8 else 0.0
            acc += _product(values, of_x, of_x_sums, ZERO and FP8) * scale
            if TOKENS > WIDTH:
                last_acc += _product(values, last_x, of_x_sums, ZERO and FP8) * scale
        else:
            acc = tl.dot(values, of_x.T, acc)
            if TOKENS > WIDTH:
                last_acc = tl.dot(values, last_x.T, last_acc)
    if TOKENS > WIDTH:
        acc = tl.reshape(tl.permute(tl.join(acc, last_acc), (0, 2, 1)), (BLOCK_N, TOKENS))
    if FOLDED:
        powers: tl.constexpr = _folded_powers(FORMAT, dtype == tl.float16)
        return acc * 2.0 ** -(powers[0] + powers[1])
    else:
        return acc * 2.0**-POWER


@triton.jit
def packed_few(
    X, W, GroupScale, WeightZero, Bias, Residual, XScale, WScale, OutScale, Y, num_tokens,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, FORMAT: tl.constexpr, E8M0: tl.constexpr, ZERO: tl.constexpr,
    FOLDED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, TOKENS: tl.constexpr, SPLITS: tl.constexpr,
    X_SCALES: tl.constexpr, W_SCALES: tl.constexpr, ACT: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr,
    QUANTIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """X [tokens, K], W [N, K] of codes in tiles; Y [tokens, N] or, for SwiGLU of interleaved rows, [tokens, N // 2]; of SPLITS parts fp32
    sums [SPLITS, tokens, N]. X_SCALES, W_SCALES: 0 none, 1 one scale, 2 one per row."""
    let_next_start(PDL)
    out_scale = result_scale(OutScale, QUANTIZE)
    rows = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    wait_for_previous(PDL)
    y = _sums(
        X, W, GroupScale, WeightZero, num_tokens, N, K, GROUP, FORMAT, E8M0, ZERO, FOLDED, BLOCK_N, BLOCK_K, TOKENS, SPLITS,
    )  # fmt: skip
    y = tl.trans(y)
    inside = (tokens < num_tokens)[:, None]
    if W_SCALES == 1:
        y *= tl.load(WScale)
    if W_SCALES == 2:
        y *= tl.load(WScale + rows)[None, :]
    if X_SCALES == 1:
        y *= tl.load(XScale)
    if X_SCALES == 2:
        y *= tl.load(XScale + tokens, mask=tokens < num_tokens, other=0.0)[:, None]
    if BIASED:
        y += tl.load(Bias + rows).to(tl.float32)[None, :]
    if ADDED:
        y += tl.load(Residual + tokens[:, None] * N + rows[None, :], mask=inside, other=0.0).to(tl.float32)
    WIDTH: tl.constexpr = N // 2 if ACT == SWIGLU else N
    if ACT == SWIGLU:
        gate, up = tl.split(tl.reshape(y, (TOKENS, BLOCK_N // 2, 2)))
        y = swiglu(gate, up)
        rows = tl.program_id(1) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
    if ACT == GELU:
        y = gelu_tanh(y)
    to = Y + (tl.program_id(2) * num_tokens + tokens)[:, None] * WIDTH + rows[None, :]
    tl.store(to, finish(y, out_scale, Y.dtype.element_ty, QUANTIZE), mask=inside)
