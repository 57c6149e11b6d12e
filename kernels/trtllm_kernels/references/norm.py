"""Normalisation, alone and fused with the residual addition before it.

Statistics are fp32 and the result is rounded once. The fused ops return `(normed, x + residual)` with the sum rounded to the
residual's dtype *before* it is normalised, so fusing changes no bit: the unfused `add` rounds there too. Quantized by rows, the fp32 result
is rounded once, straight to codes. A model whose attention and feed-forward join the residual together gives the second of them as
`addend`: (x + addend) + residual, each sum rounded.
"""

from __future__ import annotations

from typing import Any

import torch

from trtllm_kernels.dialect.registry import dialect_op
from trtllm_kernels.references.elementwise import add
from trtllm_kernels.references.quantize import codes_by_row, fake_finished, fake_rows, finish


def rms_normalize(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """fp32 RMS norm over groups of `weight.numel()` trailing elements, not rounded (Zhang and Sennrich 2019, eq. 4)."""
    grouped = x.float().view(x.shape[0], x.shape[1] // weight.shape[0], weight.shape[0])
    scale = torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)
    normed: torch.Tensor = grouped * scale * weight.float()
    return normed.flatten(-2)


@dialect_op("rms_norm", fake=fake_finished)
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float, out_scale: torch.Tensor | None = None) -> torch.Tensor:
    return finish(rms_normalize(x, weight, eps), x.dtype, out_scale)


@dialect_op("layer_norm", fake=fake_finished)
def layer_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, out_scale: torch.Tensor | None = None
) -> torch.Tensor:
    return finish(_layer_normalize(x, weight, bias, eps), x.dtype, out_scale)


def _layer_normalize(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x.float(), (weight.shape[0],), weight.float(), bias.float(), eps)


def _total(x: torch.Tensor, residual: torch.Tensor, addend: torch.Tensor | None) -> torch.Tensor:
    both = x if addend is None else add(x, addend)
    return add(residual, both)


def fake_add_norm(x: torch.Tensor, residual: torch.Tensor, out_scale: torch.Tensor | None, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The fake of norms that also return a sum."""
    return fake_finished(x, out_scale), residual.new_empty(residual.shape)


@dialect_op("add_rms_norm", fake=fake_add_norm)
def add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    addend: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    total = _total(x, residual, addend)
    return rms_norm(total, weight, eps, out_scale), total


@dialect_op("add_layer_norm", fake=fake_add_norm)
def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    addend: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    total = _total(x, residual, addend)
    return layer_norm(total, weight, bias, eps, out_scale), total


@dialect_op("rms_norm_quantize_rows", fake=fake_rows)
def rms_norm_quantize_rows(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: str = "fp8") -> tuple[torch.Tensor, torch.Tensor]:
    return codes_by_row(rms_normalize(x, weight, eps), dtype)


@dialect_op("layer_norm_quantize_rows", fake=fake_rows)
def layer_norm_quantize_rows(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, dtype: str = "fp8"
) -> tuple[torch.Tensor, torch.Tensor]:
    return codes_by_row(_layer_normalize(x, weight, bias, eps), dtype)


def _fake_add_norm_rows(x: torch.Tensor, residual: torch.Tensor, dtype: str, **_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return *fake_rows(x, dtype), residual.new_empty(residual.shape)


@dialect_op("add_rms_norm_quantize_rows", fake=_fake_add_norm_rows)
def add_rms_norm_quantize_rows(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    addend: torch.Tensor | None = None,
    dtype: str = "fp8",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = _total(x, residual, addend)
    return *rms_norm_quantize_rows(total, weight, eps, dtype), total


@dialect_op("add_layer_norm_quantize_rows", fake=_fake_add_norm_rows)
def add_layer_norm_quantize_rows(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    addend: torch.Tensor | None = None,
    dtype: str = "fp8",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = _total(x, residual, addend)
    return *layer_norm_quantize_rows(total, weight, bias, eps, dtype), total
