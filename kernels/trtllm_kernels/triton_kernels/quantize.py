"""The end of every op that may quantize, and quantization alone."""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous


@triton.jit
def result_scale(OutScale, QUANTIZE: tl.constexpr):
    """For `finish`: the scale that OutScale points at, a constant. Loaded where a kernel begins, so that none ends by waiting for it."""
    if QUANTIZE:
        return tl.load(OutScale)
    else:
        return 1.0


@triton.jit
def finish(y, scale, dtype: tl.constexpr, QUANTIZE: tl.constexpr):
    """fp32 `y` as `dtype`. QUANTIZE: divided by `scale` and clamped to E4M3's range."""
    if QUANTIZE:
        y = tl.minimum(tl.maximum(y * (1.0 / scale), -448.0), 448.0)
    return y.to(dtype)


@triton.jit
def int8_codes(y):
    """fp32 `y` within 127 of zero as int8, halves to even: the sum with 1.5 * 2^23 has no bits for a fraction, and ends in the code's."""
    return (y + 12582912.0).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def int8_values(codes, dtype: tl.constexpr):
    """int8 bits (in any 8-bit type) as `dtype`, by way of fp16: behind the exponent of 1024, a byte is an integer. Conversion instructions
    have a fraction of the throughput."""
    biased = (codes.to(tl.uint8, bitcast=True).to(tl.uint16) ^ 0x80) | 0x6400
    return (biased.to(tl.float16, bitcast=True) - 1152.0).to(dtype)


@triton.jit
def quantize(X, Scale, Y, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    scale = result_scale(Scale, True)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < N
    x = tl.load(X + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(Y + row * N + cols, finish(x, scale, Y.dtype.element_ty, True), mask=mask)


@triton.jit
def _codes_of_row(x, dtype: tl.constexpr):
    """(codes, scale) of a whole row of fp32, in E4M3 or int8, of which it is a 127th.

    Divisions are rounded as IEEE 754 says: if a row's scale were off by one unit in the last place, every code on a tie would differ from
    the reference's. int8 codes are multiples of the inverse, and a few in a million differ: a division per element would take longer than
    the row's bytes.
    """
    if dtype == tl.int8:
        scale = tl.maximum(tl.div_rn(tl.max(tl.abs(x), 0), 127.0), 1e-12)
        codes = int8_codes(x * tl.div_rn(1.0, scale))
    else:
        scale = tl.maximum(tl.div_rn(tl.max(tl.abs(x), 0), 448.0), 1e-12)
        codes = tl.minimum(tl.maximum(tl.div_rn(x, scale), -448.0), 448.0).to(dtype)
    return codes, scale


@triton.jit
def store_by_row(y, Y, Scales, row, cols, mask, N: tl.constexpr):
    """Stores row `row` of N, fp32 `y`, as codes and its scale."""
    codes, scale = _codes_of_row(y, Y.dtype.element_ty)
    tl.store(Scales + row, scale)
    tl.store(Y + row * N + cols, codes, mask=mask)


@triton.jit
def quantize_rows(X, Y, Scales, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """One program per row of N, in one pass: BLOCK holds the whole row."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    x = tl.load(X + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    store_by_row(x, Y, Scales, row, cols, mask, N)
