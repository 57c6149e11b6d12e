"""Packed weights (`formats/`) made wide: what runs where the number of tokens leaves the time to arithmetic."""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.packed_codes import e4m3_values, raw_values, scale_values
from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous


@triton.jit
def _place(row, column, FORMAT: tl.constexpr):
    """(byte, first bit) of the code at (row, column) of a tile, as `formats` has them. Of fp4 the byte is that of its half of a word and
    the bit the register that it is in."""
    half = row // 8 % 2
    thread = row // 16 * 32 + row % 8 * 4
    if FORMAT == "int4_fp8":
        byte = 16 * (thread + column // 4 % 4) + column // 32 * 8 + column // 16 % 2 * 4 + column % 4
        return byte, 4 * half
    else:
        thread += column // 2 % 4
        step, eight, element = column // 16, column // 8 % 2, column % 2
        if FORMAT == "int8" or FORMAT == "fp8":
            return step // 2 * 2048 + 16 * thread + step % 2 * 8 + eight * 4 + 2 * element + half, 0 * half
        elif FORMAT == "int4":
            return 16 * thread + 4 * step + 2 * element + eight, 4 * half
        elif FORMAT == "nf4":
            return 16 * thread + 4 * step + 2 * eight + half, 4 * element
        else:
            return 16 * thread + 4 * step + 2 * element, 2 * eight + half


@triton.jit
def _fp4(halves, register, FP16: tl.constexpr):
    """Codes out of the halves of words that hold them (`formats.fp4.BITS`)."""
    if FP16:
        low = 9 - 3 * register
        high = low + 2
        sign = tl.where(register == 0, 15, tl.where(register == 1, 12, 16 - register))
    else:
        low = tl.where(register == 3, 10, 6 - 3 * register)
        high = tl.where(register == 3, 13, low + 2)
        sign = tl.where(register == 3, 14, 15 - 3 * register)
    return halves >> low & 3 | (halves >> high & 1) << 2 | (halves >> sign & 1) << 3


@triton.jit
def _fp4_value(code):
    magnitude = code & 7
    bits = (magnitude // 2 + 126) << 23 | (magnitude & 1) << 22
    value = tl.where(magnitude < 2, magnitude.to(tl.float32) * 0.5, bits.to(tl.float32, bitcast=True))
    return tl.where(code >= 8, -value, value)


@triton.jit
def _nf4_value(code):
    lower = tl.where(
        code < 4,
        tl.where(
            code < 2,
            tl.where(code == 0, -1.0, -0.6961928009986877),
            tl.where(code == 2, -0.5250730514526367, -0.39491748809814453),
        ),
        tl.where(
            code < 6,
            tl.where(code == 4, -0.28444138169288635, -0.18477343022823334),
            tl.where(code == 6, -0.09105003625154495, 0.0),
        ),
    )
    upper = tl.where(
        code < 12,
        tl.where(
            code < 10,
            tl.where(code == 8, 0.07958029955625534, 0.16093020141124725),
            tl.where(code == 10, 0.24611230194568634, 0.33791524171829224),
        ),
        tl.where(
            code < 14,
            tl.where(code == 12, 0.44070982933044434, 0.5626170039176941),
            tl.where(code == 14, 0.7229568362236023, 1.0),
        ),
    )
    return tl.where(code < 8, lower, upper)


@triton.jit
def _decoded(W, tile, row, column, FORMAT: tl.constexpr):
    """fp32 of codes at (row, column) of tiles, before zero points and scales."""
    byte, bit = _place(row, column, FORMAT)
    if FORMAT == "int8":
        return tl.load(W + tile * 4096 + byte).to(tl.float32)
    elif FORMAT == "fp8":
        return e4m3_values(raw_values(W + tile * 4096 + byte))
    elif FORMAT == "fp4" or FORMAT == "fp4_fp16":
        at = W + tile * 2048 + byte
        halves = tl.load(at).to(tl.int32) | tl.load(at + 1).to(tl.int32) << 8
        return _fp4_value(_fp4(halves, bit, FORMAT == "fp4_fp16"))
    else:
        code = tl.load(W + tile * 2048 + byte).to(tl.int32) >> bit & 15
        if FORMAT == "int4_fp8":
            code = tl.where(code % 2 == 0, 8 + code // 2, 7 - code // 2)
        return _nf4_value(code) if FORMAT == "nf4" else code.to(tl.float32)


@triton.jit
def _scaled_values(
    W, GroupScale, WeightZero, tile_row, tile_column, row, column,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, FORMAT: tl.constexpr, E8M0: tl.constexpr, ZERO: tl.constexpr,
):  # fmt: skip
    """fp32 values of a tile's codes [row, column] but for the weight's own scale."""
    values = _decoded(W, tile_row.to(tl.int64) * (K // 64) + tile_column, row, column, FORMAT)
    if GROUP:
        at = ((tile_column * 64 + column) // GROUP).to(tl.int64) * N + tile_row * 64 + row
    if ZERO:
        values -= tl.load(WeightZero + at).to(tl.float32)
    elif FORMAT == "int4" or FORMAT == "int4_fp8":
        values -= 8.0
    if GROUP:
        values *= scale_values(raw_values(GroupScale + at), E8M0)
    return values


@triton.jit
def widen_weight(
    W, GroupScale, WeightZero, WScale, XScale, Y,
    N: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, FORMAT: tl.constexpr, E8M0: tl.constexpr, ZERO: tl.constexpr,
    SCALED: tl.constexpr, X_SCALED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of Y [N, K]: the weight's values, times the one scale of its inputs if X_SCALED. SCALED: 1 one scale, 2 one per row."""
    let_next_start(PDL)
    tile_column, tile_row = tl.program_id(0), tl.program_id(1)
    row, column = tl.arange(0, 64)[:, None], tl.arange(0, 64)[None, :]
    values = _scaled_values(W, GroupScale, WeightZero, tile_row, tile_column, row, column, N, K, GROUP, FORMAT, E8M0, ZERO)
    if SCALED == 1:
        values *= tl.load(WScale)
    if SCALED == 2:
        values *= tl.load(WScale + tile_row * 64 + row)
    wait_for_previous(PDL)
    if X_SCALED:
        values *= tl.load(XScale)
    at = (tile_row.to(tl.int64) * 64 + row) * K + tile_column * 64 + column
    tl.store(Y + at, values.to(Y.dtype.element_ty))


@triton.jit
def widen(X, XScale, Y, N: tl.constexpr, BLOCK: tl.constexpr, SCALED: tl.constexpr, PDL: tl.constexpr):
    """fp8 codes as numbers of Y's format, times their row's scale if SCALED."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    at = row * N + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(X + at).to(tl.float32)
    if SCALED:
        values *= tl.load(XScale + row)
    tl.store(Y + at, values.to(Y.dtype.element_ty))
