"""Precisions: the quantization plans that have a name, and which of them run where.

A precision names what products multiply; activations between products stay wide (bf16 where products are fp8). The KV cache has a type of
its own, because it pays for itself alone: half the bytes of a cache are half the reads of every decode step, whatever the weights are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.registry import HEAD, MIXED, SchemeDefinition, by_algorithm, definition, definitions, kv_definitions
from trtllm_engines.quantization.scheme import CONTEXT_ATTENTION, UNQUANTIZED, WIDE, KvScheme, ModuleRule, QuantPlan
from trtllm_kernels.dialect.dtypes import least_capability
from trtllm_kernels.lowering.call import capability
from trtllm_kernels.lowering.prefill import CONTEXT_HEAD_DIMS
from trtllm_kernels.lowering.registry import has_kernels

CONTEXT_OP = "rope_kv_write_quantize"
"""The op that makes what attention of prompts multiplies in fp8."""


def precisions() -> tuple[str, ...]:
    """Every name that `--precision` takes."""
    return tuple(definitions())


def canonical(precision: str) -> str:
    """Our name of a precision that is given by one of NVIDIA's; any other name as it is."""
    known = None if precision in UNQUANTIZED or precision in definitions() else by_algorithm(precision)
    return precision if known is None else known.name


def default_unquantized(gpu: bool) -> str:
    """What a model runs in when neither the user nor its checkpoint says."""
    return "bf16" if gpu else "fp32"


def is_weight_only(precision: str) -> bool:
    """Whether products of an engine of `precision` have codes for weights and wide inputs."""
    scheme = definition(precision).scheme
    return scheme.weights is not None and not scheme.inputs.dtype


def kv_dtypes() -> tuple[str, ...]:
    """Every name that `--kv-dtype` takes."""
    return ("auto", *(name for name, one in definitions().items() if name == one.wide_dtype), *kv_definitions())


def named_plan(precision: str, kv_dtype: str = "auto", arches: Sequence[str] = (), context_attention: str = WIDE) -> QuantPlan:
    """The plan called `precision`: its scheme for every product but the head, for the GPUs `arches`. Raises `EngineError` for types that do
    not go together."""
    chosen = definition(precision)
    if chosen.name == MIXED:
        raise EngineError(
            "precision mixed has a scheme for each product; say which with --precision-map FILE, or take a checkpoint that has"
        )
    return with_context_attention(_plan_of(chosen, kv_dtype, arches), context_attention)


def _plan_of(chosen: SchemeDefinition, kv_dtype: str, arches: Sequence[str]) -> QuantPlan:
    wide = definition(chosen.wide_dtype).scheme
    rules = () if chosen.scheme.weights is None else (ModuleRule(HEAD, wide), ModuleRule(".*", chosen.scheme))
    cache = kv_scheme(chosen.name, kv_dtype, arches)
    return QuantPlan(chosen.name, chosen.wide_dtype, cache, rules, f"precision {chosen.name}", smaller_groups=True)


def kv_scheme(precision: str, asked: str, arches: Sequence[str] = ()) -> KvScheme:
    """The cache of dtype `asked` in an engine of `precision`; `auto` is what the precision has, where all of `arches` have that. Raises
    `EngineError` for types that do not go together."""
    chosen = definition(precision)
    wide = chosen.wide_dtype
    if asked not in kv_dtypes():
        raise EngineError(f"unknown KV cache dtype {asked!r}; supported are {', '.join(kv_dtypes())}")
    dtype = chosen.kv_dtype if asked == "auto" else asked
    quantized = kv_definitions()
    if dtype in quantized:
        if wide == "fp32":
            raise EngineError(f"an {dtype} KV cache needs 16-bit activations; use precision bf16 or fp16, or one with codes")
        scheme = quantized[dtype].scheme
        return automatic_cache(scheme, wide, arches) if asked == "auto" else scheme
    if dtype != wide:
        *most, last = wide, *quantized
        raise EngineError(f"an engine in {precision} can keep its KV cache in {', '.join(most)} or {last}, not {dtype}")
    return KvScheme(wide)


def automatic_cache(cache: KvScheme, wide: str, arches: Sequence[str]) -> KvScheme:
    """`cache` where nobody asked for another: the wide one if a GPU of `arches` does not have its type."""
    least = least_capability(cache.dtype)
    return KvScheme(wide) if any(capability(arch) < least for arch in arches if arch.startswith("sm_")) else cache


def with_context_attention(plan: QuantPlan, asked: str) -> QuantPlan:
    """`plan` with attention of prompts in `asked`. Raises `EngineError` for an unknown name, and for a cache that has not the codes
    that it multiplies."""
    if asked not in CONTEXT_ATTENTION:
        raise EngineError(f"unknown context attention {asked!r}; supported are {', '.join(CONTEXT_ATTENTION)}")
    if asked not in (WIDE, plan.kv.dtype):
        raise EngineError(
            f"{asked} context attention multiplies the codes of an {asked} KV cache and this one is in {plan.kv.dtype}; "
            f"choose --kv-dtype {asked}, or --context-attention {WIDE}"
        )
    return replace(plan, context_attention=asked)


def check_head_size(plan: QuantPlan, head_dim: int, arches: Sequence[str]) -> None:
    """Raises `EngineError` where attention of prompts in fp8 has no kernel for heads of `head_dim` dimensions, for the GPUs of `arches`."""
    on_gpu = any(arch.startswith("sm_") for arch in arches)
    if on_gpu and plan.context_attention != WIDE and head_dim not in CONTEXT_HEAD_DIMS:
        sizes = " or ".join(map(str, CONTEXT_HEAD_DIMS))
        raise EngineError(
            f"{plan.context_attention} context attention has kernels for heads of {sizes} dimensions and this model's have {head_dim}; "
            f"choose --context-attention {WIDE}"
        )


def check_gpus(plan: QuantPlan, arches: Sequence[str]) -> None:
    """Raises `EngineError` unless every GPU of `arches` has the types of `plan`."""
    names = {plan.name, *(rule.scheme.name for rule in plan.rules)}
    needs = [(f"precision {one.name}", one.gemm_dtype, least_capability(one.gemm_dtype), "bf16") for one in map(definition, sorted(names))]
    if plan.kv.dtype in kv_definitions():
        least = least_capability(plan.kv.dtype)
        others = [one for one in kv_definitions() if least_capability(one) < least]
        cure = " or ".join(f"--kv-dtype {one}" for one in (wide_dtype(plan.name), *others))
        needs.append((f"an {plan.kv.dtype} KV cache", plan.kv.dtype, least, cure))
    gpus = [arch for arch in arches if arch.startswith("sm_")]
    if plan.context_attention != WIDE and (others := [arch for arch in gpus if not has_kernels(CONTEXT_OP, arch)]):
        raise EngineError(
            f"{plan.context_attention} context attention has no kernel for {', '.join(others)}; choose --context-attention {WIDE}, "
            "or other architectures"
        )
    for what, dtype, least, cure in needs:
        if old := [arch for arch in gpus if capability(arch) < least]:
            raise EngineError(
                f"{what} needs sm_{least} or later and {', '.join(old)} has no {dtype}; choose {cure}, or other architectures"
            )


def check_types(precision: str, kv_dtype: str = "auto", arches: Sequence[str] = (), context_attention: str = WIDE) -> None:
    """Raises `EngineError` unless an engine of `precision` with a cache of `kv_dtype` exists and runs on `arches`."""
    check_gpus(with_context_attention(_plan_of(definition(precision), kv_dtype, arches), context_attention), arches)


def wide_dtype(precision: str) -> str:
    """What activations are in an engine of `precision`."""
    return definition(precision).wide_dtype


def gemm_dtype(precision: str) -> str:
    """What products multiply in an engine of `precision`."""
    return definition(precision).gemm_dtype


def kv_cache_dtype(precision: str, asked: str = "auto", arches: Sequence[str] = ()) -> str:
    """The cache's type. `auto` quantizes that of a quantized engine, where all of `arches` have the type. Raises `EngineError` for one that
    does not go with `precision`."""
    return kv_scheme(definition(precision).name, asked, arches).dtype
