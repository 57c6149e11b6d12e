"""Sums of a GEMM: fp32, or int32 and exact where both operands are int8."""

import triton
import triton.language as tl


@triton.jit
def no_sums(ROWS: tl.constexpr, COLUMNS: tl.constexpr, operand: tl.constexpr):
    """Zeros for sums of products of `operand`'s type."""
    return tl.zeros((ROWS, COLUMNS), dtype=tl.int32 if operand == tl.int8 else tl.float32)


@triton.jit
def add_product(a, b, sums):
    """sums + a @ b.T"""
    if a.dtype == tl.int8:
        return tl.dot(a, b.T, sums, out_dtype=tl.int32)
    else:
        return tl.dot(a, b.T, sums)


@triton.jit
def dot4(w, x):
    """int32: sums of the products of the four int8 that each element of w and x holds."""
    return tl.inline_asm_elementwise("dp4a.s32.s32 $0, $1, $2, 0;", "=r,r,r", [w, x], dtype=tl.int32, is_pure=True, pack=1)
