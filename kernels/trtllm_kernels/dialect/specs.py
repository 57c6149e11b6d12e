"""Conversion between torch tensors and the plan's tensor specifications."""

from __future__ import annotations

import torch

from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.errors import KernelError

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
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
    return TensorSpec(tuple(tensor.shape), dtype_name(tensor.dtype))
