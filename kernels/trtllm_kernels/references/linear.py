"""GEMMs, alone and fused with the activation that follows, and the column split that follows a merged one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from trtllm_kernels.dialect.registry import dialect_op
from trtllm_kernels.dialect.specs import dtype_name
from trtllm_kernels.references.codes import weight_values
from trtllm_kernels.references.quantize import FP8, dequantized, fake_result, finish

CODES = (FP8, torch.int8)
"""What GEMMs take with scales."""


def _wide(x: torch.Tensor) -> torch.dtype:
    """Engines that quantize inputs compute in bf16."""
    return torch.bfloat16 if x.dtype in CODES else x.dtype


def _fake_product(x: torch.Tensor, columns: int, out_scale: torch.Tensor | None = None) -> torch.Tensor:
    return fake_result(x.new_empty(0, dtype=_wide(x)), (x.shape[0], columns), out_scale)


@dialect_op("linear", fake=lambda x, weight, **_: _fake_product(x, weight.shape[0]))
def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    x_scale: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    group_scale: torch.Tensor | None = None,
    weight_zero: torch.Tensor | None = None,
) -> torch.Tensor:
    """x [T, K] times weight [N, K] transposed, accumulated in fp32, plus bias [N] and residual [T, N], rounded once.

    Both wide, or x wide or codes with its scale (result then bf16), and a weight of codes (`weight_values`). Sums of int8 products are
    exact.
    """
    if x.dtype == weight.dtype and x.dtype not in CODES and residual is None:
        return functional.linear(x, weight, bias)
    gemm = _gemm(x, weight, bias, x_scale, weight_scale, group_scale, weight_zero)
    return (gemm if residual is None else gemm + residual.float()).to(_wide(x))


def _gemm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    x_scale: torch.Tensor | None,
    weight_scale: torch.Tensor | None,
    group_scale: torch.Tensor | None,
    weight_zero: torch.Tensor | None,
) -> torch.Tensor:
    """`linear` in fp32, before rounding."""
    if x.dtype == weight.dtype == torch.int8 and x_scale is not None and weight_scale is not None:
        sums = x.double() @ weight.double().T  # whole numbers below 2^53
        gemm = sums.float() * (x_scale * weight_scale.T)
    else:
        gemm = dequantized(x, x_scale) @ weight_values(weight, dtype_name(x.dtype), weight_scale, group_scale, weight_zero).T
    return gemm if bias is None else gemm + bias.float()


@dialect_op("gate_up_silu", fake=lambda x, weight, out_scale, **_: _fake_product(x, weight.shape[0] // 2, out_scale))
def gate_up_silu(
    x: torch.Tensor,
    weight: torch.Tensor,
    x_scale: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
    group_scale: torch.Tensor | None = None,
    weight_zero: torch.Tensor | None = None,
) -> torch.Tensor:
    """silu(x @ gate.T) * (x @ up.T) for weight [2 I, K] whose rows interleave: gate 0, up 0, gate 1, up 1, ..."""
    gemm = _gemm(x, weight, None, x_scale, weight_scale, group_scale, weight_zero)
    return finish(functional.silu(gemm[:, 0::2]) * gemm[:, 1::2], _wide(x), out_scale)


@dialect_op("split", fake=lambda x, sizes: [x.new_empty(x.shape[0], size) for size in sizes])
def split(x: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Columns of x as separate contiguous tensors. They are copies: the result of an op never aliases its argument."""
    return [part.contiguous() if part.shape[1] != x.shape[1] else part.clone() for part in torch.split_with_sizes(x, list(sizes), dim=-1)]


@dialect_op("linear_gelu", fake=lambda x, weight, out_scale, **_: _fake_product(x, weight.shape[0], out_scale))
def linear_gelu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    x_scale: torch.Tensor | None = None,
    weight_scale: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
    group_scale: torch.Tensor | None = None,
    weight_zero: torch.Tensor | None = None,
) -> torch.Tensor:
    """gelu(linear(...)), tanh approximation. Where a GPU runs it as two kernels, in steps of few tokens, it rounds the GEMM's result in
    between."""
    gemm = _gemm(x, weight, bias, x_scale, weight_scale, group_scale, weight_zero)
    return finish(functional.gelu(gemm, approximate="tanh"), _wide(x), out_scale)
