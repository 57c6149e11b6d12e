"""The largest magnitude each quantized tensor reaches over a text: inputs of products, keys and values.

The largest, and not a percentile or a least-squares fit: E4M3 is a floating-point format, so room at the top costs nothing until values
reach its subnormals, 14 binary orders below the largest, while a clipped outlier (a few channels of a transformer carry them, at every
token) is an error that nothing later repairs. (ModelOpt's default as well.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trtllm_engines.calibration.probe import Probe, Progress
from trtllm_engines.compiler.plan import Op, Plan
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization import named_plan
from trtllm_engines.quantization.fp8_kv import cache_scale_sources
from trtllm_engines.runtime.batch import IntArray
from trtllm_kernels.dialect.ops import OP_SPECS, Trait


@dataclass(frozen=True)
class Ranges:
    """Largest magnitudes, by checkpoint name without its ending: `inputs["model.layers.0.mlp.down_proj"]`; `cache` by scale name."""

    inputs: Mapping[str, float]
    cache: Mapping[str, float]


def quantized_gemms(plan: Plan) -> list[Op]:
    """The products of a wide plan that an fp8 engine of this model quantizes. (A tied head's weight has the embedding's name.)"""
    quant = named_plan("fp8")
    return [
        op
        for op in plan.ops
        if OP_SPECS[op.op].kind == "gemm" and all(quant.scheme_of(module).weights is not None for module in (op.name, *modules(plan, op)))
    ]


def modules(plan: Plan, product: Op) -> list[str]:
    """Checkpoint modules a product is made of, such as the three projections of attention."""
    return [name.removesuffix(".weight") for name, _ in plan.weight_recipes[product.inputs[1]].inputs]


def marks(plan: Plan) -> list[str]:
    """Values to be read for `measure`."""
    writes = [op.outputs[0] for op in plan.ops if Trait.WRITES_CACHE in OP_SPECS[op.op].traits]
    return [*(op.inputs[0] for op in quantized_gemms(plan)), *writes]


def measure(probe: Probe, windows: Sequence[IntArray], progress: Progress | None = None) -> Ranges:
    """Runs `windows` through `probe`, which marks `marks`. Raises `EngineError` when a value is not finite."""
    plan = probe.plan
    products = quantized_gemms(plan)
    writes = [op for op in plan.ops if Trait.WRITES_CACHE in OP_SPECS[op.op].traits]
    values = list(dict.fromkeys(op.inputs[0] for op in products))
    kv_size = plan.config.kv_size
    largest: Tensor | None = None
    for done, ids in enumerate(windows, start=1):
        for outputs in probe.run(ids):
            magnitudes = [outputs[name].abs().amax() for name in values]
            for write in writes:
                heads = outputs[write.outputs[0]]
                magnitudes += [heads[:, -2 * kv_size : -kv_size].abs().amax(), heads[:, -kv_size:].abs().amax()]
            stacked = torch.stack([value.float() for value in magnitudes])
            largest = stacked if largest is None else torch.maximum(largest, stacked)
        if progress is not None:
            progress("calibration", done, len(windows))
    assert largest is not None
    numbers = largest.tolist()
    names = [*values, *(name for write in writes for name in cache_scale_sources(write.name))]
    for name, number in zip(names, numbers, strict=True):
        if not math.isfinite(number):
            raise EngineError(f"{name} is not finite on the calibration text; the model's weights are damaged, or need a wider type")
    by_value = dict(zip(values, numbers[: len(values)], strict=True))
    return Ranges(
        inputs={module: by_value[op.inputs[0]] for op in products for module in modules(plan, op)},
        cache=dict(zip(names[len(values) :], numbers[len(values) :], strict=True)),
    )
