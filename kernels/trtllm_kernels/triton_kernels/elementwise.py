"""Pointwise kernels over [rows, N]: a program is one block of columns of one row, or a whole row where that is quantized by rows."""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.activations import gelu_tanh, swiglu
from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import finish, result_scale, store_by_row


@triton.jit
def silu_mul(
    Gate, Up, OutScale, Y,
    N: tl.constexpr, STRIDE: tl.constexpr, UP_OFFSET: tl.constexpr, BLOCK: tl.constexpr, QUANTIZE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Gate and Up have rows of STRIDE elements; Up starts UP_OFFSET elements later. Packed: both are one buffer, STRIDE 2N, UP_OFFSET N."""
    let_next_start(PDL)
    out_scale = result_scale(OutScale, QUANTIZE)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < N
    gate = tl.load(Gate + row * STRIDE + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(Up + row * STRIDE + UP_OFFSET + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(Y + row * N + cols, finish(swiglu(gate, up), out_scale, Y.dtype.element_ty, QUANTIZE), mask=mask)


@triton.jit
def silu_mul_interleaved(GateUp, OutScale, Y, N: tl.constexpr, BLOCK: tl.constexpr, QUANTIZE: tl.constexpr, PDL: tl.constexpr):
    """GateUp has rows of 2N elements: gate 0, up 0, gate 1, ..."""
    let_next_start(PDL)
    out_scale = result_scale(OutScale, QUANTIZE)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    start = tl.program_id(1) * BLOCK
    pair = 2 * start + tl.arange(0, 2 * BLOCK)
    both = tl.load(GateUp + row * (2 * N) + pair, mask=pair < 2 * N, other=0.0).to(tl.float32)
    gate, up = tl.split(tl.reshape(both, (BLOCK, 2)))
    cols = start + tl.arange(0, BLOCK)
    tl.store(Y + row * N + cols, finish(swiglu(gate, up), out_scale, Y.dtype.element_ty, QUANTIZE), mask=cols < N)


@triton.jit
def gelu(X, OutScale, Y, N: tl.constexpr, BLOCK: tl.constexpr, QUANTIZE: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    out_scale = result_scale(OutScale, QUANTIZE)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < N
    x = tl.load(X + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(Y + row * N + cols, finish(gelu_tanh(x), out_scale, Y.dtype.element_ty, QUANTIZE), mask=mask)


@triton.jit
def silu_mul_packed_quantize_rows(GateUp, Y, Scales, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """GateUp has rows of 2N elements: the gates, then what they gate."""
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    gate = tl.load(GateUp + row * (2 * N) + cols, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(GateUp + row * (2 * N) + N + cols, mask=mask, other=0.0).to(tl.float32)
    store_by_row(swiglu(gate, up), Y, Scales, row, cols, mask, N)


@triton.jit
def gelu_quantize_rows(X, Y, Scales, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    x = tl.load(X + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    store_by_row(gelu_tanh(x), Y, Scales, row, cols, mask, N)


@triton.jit
def add(A, B, Y, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    wait_for_previous(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = cols < N
    a = tl.load(A + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(B + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    tl.store(Y + row * N + cols, (a + b).to(Y.dtype.element_ty), mask=mask)
