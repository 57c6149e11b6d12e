"""What schemes whose weights are codes in groups have in common: how codes, scales, zero points and what arranges a product's inputs are
made of a checkpoint's tensors, and how they enter the graph.

A source that stores codes (or draws them) is asked for them as they are; a wide one is rounded to the nearest (`rounding`). Codes of
merged products are stacked, or interleaved, before they are packed, and a rank takes its part of them before that, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.fx import Node

from trtllm_engines.checkpoints import WeightSource
from trtllm_engines.checkpoints.stored_codes import StoredCodes
from trtllm_engines.compiler.graph import ModelGraph, call, derived_weight
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.registry import EXACT_CODES, RecipeKind, SharedInputs
from trtllm_engines.quantization.rounding import rounded
from trtllm_engines.quantization.scheme import Codes, Inputs, QuantScheme, WeightRecipe
from trtllm_kernels import formats
from trtllm_kernels.dialect.specs import as_stored
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.errors import KernelError

CODES, WEIGHT_SCALE, GROUP_SCALE, WEIGHT_ZERO = EXACT_CODES, "weight_scale", "group_scale", "weight_zero"
ORDER, FACTOR = "column_order", "column_factor"


def _scheme_of(recipe: WeightRecipe) -> tuple[Codes, Inputs]:
    assert recipe.scheme is not None
    assert recipe.scheme.weights is not None
    return recipe.scheme.weights, recipe.scheme.inputs


def parts_of(recipe: WeightRecipe, source: WeightSource, device: torch.device) -> list[StoredCodes]:
    """The codes of each input: those that are stored, where they are of the scheme's kind and want their inputs as it has them, else the
    nearest to the values."""
    kind, inputs = _scheme_of(recipe)
    parts = []
    for name, shape in recipe.inputs:
        stored = source.stored(name, shape, kind, device)
        if stored is not None and stored.suits(kind, inputs):
            parts.append(stored.as_kind(kind))
            continue
        rows, columns = shape
        read = partial(source.read, name, shape, torch.float32, device)
        parts.append(rounded(name, (rows, columns), kind, read))
    return parts


def _stacked(recipe: WeightRecipe, parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    dtype = parts[0].dtype
    items = [part.view(torch.uint8) if dtype == torch.float8_e4m3fn else part for part in parts]
    return (torch.stack(items, 1).flatten(0, 1) if recipe.interleave else torch.cat(items)).view(dtype)


def stacked_codes(recipe: WeightRecipe, source: WeightSource, device: torch.device) -> tuple[Tensor, Tensor]:
    """(codes [N, K], fp32 scales [N, 1]) of weights with one scale per row. Raises `EngineError` where one is not finite."""
    parts = parts_of(recipe, source, device)
    codes = _stacked(recipe, [_finite(part, "code", part.codes()) for part in parts])
    return codes, _stacked(recipe, [_scale(part).float() for part in parts]).contiguous()


def _codes(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _stacked(recipe, [_finite(part, "code", part.codes()) for part in parts_of(recipe, source, device)])


def _packed(recipe: WeightRecipe, codes: Tensor) -> Tensor:
    kind, _ = _scheme_of(recipe)
    if not formats.is_packed(kind.dtype, recipe.input_dtype):
        return codes.contiguous()
    return as_stored(formats.pack(codes, kind.dtype, recipe.input_dtype), kind.dtype)


def _weight_scale(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    kind, _ = _scheme_of(recipe)
    parts = parts_of(recipe, source, device)
    if kind.tensor_scale:
        scales = [(part, _finite(part, "scale", part.tensor_scale())) for part in parts if part.tensor_scale]
        return _stacked(recipe, [scale.view(1, 1).expand(part.shape[0], 1) for part, scale in scales])
    return _stacked(recipe, [_scale(part).float() for part in parts]).contiguous()


def _scale(part: StoredCodes) -> Tensor:
    """The scales of `part`. Raises `EngineError` where one is not finite. Among powers of two (uint8), 255 stands for NaN."""
    scale = part.scale()
    _finite(part, "scale", torch.where(scale == 255, torch.nan, 0.0) if scale.dtype == torch.uint8 else scale)
    return scale


def _finite(part: StoredCodes, what: str, values: Tensor) -> Tensor:
    """Returns `values`. Raises `EngineError` where one is not finite."""
    if not values.is_floating_point():
        return values
    bad = (values.view(torch.uint8) & 0x7F) == 0x7F if values.dtype == torch.float8_e4m3fn else ~torch.isfinite(values)
    if bool(bad.any()):
        raise EngineError(f"weight {part.name}: a {what} of its codes is not finite; download the checkpoint again, or quantize it again")
    return values


def _group_scale(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _stacked(recipe, [_scale(part) for part in parts_of(recipe, source, device)])


def _weight_zero(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    return _stacked(recipe, [_finite(part, "zero point", part.zero()).to(dtype) for part in parts_of(recipe, source, device) if part.zero])


def _transposed(recipe: WeightRecipe, groups: Tensor) -> Tensor:
    return groups.T.contiguous()


def _same_in_all(what: str, part: Callable[[StoredCodes], Tensor | None], none: Callable[[int], Tensor]) -> Callable[..., Tensor]:
    """Makes what is one for all parts of a merged product. A part without it (rounded again, or given by a refit) has `none`
    of its columns, which changes nothing. Raises `EngineError` where parts differ."""

    def make(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
        parts = parts_of(recipe, source, device)
        of_each = [none(one.shape[1]) if (own := part(one)) is None else own for one in parts]
        for one, other in zip(parts, of_each, strict=True):
            if not torch.equal(of_each[0].to(device), other.to(device)):
                raise EngineError(
                    f"weights {parts[0].name} and {one.name} have different {what}, and one product reads both; use the original checkpoint"
                )
        return of_each[0].to(device=device, dtype=dtype).view(1, -1)

    return make


def _factor(part: StoredCodes) -> Tensor | None:
    return None if part.factor is None else _finite(part, "factor (pre_quant_scale)", part.factor())


def _flat(recipe: WeightRecipe, row: Tensor) -> Tensor:
    return row.reshape(-1)


RECIPES = {
    CODES: RecipeKind(_codes, finish=_packed),
    WEIGHT_SCALE: RecipeKind(_weight_scale, is_scale=True),
    GROUP_SCALE: RecipeKind(_group_scale, is_scale=True, finish=_transposed),
    WEIGHT_ZERO: RecipeKind(_weight_zero, is_scale=True, finish=_transposed),
    ORDER: RecipeKind(
        _same_in_all("column orders (g_idx)", lambda one: one.order and one.order(), lambda columns: torch.arange(columns).int()),
        is_scale=True,
        finish=_flat,
    ),
    FACTOR: RecipeKind(_same_in_all("factors (pre_quant_scale)", _factor, torch.ones), is_scale=True, finish=_flat),
}


def quantize_weight(graph: ModelGraph, product: Node, scheme: QuantScheme) -> dict[str, Node]:
    """Makes the weight of `product` codes; returns what `linear` takes beside them, by argument. Raises `EngineError` for a shape that the
    codes cannot have."""
    weight, codes = product.args[1], scheme.weights
    assert isinstance(weight, Node)
    assert codes is not None
    name = str(weight.target)
    rows, columns = (int(size) for size in graph.weights[name].shape)
    input_dtype = scheme.inputs.dtype or graph.dtype
    checkpoint_name = graph.parts(name)[0][0]
    if codes.in_groups and columns % codes.group_size:
        raise EngineError(
            f"weight {checkpoint_name} has {columns} columns{_of_a_rank(graph)}, which do not divide into groups of {codes.group_size}; "
            f"{'choose a smaller --tp' if graph.layout.tp > 1 else 'use the original checkpoint'}"
        )
    if formats.is_packed(codes.dtype, input_dtype):
        try:
            formats.check_shape(rows, columns, codes.dtype)
        except KernelError as error:
            cure = "a smaller --tp or another precision" if graph.layout.tp > 1 else "another precision"
            raise EngineError(f"weight {checkpoint_name}{_of_a_rank(graph)}: {error}; choose {cure}") from None
    recipe = graph.recipe(name)
    made = WeightRecipe(CODES, recipe.inputs, recipe.interleave, recipe.shards, scheme, input_dtype)
    graph.weights[name] = TensorSpec((rows, columns), codes.dtype)
    graph.recipes[name] = made
    prefix = name.removesuffix("weight")
    return {
        argument: derived_weight(graph, f"{prefix}{argument}", tuple(map(int, spec.shape)), spec.dtype, _with_kind(made, argument))
        for argument, spec in codes.parameters(rows, columns).items()
    }


def arranged_input(graph: ModelGraph, product: Node, scheme: QuantScheme) -> Node:
    """The input of `product` as its weight's columns want it: gathered and multiplied first where the scheme says so. Raises `EngineError`
    where a rank has only a part of the columns that it would gather."""
    x, weight = product.args[:2]
    assert isinstance(x, Node)
    assert isinstance(weight, Node)
    if not (scheme.inputs.ordered or scheme.inputs.factored):
        return x
    name = str(weight.target)
    recipe = graph.recipe(name)
    columns = int(graph.weights[name].shape[1])
    prefix = name.removesuffix("weight")
    split = any(shard is not None and shard.dim == 1 for shard in recipe.shards)
    if scheme.inputs.ordered and split:
        raise EngineError(
            f"weight {recipe.inputs[0][0]} was quantized with its columns in another order (act-order), of which --tp {graph.layout.tp} "
            f"ranks have no equal parts; use --tp 1"
        )
    made = WeightRecipe("", recipe.inputs, shards=recipe.shards if split else (), scheme=scheme)
    index = factor = None
    if scheme.inputs.ordered:
        index = derived_weight(graph, f"{prefix}{ORDER}", (columns,), "int32", _with_kind(made, ORDER))
    if scheme.inputs.factored:
        factor = derived_weight(graph, f"{prefix}{FACTOR}", (columns,), "fp32", _with_kind(made, FACTOR))
    return call(graph.fx, "arrange_columns", x, index, factor, label=f"{product.meta['label']}.arrange_columns")


def _with_kind(recipe: WeightRecipe, kind: str) -> WeightRecipe:
    return replace(recipe, kind=kind)


def _of_a_rank(graph: ModelGraph) -> str:
    return f" of each of {graph.layout.tp} ranks" if graph.layout.tp > 1 else ""


def quantize_weight_only(graph: ModelGraph, product: Node, scheme: QuantScheme, shared: SharedInputs) -> Node:
    """`SchemeDefinition.quantize_product` of schemes with wide inputs."""
    x = arranged_input(graph, product, scheme)
    parameters = quantize_weight(graph, product, scheme)
    _, weight, bias = product.args[:3]
    scales = parameters.get(WEIGHT_SCALE), None, parameters.get(GROUP_SCALE), parameters.get(WEIGHT_ZERO)
    return call(graph.fx, "linear", x, weight, bias, None, *scales, label=str(product.meta["label"]))
