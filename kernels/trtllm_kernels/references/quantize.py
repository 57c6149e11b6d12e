"""FP8 (E4M3) and int8 with scales: x is about `scale * q`, with one static scale per tensor (FP8) or one per row, computed as the row is
quantized.

Every op that can end in a quantization takes `out_scale`. If it is given, the op's fp32 result is divided by it, clamped to E4M3's largest
value and rounded once; if not, the result keeps the op's dtype. So quantization costs no rounding of its own and, fused, no memory traffic.
Scales are fp32 tensors of one element and not attributes: calibration and `refit` change them without recompiling.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from trtllm_kernels.dialect.registry import dialect_op
from trtllm_kernels.errors import KernelError

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
INT8_MAX = 127.0


def finish(x: torch.Tensor, dtype: torch.dtype, out_scale: torch.Tensor | None) -> torch.Tensor:
    """Turns the fp32 result of an op into what it returns."""
    if out_scale is None:
        return x.to(dtype)
    return (x / out_scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def dequantized(x: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """The fp32 value of a tensor that may be quantized."""
    return x.float() if scale is None else x.float() * scale


def fake_result(x: torch.Tensor, shape: Sequence[int], out_scale: torch.Tensor | None) -> torch.Tensor:
    """[shape], of E4M3 with an `out_scale`, else of x's dtype."""
    return x.new_empty(shape, dtype=x.dtype if out_scale is None else FP8)


@dialect_op("quantize", fake=lambda x, scale: fake_result(x, x.shape, scale))
def quantize(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return finish(x.float(), x.dtype, scale)


SMALLEST_SCALE = 1e-12
"""The scale of a row of zeros."""


def row_scales(x: torch.Tensor) -> torch.Tensor:
    """fp32 [rows, 1]: the scale that maps each row's largest magnitude to E4M3's largest value."""
    return (x.float().abs().amax(dim=1, keepdim=True) / FP8_MAX).clamp_min(SMALLEST_SCALE)


def int8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(int8 codes, fp32 scales without the last dimension) of fp32 `x` [..., n]: each row by its own largest magnitude, halves to even."""
    scales = (x.abs().amax(dim=-1) / INT8_MAX).clamp_min(SMALLEST_SCALE)
    return (x / scales[..., None]).round().to(torch.int8), scales


def codes_by_row(x: torch.Tensor, dtype: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, fp32 scales [rows, 1]) of fp32 x in `fp8` or `int8`. Raises `KernelError` for another dtype."""
    if dtype == "fp8":
        scales = row_scales(x)
        return finish(x, x.dtype, scales), scales
    if dtype == "int8":
        codes, scales = int8_rows(x)
        return codes, scales[:, None]
    raise KernelError(f"rows are quantized to fp8 or int8, not to {dtype}")


def fake_finished(x: torch.Tensor, out_scale: torch.Tensor | None, **_: Any) -> torch.Tensor:
    """The fake of ops that `finish` as many rows and columns as x has."""
    return fake_result(x, x.shape, out_scale)


def fake_rows(x: torch.Tensor, dtype: str, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The fake of ops that return `codes_by_row` of as many rows and columns as x has."""
    codes = x.new_empty(x.shape, dtype=FP8 if dtype == "fp8" else torch.int8)
    return codes, x.new_empty((x.shape[0], 1), dtype=torch.float32)


@dialect_op("quantize_rows", fake=fake_rows)
def quantize_rows(x: torch.Tensor, dtype: str = "fp8") -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, scales [rows, 1]) of x, each row by its own largest magnitude: nothing to calibrate, nothing clipped."""
    return codes_by_row(x.float(), dtype)
