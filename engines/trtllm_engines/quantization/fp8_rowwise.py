"""fp8 (E4M3) by rows: weights with one scale per output channel, inputs with one scale per token, found as the tokens come.

Nothing is calibrated, so any checkpoint will do. The price is a `quantize_rows` before the products of each input, and that nothing is
fused with them (torch multiplies them, and adds nothing).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import Node

from trtllm_engines.checkpoints import WeightSource
from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.stack import stack, stack_codes
from trtllm_engines.compiler.graph import ModelGraph, call, item, quantize_weight
from trtllm_engines.quantization.registry import RecipeKind, SchemeDefinition, SharedInputs, register
from trtllm_engines.quantization.scheme import Codes, Inputs, QuantScheme, WeightRecipe
from trtllm_kernels.references.quantize import FP8_MAX, finish, row_scales

CODES, SCALE = "fp8_row_codes", "fp8_row_scale"


def _codes(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    if (stored := stack_codes(recipe, source, dtype, device)) is not None:
        return stored[0]
    wide = stack(recipe, source, torch.float32, device)
    return finish(wide, wide.dtype, _scales_of(recipe, source, device, wide))


def _scale(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    if (stored := stack_codes(recipe, source, torch.float8_e4m3fn, device)) is not None:
        return stored[1]
    return _scales_of(recipe, source, device, None)


def _scales_of(recipe: WeightRecipe, source: WeightSource, device: torch.device, wide: Tensor | None) -> Tensor:
    """fp32 [rows, 1]: what maps the largest magnitude of each row to E4M3's. Drawn weights have one bound for all of theirs."""
    if isinstance(source, DummyWeights):
        bound = max(source.largest(name, shape) for name, shape in recipe.inputs)
        return torch.full((sum(shape[0] for _, shape in recipe.inputs), 1), bound / FP8_MAX, device=device)
    return row_scales(stack(recipe, source, torch.float32, device) if wide is None else wide)


def _quantize_product(graph: ModelGraph, product: Node, scheme: QuantScheme, shared: SharedInputs) -> Node:
    x, weight, bias = product.args[:3]
    assert isinstance(x, Node)
    assert isinstance(weight, Node)
    assert scheme.weights is not None
    label = str(product.meta["label"])
    codes, scales = quantized_rows(graph, x, weight, scheme, shared, label)
    weight_scale = quantize_weight(graph, str(weight.target), scheme.weights, CODES, SCALE)
    return call(graph.fx, "linear", codes, weight, bias, scales, weight_scale, label=label)


def quantized_rows(graph: ModelGraph, x: Node, weight: Node, scheme: QuantScheme, shared: SharedInputs, label: str) -> tuple[Node, Node]:
    """(codes, scales) of input `x`, quantized with one scale per token; products that read it alike share them."""
    if (x, scheme.inputs) not in shared:
        both = call(graph.fx, "quantize_rows", x, label=f"{label}.quantize")
        shared[x, scheme.inputs] = item(graph.fx, both, 0, f"{label}.quantize.codes"), item(graph.fx, both, 1, f"{label}.quantize.scales")
    codes, scales = shared[x, scheme.inputs]
    return codes, scales


FP8_ROWWISE = register(
    SchemeDefinition(
        scheme=QuantScheme("fp8_rowwise", Codes("fp8", "row"), Inputs("fp8", "dynamic")),
        wide_dtype="bf16",
        kv_dtype="fp8",
        quantize_product=_quantize_product,
        recipes={CODES: RecipeKind(_codes), SCALE: RecipeKind(_scale, is_scale=True)},
        algorithms=("FP8_PER_CHANNEL_PER_TOKEN",),
        min_capability=89,
    )
)
