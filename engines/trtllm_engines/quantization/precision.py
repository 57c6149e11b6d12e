"""What an engine computes and caches in: the precisions there are, which KV cache goes with which, and which GPUs have the types.

`precision` names weights and products; activations between products stay wide (bf16 where products are fp8). The KV cache has a type of
its own, because it pays for itself alone: half the bytes of a cache are half the reads of every decode step, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtllm_engines.engine.fingerprint import CPU
from trtllm_engines.errors import EngineError
from trtllm_kernels.lowering.call import capability

PRECISIONS = ("fp32", "fp16", "bf16", "fp8", "fp8_rowwise")
"""`fp8`: a calibrated scale a tensor. `fp8_rowwise`: one a row, of the weights stored, of the activations found as they come."""
KV_DTYPES = ("auto", "fp16", "bf16", "fp32", "fp8")
FP8_SINCE = 89
"""Oldest compute capability (Ada) with fp8 conversions and products."""
_QUANTIZED: Mapping[str, str] = {"fp8": "fp8", "fp8_rowwise": "fp8"}


def wide_dtype(precision: str) -> str:
    """What activations are in an engine of `precision`."""
    return "bf16" if precision in _QUANTIZED else precision


def gemm_dtype(precision: str) -> str:
    """What products multiply in an engine of `precision`."""
    return _QUANTIZED.get(precision, precision)


def kv_cache_dtype(precision: str, asked: str = "auto") -> str:
    """The cache's type. `auto` quantizes that of a quantized engine. Raises `EngineError` for one that does not go with `precision`."""
    wide = wide_dtype(precision)
    if asked not in KV_DTYPES:
        raise EngineError(f"unknown KV cache dtype {asked!r}; supported are {', '.join(KV_DTYPES)}")
    if asked == "fp8" and wide == "fp32":
        raise EngineError("an fp8 KV cache needs 16-bit activations; use precision fp8, bf16 or fp16")
    if asked not in ("auto", "fp8", wide):
        raise EngineError(f"an engine in {precision} can keep its KV cache in {wide} or fp8, not {asked}")
    return "fp8" if asked == "fp8" or (asked == "auto" and precision in _QUANTIZED) else wide


def check_types(precision: str, kv_dtype: str = "auto", arches: Sequence[str] = ()) -> None:
    """Raises `EngineError` unless an engine of `precision` with a cache of `kv_dtype` exists and runs on `arches`."""
    if precision not in PRECISIONS:
        raise EngineError(f"unknown precision {precision!r}; supported are {', '.join(PRECISIONS)}")
    cache = kv_cache_dtype(precision, kv_dtype)
    if "fp8" not in (gemm_dtype(precision), cache):
        return
    without = [arch for arch in arches if arch != CPU and capability(arch) < FP8_SINCE]
    if without:
        what = f"precision {precision}" if precision in _QUANTIZED else "an fp8 KV cache"
        raise EngineError(f"{what} needs sm_{FP8_SINCE} or later and {', '.join(without)} has no fp8; choose bf16, or other architectures")
