"""Whether a model fits this machine, told before it is built or loaded, with what would fit instead.

What is counted is the weights as the engine stores them and the KV cache of one sequence: a machine without room for those runs nothing.
Activations and graphs come on top, so what passes here may still be refused when the engine is loaded (`runtime.memory`).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import cache

import torch
from torch.nn import Module

from trtllm_engines.compiler.fingerprint import CPU
from trtllm_engines.compiler.graph import ROPE_TABLE
from trtllm_engines.compiler.plan import ONE_GPU, ParallelLayout, Plan, Profile
from trtllm_engines.errors import EngineError, OutOfMemoryError
from trtllm_engines.memory import gib, host_free_bytes
from trtllm_engines.models import families
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.layers import Linear
from trtllm_engines.models.presets import PRESETS, preset_config
from trtllm_engines.quantization import named_plan, precisions
from trtllm_engines.quantization.precision import is_weight_only
from trtllm_engines.quantization.scheme import QuantPlan
from trtllm_kernels.dialect.dtypes import bytes_of

_GPU_SHARE = 0.95
"""Of a GPU's memory that an engine can have; the driver and the context keep the rest."""


def room_of(arch: str) -> int | None:
    """Bytes that an engine of `arch` may take of one device of this machine; None for a GPU that is not here."""
    if arch == CPU:
        return host_free_bytes()
    if not torch.cuda.is_available():
        return None
    return int(torch.cuda.mem_get_info()[1] * _GPU_SHARE)


def weight_bytes_of(config: ModelConfig, plan: QuantPlan) -> int:
    """Of the engine's weights, with scales of groups and without padding and other scales. Raises `EngineError` for a model without a
    definition."""
    total = 0
    for name, (count, is_product) in _parameters(config).items():
        codes = plan.scheme_of(name.removesuffix(".weight")).weights if is_product else None
        total += bytes_of(count, plan.wide_dtype if codes is None else codes.dtype)
        if codes is not None and codes.in_groups:
            of_groups = {name: spec for name, spec in codes.parameters(1, count).items() if name != "weight_scale"}
            total += sum(bytes_of(count // codes.group_size, spec.dtype) for spec in of_groups.values())
    return total


@cache
def _parameters(config: ModelConfig) -> Mapping[str, tuple[int, bool]]:
    """(elements, whether it is a product's weight) of each parameter."""
    module = families.define(config)
    products = {f"{name}.weight" for name in _linears(module)}
    return {name: (parameter.numel(), name in products) for name, parameter in module.named_parameters() if name != ROPE_TABLE}


def products_of(config: ModelConfig) -> list[str]:
    """Names of the modules that are GEMMs. Raises `EngineError` for a model without a definition."""
    return _linears(families.define(config))


def _linears(module: Module) -> list[str]:
    return [name for name, one in module.named_modules() if isinstance(one, Linear)]


def needed_bytes(config: ModelConfig, plan: QuantPlan, profile: Profile, layout: ParallelLayout = ONE_GPU) -> int:
    """Of one device: its part of the weights, the rotary table, and the cache of one sequence."""
    rows = 2 * config.num_layers * layout.kv_heads(config) * profile.max_seq_len // layout.pp
    table = bytes_of(config.rope.rotary_dim * profile.max_seq_len, "fp32")
    return weight_bytes_of(config, plan) // layout.ranks + table + plan.kv.nbytes(rows, config.head_dim)


def too_large(config: ModelConfig, plan: QuantPlan, profile: Profile, arch: str, layout: ParallelLayout = ONE_GPU) -> str:
    """Why the model cannot run here, and what can, in a sentence; empty where it may."""
    room, needed = room_of(arch), needed_bytes(config, plan, profile, layout)
    if room is None or needed <= room:
        return ""
    place = "this machine's CPU" if arch == CPU else f"{'each of these GPUs' if layout.tp > 1 else 'this GPU'}"
    return (
        f"{config.name} in {plan.name} needs {gib(needed)} for its weights and one sequence of {profile.max_seq_len} tokens, and {place} "
        f"has {gib(room)}; {_alternatives(config, profile, arch, layout, room)}"
    )


def check_fits(config: ModelConfig, plan: QuantPlan, profile: Profile, arch: str, layout: ParallelLayout = ONE_GPU) -> None:
    """Raises `OutOfMemoryError` with the sentence of `too_large`."""
    if said := too_large(config, plan, profile, arch, layout):
        raise OutOfMemoryError(said)


def check_weights_room(plan: Plan, stored_bytes: int, free: int) -> None:
    """Raises `OutOfMemoryError` unless the weights of a built engine fit `free` bytes of its device."""
    if stored_bytes > free:
        raise OutOfMemoryError(
            f"no room for the weights: {plan.config.name} in {plan.precision} needs {gib(stored_bytes)} and {gib(free)} are free; "
            f"free some, or build it in a smaller precision{' or for more GPUs (--tp)' if plan.fingerprint.arches != (CPU,) else ''}"
        )


def _alternatives(config: ModelConfig, profile: Profile, arch: str, layout: ParallelLayout, room: int) -> str:
    """Precisions (of those that quantize weights alone the smallest) and numbers of GPUs with which this model fits, else presets that
    do."""
    sizes: dict[str, int] = {}
    for precision in precisions():
        with suppress(EngineError):
            sizes[precision] = needed_bytes(config, named_plan(precision), profile, layout)
    weight_only = {name: size for name, size in sizes.items() if is_weight_only(name)}
    narrowest = min(weight_only, key=weight_only.__getitem__, default="")
    listed = [name for name, size in sizes.items() if size <= room and (name not in weight_only or name == narrowest)]
    fitting = [f"{name} ({gib(sizes[name])})" for name in listed]
    if arch != CPU:
        plan = named_plan("bf16")
        for tp in (2, 4, 8):
            if layout.tp < tp <= torch.cuda.device_count() and needed_bytes(config, plan, profile, ParallelLayout(tp)) <= room:
                fitting.append(f"bf16 with --tp {tp}")
                break
    if fitting:
        return f"it fits in {' or '.join(fitting)}"
    smallest = [name for name in PRESETS if needed_bytes(preset_config(name), named_plan("bf16"), Profile(1, 1, 1)) <= room]
    largest = max(smallest, key=lambda name: weight_bytes_of(preset_config(name), named_plan("bf16")), default="")
    return f"no precision of it fits; the largest preset that does is {largest}" if largest else "no preset fits"
