"""Quantization: what there is of it as values (`scheme`), each scheme's own file, and the names that select them (`precision`)."""

from trtllm_engines.quantization.precision import (
    check_types,
    gemm_dtype,
    kv_cache_dtype,
    kv_dtypes,
    named_plan,
    precisions,
    wide_dtype,
)

__all__ = [
    "check_types",
    "gemm_dtype",
    "kv_cache_dtype",
    "kv_dtypes",
    "named_plan",
    "precisions",
    "wide_dtype",
]
