"""Conversion between torch tensors and the plan's tensor specifications.

Of 4-bit codes torch holds bytes, two codes in each, under a type of its own for every format, so that an op knows from the tensor alone
what the codes mean. Torch moves such a tensor and computes nothing with it; `bytes_of_codes` is what kernels and references look at.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trtllm_kernels.dialect.dtypes import BITS
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.errors import KernelError

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
    "int4": torch.bits4x2,
    "fp4": torch.float4_e2m1fn_x2,
    "nf4": torch.bits8,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    if dtype not in _NAMES:
        raise KernelError(f"dtype {dtype} has no name in the dialect; use one of {', '.join(DTYPES)}")
    return _NAMES[dtype]


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    dtype = dtype_name(tensor.dtype)
    *leading, last = tensor.shape
    return TensorSpec((*leading, last * _elements_per_item(dtype)), dtype) if tensor.ndim else TensorSpec((), dtype)


def storage_shape(shape: Sequence[int], dtype: str) -> tuple[int, ...]:
    """Shape of the torch tensor that holds a tensor of `shape`. Raises `KernelError` for a row of 4-bit codes that ends within a byte."""
    packed = _elements_per_item(dtype)
    if packed == 1:
        return tuple(shape)
    if shape[-1] % packed:
        raise KernelError(f"a row of {shape[-1]} {dtype} codes does not fill whole bytes; it must be a multiple of {packed}")
    return (*shape[:-1], shape[-1] // packed)


def as_stored(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    """Bytes of 4-bit codes under the torch type of `dtype`; a tensor of another dtype as it is."""
    return tensor.view(DTYPES[dtype]) if tensor.dtype == torch.uint8 and _elements_per_item(dtype) > 1 else tensor


def bytes_of_codes(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a tensor of 4-bit codes, uint8 [..., K / 2]; any other tensor as it is."""
    return tensor if _elements_per_item(dtype_name(tensor.dtype)) == 1 else tensor.view(torch.uint8)


def _elements_per_item(dtype: str) -> int:
    return max(1, 8 // BITS[dtype])
