"""Pointwise kernels over [rows, N]: a program is one block of columns of one row."""

import triton
import triton.language as tl


@triton.jit
def silu_mul(Gate, Up, Y, N: tl.constexpr, STRIDE: tl.constexpr, UP_OFFSET: tl.constexpr, BLOCK: tl.constexpr):
    """Gate and Up have rows of STRIDE elements; Up starts UP_OFFSET elements on. Packed: both name one buffer, STRIDE 2N, UP_OFFSET N."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < N
    gate = tl.load(Gate + row * STRIDE + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(Up + row * STRIDE + UP_OFFSET + cols, mask=mask, other=0.0).to(tl.float32)
    y = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(Y + row * N + cols, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit
def gelu(X, Y, N: tl.constexpr, BLOCK: tl.constexpr):
    """0.5 x (1 + tanh u) written as x * sigmoid(2u), which loses nothing where tanh is near -1."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < N
    x = tl.load(X + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    u = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    tl.store(Y + row * N + cols, (x / (1.0 + tl.exp(-2.0 * u))).to(Y.dtype.element_ty), mask=mask)


@triton.jit
def add(A, B, Y, N: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < N
    a = tl.load(A + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(B + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(Y + row * N + cols, (a + b).to(Y.dtype.element_ty), mask=mask)
