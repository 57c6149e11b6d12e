"""The largest magnitude each quantized tensor reaches over a text: inputs of products, keys and values.

The largest, and not a percentile or a least-squares fit: E4M3 is a floating-point format, so room at the top costs nothing until values
reach its subnormals, 14 binary orders below the largest, while a clipped outlier (a few channels of a transformer carry them, at every
token) is an error that nothing later repairs. (ModelOpt's default as well.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from trtllm_engines.calibration.layerwise import Layerwise, quantizable
from trtllm_engines.calibration.probe import Progress
from trtllm_engines.compiler.graph import op_name
from trtllm_engines.compiler.plan import Op, Plan
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization import named_plan
from trtllm_engines.quantization.fp8_kv import cache_scale_sources
from trtllm_kernels.dialect.ops import OP_SPECS


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


def measure(layerwise: Layerwise, progress: Progress | None = None) -> Ranges:
    """Runs the text of `layerwise` through its model. Raises `EngineError` when a value is not finite."""
    quant = named_plan("fp8")
    inputs: dict[str, float] = {}
    cache: dict[str, float] = {}
    for done, part in enumerate(layerwise.parts, start=1):
        readers = {op: module for op, module in quantizable(part) if quant.scheme_of(module).weights is not None}
        written = {
            name: value
            for op in part.ops
            if op_name(op) == "attention"
            for name, value in zip(cache_scale_sources(str(op.meta["label"])), op.args[1:3], strict=True)
        }
        values: list[Any] = [*(op.args[0] for op in readers), *written.values()]
        largest: dict[Node, Tensor] = {}

        def seen(value: Node, tensor: Tensor, largest: dict[Node, Tensor] = largest) -> None:
            of_window = tensor.abs().amax().float()
            largest[value] = torch.maximum(largest[value], of_window) if value in largest else of_window

        if done < len(layerwise.parts):  # nothing is quantized after the last layer
            layerwise.enter(part, layerwise.run(part, layerwise.read(part), values, seen))
        inputs |= {module: _finite(module, largest[op.args[0]]) for op, module in readers.items()}  # type: ignore[index]
        cache |= {name: _finite(name, largest[value]) for name, value in written.items()}  # type: ignore[index]
        if progress is not None:
            progress("calibration", done, len(layerwise.parts))
    return Ranges(inputs, cache)


def _finite(name: str, largest: Tensor) -> float:
    number = float(largest)
    if not math.isfinite(number):
        raise EngineError(f"{name} is not finite on the calibration text; the model's weights are damaged, or need a wider type")
    return number
