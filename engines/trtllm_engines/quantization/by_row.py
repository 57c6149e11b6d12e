"""What schemes share whose weights have one scale per output channel and whose inputs one per token, found as the tokens come.

Nothing is calibrated, so any checkpoint will do. Each input is quantized by a `quantize_rows` before its products; the pass
`fuse_quantize_rows` then takes it into the op that makes the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Node

from trtllm_engines.checkpoints import WeightSource
from trtllm_engines.checkpoints.dummy import LARGEST_INT8, DummyWeights
from trtllm_engines.checkpoints.stack import stack, stack_codes
from trtllm_engines.compiler.graph import ModelGraph, call, item, quantize_weight
from trtllm_engines.quantization.codes import arranged_input, stacked_codes
from trtllm_engines.quantization.registry import RecipeKind, SharedInputs
from trtllm_engines.quantization.scheme import QuantScheme, WeightRecipe
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.references.quantize import FP8_MAX, codes_by_row, finish

_LARGEST_DRAWN = {"fp8": FP8_MAX, "int8": LARGEST_INT8}
"""The code that stands for the bound of drawn weights."""


def recipes(dtype: str, codes_kind: str, scale_kind: str) -> Mapping[str, RecipeKind]:
    """How codes of `dtype` and their scales are made: the checkpoint's where it has such, else each row by its largest magnitude.

    Drawn weights have one bound, and so one scale, for all rows.
    """

    def both(recipe: WeightRecipe, source: WeightSource, device: torch.device) -> tuple[Tensor, Tensor]:
        if recipe.scheme is not None:  # its inputs are arranged, so that codes are the checkpoint's own
            return stacked_codes(recipe, source, device)
        stored = stack_codes(recipe, source, DTYPES[dtype], device)
        if stored is not None:
            return stored
        wide = stack(recipe, source, torch.float32, device)
        if isinstance(source, DummyWeights):
            scales = drawn_scales(recipe, source, device)
            return finish(wide, wide.dtype, scales), scales
        return codes_by_row(wide, dtype)

    def drawn_scales(recipe: WeightRecipe, source: DummyWeights, device: torch.device) -> Tensor:
        bound = max(source.largest(name, shape) for name, shape in recipe.inputs)
        return torch.full((sum(shape[0] for _, shape in recipe.inputs), 1), bound / _LARGEST_DRAWN[dtype], device=device)

    def codes(recipe: WeightRecipe, source: WeightSource, _: torch.dtype, device: torch.device) -> Tensor:
        return both(recipe, source, device)[0]

    def scale(recipe: WeightRecipe, source: WeightSource, _: torch.dtype, device: torch.device) -> Tensor:
        return drawn_scales(recipe, source, device) if isinstance(source, DummyWeights) else both(recipe, source, device)[1]

    return {codes_kind: RecipeKind(codes), scale_kind: RecipeKind(scale, is_scale=True)}


def quantize_product(codes_kind: str, scale_kind: str) -> Callable[[ModelGraph, Node, QuantScheme, SharedInputs], Node]:
    """`SchemeDefinition.quantize_product` of a scheme whose weights the recipes of these names make."""

    def quantize(graph: ModelGraph, product: Node, scheme: QuantScheme, shared: SharedInputs) -> Node:
        x, label = arranged_input(graph, product, scheme), str(product.meta["label"])
        _, weight, bias = product.args[:3]
        assert isinstance(weight, Node)
        assert scheme.weights is not None
        codes, scales = quantized_rows(graph, x, scheme, shared, label)
        name = str(weight.target)
        if scheme.inputs.factored or scheme.inputs.ordered:
            graph.recipes[name] = replace(graph.recipe(name), scheme=scheme)
        weight_scale = quantize_weight(graph, name, scheme.weights, codes_kind, scale_kind)
        return call(graph.fx, "linear", codes, weight, bias, scales, weight_scale, label=label)

    return quantize


def quantized_rows(graph: ModelGraph, x: Node, scheme: QuantScheme, shared: SharedInputs, label: str) -> tuple[Node, Node]:
    """(codes, scales) of input `x`, quantized with one scale per token; products that read it alike share them."""
    if (x, scheme.inputs) not in shared:
        rows = call(graph.fx, "quantize_rows", x, scheme.inputs.dtype, label=f"{label}.quantize")
        codes, scales = (item(graph.fx, rows, index, f"{label}.quantize.{name}") for index, name in enumerate(("codes", "scales")))
        shared[x, scheme.inputs] = codes, scales
    codes, scales = shared[x, scheme.inputs]
    return codes, scales
