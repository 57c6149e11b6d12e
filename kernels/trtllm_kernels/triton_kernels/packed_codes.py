"""Codes of packed weights (`formats/`) as an operand of `tl.dot`, decoded in registers: what `cuda_kernels/decode.cuh` is to CUDA C++.

A tile's words lie in the order of mma.sync's A operand, so a thread that loads 16 bytes of them has what it multiplies: the reshapes and
transpositions below name registers and move nothing. Two numbers of 16 bits share a register (four of fp8), and one instruction makes them.

`tl.dot` gives a thread 4 columns that follow each other (of fp8 8), where the instruction has two pieces of them. The order of a product's
columns is free. So those of 16 (of fp8 32) are in the order (pair, eight, element) here, and `arranged` brings those of x into it.

FORMAT is that of `packed.py`: the weight's, `int4_fp8` with fp8 inputs, `fp4_fp16` with fp16 ones.
"""

import triton
import triton.language as tl


@triton.constexpr_function
def _word(bits):
    """32 bits as an int32."""
    return bits - (1 << 32 if bits >= 1 << 31 else 0)


@triton.constexpr_function
def _pair(bits):
    """A word of 16 bits twice."""
    return bits * 0x10001 - (1 << 32 if bits >= 0x8000 else 0)


@triton.jit
def _multiply_add(a, b, c, dtype: tl.constexpr):
    """a * b + c of pairs of `dtype`, bf16 or fp16, rounded once. Numbers below the smallest normal one count."""
    if dtype == tl.bfloat16:
        return tl.inline_asm_elementwise("fma.rn.bf16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.int32, is_pure=True, pack=1)
    else:
        return tl.inline_asm_elementwise("fma.rn.f16x2 $0, $1, $2, $3;", "=r,r,r,r", [a, b, c], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def _chosen(low, high, selector):
    """Four bytes of `low` and `high`, by the nibbles of `selector`; of a nibble from 8 on its byte's sign, eight times."""
    return tl.inline_asm_elementwise("prmt.b32 $0, $1, $2, $3;", "=r,r,r,r", [low, high, selector], dtype=tl.int32, is_pure=True, pack=1)


@triton.jit
def _times(a, b, dtype: tl.constexpr):
    return _multiply_add(a, b, _pair(0x8000), dtype)


@triton.jit
def _plus(a, b, dtype: tl.constexpr):
    return _multiply_add(a, _pair(0x3F80 if dtype == tl.bfloat16 else 0x3C00), b, dtype)


@triton.jit
def twice(value, dtype: tl.constexpr):
    """Pairs of `value`, fp32, rounded to `dtype`."""
    return value.to(dtype).to(tl.uint16, bitcast=True).to(tl.int32) * 0x10001


@triton.jit
def _int4(word, zero_g, zero_h, dtype: tl.constexpr, ZERO: tl.constexpr):
    """Registers of rows g and g + 8. In place of a bf16's low bits a code is 2^-133 times itself, and four bits higher 2^-129 times. In
    fp16 0x6400 | code is 1024 + code, and four bits higher 1024 + 16 times it."""
    if dtype == tl.bfloat16:
        eight: tl.constexpr = _pair(0xBD80)  # -2^-4
        g = _multiply_add(word & 0x000F000F, _pair(0x7E80), zero_g if ZERO else eight, dtype)
        h = _multiply_add(word & 0x00F000F0, _pair(0x7C80), zero_h if ZERO else eight, dtype)
    else:
        g = _plus(word & 0x000F000F | 0x64006400, _pair(0xE400 if ZERO else 0xE408), dtype)
        h = _multiply_add(word & 0x00F000F0 | 0x64006400, _pair(0x2C00), _pair(0xD400 if ZERO else 0xD480), dtype)
        if ZERO:
            g, h = _plus(g, zero_g, dtype), _plus(h, zero_h, dtype)
    return g, h


@triton.jit
def _int8(word, dtype: tl.constexpr):
    """bf16: 128 + the low seven bits, less 128, or less 256 where the sign is set. fp16: 1024 + code + 128, less that."""
    if dtype == tl.bfloat16:
        return _multiply_add(word & 0x00800080 | 0x43004300, _pair(0xBF80), word & 0x007F007F | 0x43004300, dtype)
    else:
        return _plus(word & 0x00FF00FF ^ 0x64806480, _pair(0xE480), dtype)


@triton.jit
def _fp8(word, dtype: tl.constexpr):
    """In place of a wide number's bits an E4M3's are 2^-120 times itself (fp16: 2^-8)."""
    sign = word << 8 & _pair(0x8000)
    if dtype == tl.bfloat16:
        return _times(word << 4 & 0x07F007F0 | sign, _pair(0x7B80), dtype)
    else:
        return _times(word << 7 & 0x3F803F80 | sign, _pair(0x5C00), dtype)


@triton.jit
def _fp4(word, dtype: tl.constexpr):
    """Four registers, 2^-126 times the numbers (fp16: 2^-14)."""
    if dtype == tl.bfloat16:
        mask: tl.constexpr = _pair(0x81C0)
        last = word >> 4 & 0x00C000C0 | word >> 5 & 0x01000100 | word << 1 & _pair(0x8000)
        return word & mask, word << 3 & mask, word << 6 & mask, last
    else:
        first: tl.constexpr = _pair(0x8E00)
        third = word << 6 & 0x0E000E00 | word << 1 & _pair(0x8000)
        return word & first, word << 3 & first, third, word << 9 & 0x0E000E00 | word << 2 & _pair(0x8000)


@triton.jit
def _nf4(word, dtype: tl.constexpr):
    """Registers of a word's first two bytes: the numbers' low and high bytes are looked up, four at a time, each among eight and eight."""
    low, upper = word & 0x7777, _chosen(0x00008000 + tl.zeros_like(word), 0, word >> 3 & 0x1111 | 0x8888)
    if dtype == tl.bfloat16:
        high_bytes = _chosen(_word(0xBEBFBFBF), 0x00BDBEBE, low) & ~upper | _chosen(0x3E3E3E3D, 0x3F3F3F3E, low) & upper
        low_bytes = _chosen(_word(0xCA063280), 0x00BA3D92, low) & ~upper | _chosen(_word(0xAD7C25A3), _word(0x803910E2), low) & upper
    else:
        high_bytes = _chosen(_word(0xB6B8B9BC), 0x00ADB1B4, low) & ~upper | _chosen(0x3533312D, 0x3C393837, low) & upper
        low_bytes = _chosen(0x52339200, 0x00D4EA8D, low) & ~upper | _chosen(0x68E02618, 0x00C9800D, low) & upper
    return _chosen(low_bytes, high_bytes, 0x5140), _chosen(low_bytes, high_bytes, 0x7362)


@triton.jit
def _of_words(
    words, zero_g, zero_h, factor_g, factor_h, dtype: tl.constexpr, FORMAT: tl.constexpr, ZERO: tl.constexpr, FOLDED: tl.constexpr
):
    """Registers (row g, row g + 8) for the first eight columns of a step and for the last, of words of 8 codes of 4 bits."""
    if FORMAT == "int4":
        a, b = _int4(words, zero_g, zero_h, dtype, ZERO)
        c, d = _int4(words >> 8, zero_g, zero_h, dtype, ZERO)
    elif FORMAT == "nf4":
        a, b = _nf4(words, dtype)
        c, d = _nf4(words >> 16, dtype)
    else:
        a, b, c, d = _fp4(words, dtype)
        if not FOLDED:
            one: tl.constexpr = _pair(0x7E80 if dtype == tl.bfloat16 else 0x7400)
            a, b, c, d = _times(a, one, dtype), _times(b, one, dtype), _times(c, one, dtype), _times(d, one, dtype)
    if FOLDED:
        a, b, c, d = _times(a, factor_g, dtype), _times(b, factor_h, dtype), _times(c, factor_g, dtype), _times(d, factor_h, dtype)
    return a, b, c, d


@triton.jit
def _elements(pairs, dtype: tl.constexpr):
    """[..., 2]: the numbers of pairs."""
    first = pairs.to(tl.uint16).to(dtype, bitcast=True)
    second = (pairs >> 16).to(tl.uint16).to(dtype, bitcast=True)
    return tl.join(first, second)


@triton.jit
def _bytes(words, dtype: tl.constexpr):
    """[..., 2, 2]: the numbers of four bytes."""
    first, second = words.to(tl.uint8).to(dtype, bitcast=True), (words >> 8).to(tl.uint8).to(dtype, bitcast=True)
    third, fourth = (words >> 16).to(tl.uint8).to(dtype, bitcast=True), (words >> 24).to(tl.uint8).to(dtype, bitcast=True)
    return tl.join(tl.join(first, third), tl.join(second, fourth))


@triton.jit
def _int4_fp8(word):
    """Four E4M3, 2^-9 times the code less 8, of low nibbles: a magnitude, which is less 1 where the sign below it is set."""
    return (word >> 1 & 0x07070707 | word << 7 & _word(0x80808080)) + (word & 0x01010101)


@triton.jit
def decoded(
    words, zero_g, zero_h, factor_g, factor_h,
    dtype: tl.constexpr, TILES: tl.constexpr, STEPS: tl.constexpr, FORMAT: tl.constexpr, ZERO: tl.constexpr, FOLDED: tl.constexpr,
):  # fmt: skip
    """[64 TILES, 64 STEPS] of `dtype`, that of x, of the words of as many tiles, times a power of two (`unit`). Pairs `zero_*` (added to a
    number: minus its zero point, times that power) and `factor_*` (FOLDED scales) come from `spread`."""
    if FORMAT == "int4_fp8":
        words = tl.reshape(words, (TILES, STEPS, 4, 8, 4, 2, 2))  # tile, tile column, warp, group, pair, step, sixteen
        both = tl.join(_bytes(_int4_fp8(words), dtype), _bytes(_int4_fp8(words >> 4), dtype))  # ..., element / 2, element % 2, half
        both = tl.permute(both, (0, 2, 9, 3, 1, 5, 4, 6, 7, 8))
    elif FORMAT == "int8" or FORMAT == "fp8":
        words = tl.reshape(words, (TILES, STEPS, 2, 4, 8, 4, 2, 2))  # tile, tile column, steps, warp, group, pair, step, eight
        if FORMAT == "int8":
            g, h = _int8(words, dtype), _int8(words >> 8, dtype)
        else:
            g, h = _fp8(words, dtype), _fp8(words >> 8, dtype)
        if ZERO:
            g, h = _plus(g, zero_g, dtype), _plus(h, zero_h, dtype)
        if FOLDED:
            g, h = _times(g, factor_g, dtype), _times(h, factor_h, dtype)
        both = tl.join(_elements(g, dtype), _elements(h, dtype))  # ..., element, half
        both = tl.permute(both, (0, 3, 9, 4, 1, 2, 6, 5, 7, 8))
    else:
        words = tl.reshape(words, (TILES, STEPS, 4, 8, 4, 4))  # tile, tile column, warp, group, pair, step
        a, b, c, d = _of_words(words, zero_g, zero_h, factor_g, factor_h, dtype, FORMAT, ZERO, FOLDED)
        first = tl.join(_elements(a, dtype), _elements(c, dtype))
        both = tl.join(first, tl.join(_elements(b, dtype), _elements(d, dtype)))  # ..., element, eight, half
        both = tl.permute(both, (0, 2, 8, 3, 1, 5, 4, 7, 6))
    return tl.reshape(both, (64 * TILES, 64 * STEPS))


@triton.jit
def arranged(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """x [ROWS, COLUMNS] with its columns in the order of `decoded`."""
    if x.dtype.primitive_bitwidth == 8:
        x = tl.permute(tl.reshape(x, (ROWS, COLUMNS // 32, 2, 4, 4)), (0, 1, 3, 2, 4))
    else:
        x = tl.permute(tl.reshape(x, (ROWS, COLUMNS // 16, 2, 4, 2)), (0, 1, 3, 2, 4))
    return tl.reshape(x, (ROWS, COLUMNS))


@triton.jit
def rows_of(half: tl.constexpr, TILES: tl.constexpr):
    """[TILES, 4, 8]: rows g (half 0) and g + 8 (half 1) of each warp's 16 in TILES tiles, of which `zero_*` and `factor_*` are."""
    of_tile, of_warp = 64 * tl.arange(0, TILES), 16 * tl.arange(0, 4)
    return of_tile[:, None, None] + of_warp[None, :, None] + tl.arange(0, 8)[None, None, :] + 8 * half


@triton.jit
def of_groups(Values, row, k, N: tl.constexpr, GROUP: tl.constexpr):
    """What `row`s have for the group of column k, as it is stored; of groups shorter than a tile [..., 4]: for each 16 of its columns."""
    at = Values + k // GROUP * N + row
    if GROUP >= 64:
        return raw_values(at)
    elif GROUP == 32:
        both = tl.join(raw_values(at), raw_values(at + N))
        return tl.reshape(tl.join(both, both), (row.shape[0], 4, 8, 4))
    else:
        first, second = tl.join(raw_values(at), raw_values(at + 2 * N)), tl.join(raw_values(at + N), raw_values(at + 3 * N))
        return tl.reshape(tl.join(first, second), (row.shape[0], 4, 8, 4))


@triton.jit
def spread(pairs, FORMAT: tl.constexpr):
    """Pairs from `of_groups` in the dimensions of a tile's words."""
    STEPS: tl.constexpr = 4 if len(pairs.shape) == 4 else 1
    TILES: tl.constexpr = pairs.shape[0]
    if FORMAT == "int8" or FORMAT == "fp8":
        if STEPS == 4:
            pairs = tl.permute(tl.reshape(pairs, (TILES, 4, 8, 2, 2)), (0, 3, 1, 2, 4))
            return tl.reshape(pairs, (TILES, 1, 2, 4, 8, 1, 2, 1))
        else:
            return tl.reshape(pairs, (TILES, 1, 1, 4, 8, 1, 1, 1))
    else:
        return tl.reshape(pairs, (TILES, 1, 4, 8, 1, STEPS))


@triton.jit
def raw_values(at):
    """Scales or zero points of groups as they are stored; E4M3 as bytes, since not every GPU has that type."""
    if at.dtype.element_ty == tl.float8e4nv:
        at = at.to(tl.pointer_type(tl.uint8))
    return tl.load(at)


@triton.jit
def e4m3_values(codes):
    """fp32 of E4M3 in bytes. In place of a float's bits it is 2^-120 times itself."""
    bits = codes.to(tl.int32)
    return ((bits & 128) << 24 | (bits & 127) << 20).to(tl.float32, bitcast=True) * 1.329227995784916e36


@triton.jit
def scale_values(raw, E8M0: tl.constexpr):
    """fp32 of what `raw_values` loads; bytes are powers of two if E8M0."""
    if E8M0:
        code = raw.to(tl.int32)
        return tl.where(code == 0, 0x400000, code << 23).to(tl.float32, bitcast=True)
    elif raw.dtype == tl.uint8:
        return e4m3_values(raw)
    else:
        return raw.to(tl.float32)
