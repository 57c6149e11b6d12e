"""What a weight of codes means: the formula of `dialect.ops.linear`, in fp32."""

from __future__ import annotations

import torch

from trtllm_kernels import formats
from trtllm_kernels.dialect.specs import bytes_of_codes, dtype_name

E8M0_BIAS = 127
"""A code s of E8M0 stands for 2^(s - bias) (OCP Microscaling Formats 1.0)."""


def weight_values(
    weight: torch.Tensor,
    input_dtype: str,
    weight_scale: torch.Tensor | None = None,
    group_scale: torch.Tensor | None = None,
    weight_zero: torch.Tensor | None = None,
) -> torch.Tensor:
    """fp32 [N, K] of a weight, wide or of codes as the engine stores them for inputs of `input_dtype`."""
    dtype = dtype_name(weight.dtype)
    if formats.is_packed(dtype, input_dtype):
        codes = formats.values(formats.unpack(bytes_of_codes(weight), dtype, input_dtype), dtype)
    else:
        codes = weight.float()
    return code_values(codes, dtype, weight_scale, group_scale, weight_zero)


def code_values(
    codes: torch.Tensor,
    dtype: str,
    weight_scale: torch.Tensor | None,
    group_scale: torch.Tensor | None,
    weight_zero: torch.Tensor | None,
) -> torch.Tensor:
    """fp32 [N, K] of what codes [N, K] of `dtype`, decoded to fp32, stand for with their scales and zero points."""
    columns = codes.shape[1]
    if weight_zero is not None:
        codes = codes - _by_column(weight_zero.float(), columns)
    elif dtype in formats.ZERO:
        codes = codes - formats.ZERO[dtype]
    if group_scale is not None:
        codes = codes * _by_column(scale_values(group_scale), columns)
    return codes if weight_scale is None else codes * weight_scale


def scale_values(scale: torch.Tensor) -> torch.Tensor:
    """fp32 of scales; uint8 is E8M0, a power of two (OCP Microscaling Formats specification, version 1.0)."""
    if scale.dtype == torch.uint8:
        return torch.exp2(scale.float() - E8M0_BIAS)
    return scale.float()


def _by_column(groups: torch.Tensor, columns: int) -> torch.Tensor:
    """[N, columns] of numbers of groups [G, N]."""
    return groups.T.repeat_interleave(columns // groups.shape[0], dim=1)
