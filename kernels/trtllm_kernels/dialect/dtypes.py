"""The dialect's number formats: how much memory an element takes, and which GPUs compute with it. Imports no torch.

Sizes are in bits and not bytes, so that packed formats (two 4-bit codes in a byte) need an entry here and no second rule anywhere else.
Elements of a tensor are packed without gaps; a tensor takes whole bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.errors import KernelError

BITS: Mapping[str, int] = {
    "fp32": 32,
    "fp16": 16,
    "bf16": 16,
    "fp8": 8,
    "int8": 8,
    "int4": 4,
    "fp4": 4,
    "nf4": 4,
    "int32": 32,
    "int64": 64,
    "uint8": 8,
}
"""`int4` is codes 0 to 15, `fp4` is E2M1 (OCP MX specification), `nf4` is the 16 normal quantiles of QLoRA (Dettmers et al. 2023)."""
OLDEST_CAPABILITY = 80
"""Compute capability of the oldest GPUs that kernels are compiled for, those of A100."""
FP8_CAPABILITY = 89
"""Compute capability of the first GPUs with fp8, those of L40S. Older ones can still widen codes of fp8, bit by bit."""


def bits_of(dtype: str) -> int:
    """Bits of one element. Raises `KernelError` for a dtype that the dialect does not have."""
    if dtype not in BITS:
        raise KernelError(f"dtype {dtype!r} is unknown; use one of {', '.join(BITS)}")
    return BITS[dtype]


def least_capability(dtype: str) -> int:
    """Compute capability of the oldest GPU that computes with `dtype`, such as 89."""
    return FP8_CAPABILITY if dtype == "fp8" else OLDEST_CAPABILITY


def bytes_of(count: int, dtype: str) -> int:
    """Bytes of `count` elements, the last byte counted whole."""
    return -(-count * bits_of(dtype) // 8)


def elements_in(size_bytes: int, dtype: str) -> int:
    """Whole elements that `size_bytes` bytes hold."""
    return size_bytes * 8 // bits_of(dtype)


def num_elements(spec: TensorSpec, symbols: Mapping[str, int] | None = None) -> int:
    """Elements of a tensor whose symbolic dimensions have the values in `symbols`. Raises `KernelError` where a value is missing."""
    return math.prod(evaluate(dim, symbols or {}) for dim in spec.shape)


def nbytes(spec: TensorSpec, symbols: Mapping[str, int] | None = None) -> int:
    """Bytes of a tensor whose symbolic dimensions have the values in `symbols`. Raises `KernelError` where a value is missing."""
    return bytes_of(num_elements(spec, symbols), spec.dtype)
