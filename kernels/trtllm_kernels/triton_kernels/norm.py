"""RMS norm and layer norm, alone and after a residual addition: one row per program, the whole row in registers.

The row length is a compile-time constant (an engine knows it), so loads are 128-bit without run-time checks. Every sum is rounded to the
residual's dtype, the last before it is normalized, as in the reference. Weights are loaded before the row is available (`pdl.py`).
Since a program has the whole row, it also finds the row's scale where the result is quantized by rows (`*_quantize_rows`), and neither the
wide result nor a second kernel is needed.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import finish, result_scale, store_by_row


@triton.jit
def rms_norm(X, W, OutScale, Y, eps, N: tl.constexpr, BLOCK: tl.constexpr, QUANTIZE: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    w = tl.load(W + cols, mask=mask, other=0.0)
    out_scale = result_scale(OutScale, QUANTIZE)
    wait_for_previous(PDL)
    x = tl.load(X + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / N + eps)
    tl.store(Y + row * N + cols, finish(x * scale * w.to(tl.float32), out_scale, Y.dtype.element_ty, QUANTIZE), mask=mask)


@triton.jit
def _add(X, Addend, Residual, Total, at, mask, ADDEND: tl.constexpr):
    """Stores (X + Addend) + Residual, with each sum rounded, and returns it as fp32."""
    x = tl.load(X + at, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(Residual + at, mask=mask, other=0.0).to(tl.float32)
    if ADDEND:
        x += tl.load(Addend + at, mask=mask, other=0.0).to(tl.float32)
        x = x.to(Total.dtype.element_ty).to(tl.float32)
    total = (x + residual).to(Total.dtype.element_ty)
    tl.store(Total + at, total, mask=mask)
    return total.to(tl.float32)


@triton.jit
def add_rms_norm(
    X, Addend, Residual, W, OutScale, Y, Total, eps,
    N: tl.constexpr, BLOCK: tl.constexpr, QUANTIZE: tl.constexpr, ADDEND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    w = tl.load(W + cols, mask=mask, other=0.0)
    out_scale = result_scale(OutScale, QUANTIZE)
    wait_for_previous(PDL)
    x = _add(X, Addend, Residual, Total, row * N + cols, mask, ADDEND)
    scale = tl.rsqrt(tl.sum(x * x, 0) / N + eps)
    tl.store(Y + row * N + cols, finish(x * scale * w.to(tl.float32), out_scale, Y.dtype.element_ty, QUANTIZE), mask=mask)


@triton.jit
def _layer_normalize(x, mask, w, b, eps, N: tl.constexpr):
    centred = tl.where(mask, x - tl.sum(x, 0) / N, 0.0)
    return centred * tl.rsqrt(tl.sum(centred * centred, 0) / N + eps) * w.to(tl.float32) + b.to(tl.float32)


@triton.jit
def layer_norm(X, W, B, OutScale, Y, eps, N: tl.constexpr, BLOCK: tl.constexpr, QUANTIZE: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    w = tl.load(W + cols, mask=mask, other=0.0)
    b = tl.load(B + cols, mask=mask, other=0.0)
    out_scale = result_scale(OutScale, QUANTIZE)
    wait_for_previous(PDL)
    x = tl.load(X + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    y = _layer_normalize(x, mask, w, b, eps, N)
    tl.store(Y + row * N + cols, finish(y, out_scale, Y.dtype.element_ty, QUANTIZE), mask=mask)


@triton.jit
def add_layer_norm(
    X, Addend, Residual, W, B, OutScale, Y, Total, eps,
    N: tl.constexpr, BLOCK: tl.constexpr, QUANTIZE: tl.constexpr, ADDEND: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    w = tl.load(W + cols, mask=mask, other=0.0)
    b = tl.load(B + cols, mask=mask, other=0.0)
    out_scale = result_scale(OutScale, QUANTIZE)
    wait_for_previous(PDL)
    x = _add(X, Addend, Residual, Total, row * N + cols, mask, ADDEND)
    y = _layer_normalize(x, mask, w, b, eps, N)
    tl.store(Y + row * N + cols, finish(y, out_scale, Y.dtype.element_ty, QUANTIZE), mask=mask)


@triton.jit
def rms_norm_quantize_rows(X, W, Y, Scales, eps, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    w = tl.load(W + cols, mask=mask, other=0.0)
    wait_for_previous(PDL)
    x = tl.load(X + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 0) / N + eps)
    store_by_row(x * scale * w.to(tl.float32), Y, Scales, row, cols, mask, N)


@triton.jit
def add_rms_norm_quantize_rows(
    X, Addend, Residual, W, Y, Scales, Total, eps, N: tl.constexpr, BLOCK: tl.constexpr, ADDEND: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    w = tl.load(W + cols, mask=mask, other=0.0)
    wait_for_previous(PDL)
    x = _add(X, Addend, Residual, Total, row * N + cols, mask, ADDEND)
    scale = tl.rsqrt(tl.sum(x * x, 0) / N + eps)
    store_by_row(x * scale * w.to(tl.float32), Y, Scales, row, cols, mask, N)


@triton.jit
def layer_norm_quantize_rows(X, W, B, Y, Scales, eps, N: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    w = tl.load(W + cols, mask=mask, other=0.0)
    b = tl.load(B + cols, mask=mask, other=0.0)
    wait_for_previous(PDL)
    x = tl.load(X + row * N + cols, mask=mask, other=0.0).to(tl.float32)
    store_by_row(_layer_normalize(x, mask, w, b, eps, N), Y, Scales, row, cols, mask, N)


@triton.jit
def add_layer_norm_quantize_rows(
    X, Addend, Residual, W, B, Y, Scales, Total, eps, N: tl.constexpr, BLOCK: tl.constexpr, ADDEND: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    let_next_start(PDL)
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    mask = cols < N
    w = tl.load(W + cols, mask=mask, other=0.0)
    b = tl.load(B + cols, mask=mask, other=0.0)
    wait_for_previous(PDL)
    x = _add(X, Addend, Residual, Total, row * N + cols, mask, ADDEND)
    store_by_row(_layer_normalize(x, mask, w, b, eps, N), Y, Scales, row, cols, mask, N)
