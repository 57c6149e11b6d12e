"""Formats of packed weights: codes of 4 or 8 bits in the tensor core's order, one file a format.

A weight's value is `weight_scale * group_scale * (values(code) - zero)`. What packs and unpacks here is the code alone. Packing runs once,
when an engine is built or its weights are drawn, on the tensor's device.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trtllm_kernels.dialect.packing import TILE, check_shape, is_packed
from trtllm_kernels.errors import KernelError
from trtllm_kernels.formats import fp4, fp8, int4, int8, nf4
from trtllm_kernels.formats.format import Format

FORMATS: Mapping[str, Format] = {one.name: one for one in (int4.FORMAT, int8.FORMAT, fp8.FORMAT, fp4.FORMAT, nf4.FORMAT)}
ZERO: Mapping[str, int] = {"int4": 8}
"""The code that stands for zero where a weight has no zero points; 0 where a format is not listed."""

__all__ = ["FORMATS", "TILE", "ZERO", "Format", "check_shape", "is_packed", "pack", "unpack", "values"]


def _format(dtype: str) -> Format:
    if dtype not in FORMATS:
        raise KernelError(f"weights cannot be packed as {dtype!r}; use one of {', '.join(FORMATS)}")
    return FORMATS[dtype]


def _tiled(dtype: str, input_dtype: str) -> Format:
    number_format = _format(dtype)
    if not is_packed(dtype, input_dtype):
        raise KernelError(f"weights of {dtype} with inputs of {input_dtype} have no packed form; use wide inputs")
    return number_format


def pack(codes: torch.Tensor, dtype: str, input_dtype: str) -> torch.Tensor:
    """Codes [N, K], one an element (uint8, int8 for `int8`, E4M3 for `fp8`) -> the storage of an engine: uint8 [N, K / 2], or [N, K].

    int8 weights of int8 inputs stay as they are. Raises `KernelError` for a shape that tiles do not divide, and for a format that has no
    such inputs.
    """
    if dtype == input_dtype == "int8":
        return codes
    number_format = _tiled(dtype, input_dtype)
    check_shape(codes.shape[0], codes.shape[1], dtype)
    return number_format.pack(codes, input_dtype)


def unpack(storage: torch.Tensor, dtype: str, input_dtype: str) -> torch.Tensor:
    """The inverse of `pack`: codes [N, K]."""
    if dtype == input_dtype == "int8":
        return storage
    return _tiled(dtype, input_dtype).unpack(storage, input_dtype)


def values(codes: torch.Tensor, dtype: str) -> torch.Tensor:
    """fp32: what codes mean before zero points and scales, such as 0 to 15 for int4."""
    return _format(dtype).values(codes)
