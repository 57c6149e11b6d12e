"""fp8 (E4M3): weights with one scale per tensor, inputs with one static scale per tensor.

Each input is quantized by a `quantize` before its product; `push_quantize` then moves it into the op that makes the input. Products that
read the same tensor share its scale, so it is quantized once. Scales are weights of the engine, read from the checkpoint when calibrated
there (ModelOpt's names): an input's is the largest of its readers'.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node

from trtllm_engines.checkpoints import WeightSource
from trtllm_engines.checkpoints.stack import stack
from trtllm_engines.compiler.graph import ModelGraph, call, derived_weight, quantize_weight
from trtllm_engines.quantization.registry import FUSIONS, RecipeKind, SchemeDefinition, SharedInputs, register
from trtllm_engines.quantization.scheme import Codes, Inputs, QuantScheme, WeightRecipe
from trtllm_kernels.references.quantize import FP8_MAX, SMALLEST_SCALE, finish

CODES, SCALE, INPUT_SCALE = "fp8_codes", "fp8_scale", "fp8_input_scale"


def _codes(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    wide = stack(recipe, source, torch.bfloat16, device)
    return finish(wide.float(), wide.dtype, _scale_of(recipe, source, device, wide))


def _scale(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _scale_of(recipe, source, device, None)


def _scale_of(recipe: WeightRecipe, source: WeightSource, device: torch.device, wide: Tensor | None) -> Tensor:
    """fp32 [1]: what maps the weight's largest magnitude to E4M3's, the checkpoint's where it has one, so that codes are kept."""
    bounds = [source.largest(name, shape) for name, shape in recipe.inputs]
    known = [bound for bound in bounds if bound is not None]
    if len(known) == len(bounds):
        return torch.tensor([max(known) / FP8_MAX], dtype=torch.float32, device=device)
    weight = stack(recipe, source, torch.bfloat16, device) if wide is None else wide
    return (weight.abs().amax().float() / FP8_MAX).clamp_min(SMALLEST_SCALE).view(1)


def _input_scale(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    scales = [source.input_scale(name) for name, _ in recipe.inputs]
    return torch.tensor([max(scales)], dtype=dtype, device=device)


def _quantize_product(graph: ModelGraph, product: Node, scheme: QuantScheme, shared: SharedInputs) -> Node:
    x, weight, bias = product.args[:3]
    assert isinstance(x, Node)
    assert isinstance(weight, Node)
    assert scheme.weights is not None
    label = str(product.meta["label"])
    codes, scale = quantized_input(graph, x, weight, scheme, shared, label)
    weight_scale = quantize_weight(graph, str(weight.target), scheme.weights, CODES, SCALE)
    return call(graph.fx, "linear", codes, weight, bias, scale, weight_scale, label=label)


def quantized_input(graph: ModelGraph, x: Node, weight: Node, scheme: QuantScheme, shared: SharedInputs, label: str) -> tuple[Node, Node]:
    """(codes, scale) of input `x` of the product over `weight`, quantized with a static scale that all its readers share."""
    name = str(weight.target)
    if (x, scheme.inputs) not in shared:
        scale = derived_weight(graph, _input_scale_name(name), (1,), "fp32", WeightRecipe(INPUT_SCALE, ()))
        shared[x, scheme.inputs] = call(graph.fx, "quantize", x, scale, label=f"{label}.quantize"), scale
    codes, scale = shared[x, scheme.inputs]
    readers = graph.recipes[str(scale.target)]
    scales: tuple[tuple[str, tuple[int, ...]], ...] = tuple((_input_scale_name(part), (1,)) for part, _ in graph.parts(name))
    graph.recipes[str(scale.target)] = replace(readers, inputs=readers.inputs + scales)
    return codes, scale


def _input_scale_name(weight: str) -> str:
    return weight.removesuffix("weight") + "input_scale"


FP8 = register(
    SchemeDefinition(
        scheme=QuantScheme("fp8", Codes("fp8", "tensor"), Inputs("fp8", "static")),
        wide_dtype="bf16",
        kv_dtype="fp8",
        quantize_product=_quantize_product,
        recipes={
            CODES: RecipeKind(_codes, by_element=True),
            SCALE: RecipeKind(_scale, is_scale=True),
            INPUT_SCALE: RecipeKind(_input_scale, is_scale=True),
        },
        fusions=FUSIONS,
        algorithms=("FP8",),
    )
)
