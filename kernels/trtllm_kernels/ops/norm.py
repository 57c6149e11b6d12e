"""Normalisation, alone and fused with the residual addition before it.

Statistics are fp32 and the result is rounded once. The fused ops return `(normed, x + residual)` with the sum rounded to the
residual's dtype *before* it is normalised, so fusing changes no bit: the unfused `add` rounds there too.
"""

from __future__ import annotations

import torch

from trtllm_kernels.ops.registry import dialect_op, fake_like_first


def rms_normalize(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """fp32 RMS norm over groups of `weight.numel()` trailing elements, unrounded. (Zhang and Sennrich 2019, eq. 4.)"""
    grouped = x.float().view(x.shape[0], -1, weight.shape[0])
    scale = torch.rsqrt(grouped.square().mean(-1, keepdim=True) + eps)
    normed: torch.Tensor = grouped * scale * weight.float()
    return normed.flatten(-2)


@dialect_op("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", fake=fake_like_first)
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return rms_normalize(x, weight, eps).to(x.dtype)


@dialect_op("layer_norm(Tensor x, Tensor weight, Tensor bias, float eps) -> Tensor", fake=fake_like_first)
def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x.float(), (weight.shape[0],), weight.float(), bias.float(), eps).to(x.dtype)


def _fake_pair(x: torch.Tensor, residual: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(residual)


@dialect_op("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)", fake=_fake_pair)
def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    total = (x.float() + residual.float()).to(residual.dtype)
    return rms_norm(total, weight, eps).to(x.dtype), total


@dialect_op("add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)", fake=_fake_pair)
def add_layer_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    total = (x.float() + residual.float()).to(residual.dtype)
    return layer_norm(total, weight, bias, eps).to(x.dtype), total
