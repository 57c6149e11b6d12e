"""The schemes there are. Each is one file of this folder that calls `register`; nothing else has a list of them.

A scheme's file states the value (`QuantScheme`), NVIDIA's names for it, how its codes and scales are made of
checkpoint tensors, what it asks of the graph, and which fusions it allows. The files are loaded when a scheme is first asked for, so that
they may import the compiler, which itself imports the values.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.scheme import Codes, Inputs, KvScheme, QuantScheme, WeightRecipe

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.fx import Node

    from trtllm_engines.checkpoints import WeightSource
    from trtllm_engines.compiler.graph import ModelGraph

CAST = "cast"
"""The recipe of all that is not quantized: its inputs stacked, in the engine's wide type."""
HEAD = "lm_head"
"""Module that stays wide under every scheme: it is 6% of an 8B model's weights, errors there go straight into the logits, and its product
also samples."""
EMBEDDING = r"(?:.*\.)?(?:embed_tokens|wte)"
"""Modules that look up token vectors, which is no product: what a checkpoint quantized of them is made wide."""

EXACT_CODES = "codes"
"""The recipe of codes that are kept as they are stored, whatever their groups (`quantization.codes`): schemes that have it take any."""
MIXED = "mixed"

Fusion = Literal["gate_up_silu", "linear_gelu", "residual", "quantize"]
"""What a product may be fused with: SwiGLU or GELU after it, the residual added to it; its input's quantization with the op before."""
FUSIONS: frozenset[Fusion] = frozenset(("gate_up_silu", "linear_gelu", "residual", "quantize"))

SharedInputs = dict[tuple["Node", Inputs], Any]
"""(tensor, how it is quantized) -> what a scheme made of it: products that read the same tensor alike share its quantization."""


@dataclass(frozen=True)
class RecipeKind:
    """One way to make a weight. `make(recipe, source, dtype, device)` returns the tensor. `is_scale`: it is not a parameter of the model,
    and its shape is not that of its inputs stacked."""

    make: Callable[[WeightRecipe, WeightSource, torch.dtype, torch.device], Tensor]
    is_scale: bool = False
    finish: Callable[[WeightRecipe, Tensor], Tensor] | None = None
    """What is done to a rank's part of what `make` returns: codes are packed, scales of groups are transposed."""
    by_element: bool = False
    """Whether each element is made of that element of the inputs and of `WeightSource.largest` alone, and nothing is to finish, so that a
    rank can make its part without the rest."""


@dataclass(frozen=True)
class SchemeDefinition:
    """All there is to know of a scheme. `scheme` is its value with the defaults that `--precision` asks for."""

    scheme: QuantScheme
    wide_dtype: str
    """Of what it leaves wide."""
    kv_dtype: str
    """Of the KV cache where none is asked for."""
    quantize_product: Callable[[ModelGraph, Node, QuantScheme, SharedInputs], Node] | None = None
    """Given the graph, a wide `linear` (the insertion point) and the scheme: inserts what takes its place, changes the weight's
    specification and recipe, and returns the product. None for a wide scheme."""
    recipes: Mapping[str, RecipeKind] = field(default_factory=dict)
    fusions: frozenset[Fusion] = frozenset()
    algorithms: tuple[str, ...] = ()
    """NVIDIA's names for it (TensorRT-LLM's and ModelOpt's `QuantAlgo`)."""

    @property
    def name(self) -> str:
        return self.scheme.name

    @property
    def gemm_dtype(self) -> str:
        """What its products multiply."""
        return self.scheme.inputs.dtype or self.wide_dtype


@dataclass(frozen=True)
class KvDefinition:
    """A quantized KV cache: the value, its recipes, and what it asks of the graph."""

    scheme: KvScheme
    quantize_cache: Callable[[ModelGraph, KvScheme], None]
    recipes: Mapping[str, RecipeKind]


_SCHEMES: dict[str, SchemeDefinition] = {}
_KV_CACHES: dict[str, KvDefinition] = {}


def register(definition: SchemeDefinition) -> SchemeDefinition:
    """Makes a scheme known under its name, which is then a `--precision`."""
    _SCHEMES[definition.name] = definition
    return definition


def register_kv(definition: KvDefinition) -> KvDefinition:
    """Makes a quantized cache known under its dtype, which is then a `--kv-dtype`."""
    _KV_CACHES[definition.scheme.dtype] = definition
    return definition


@cache
def _load() -> None:
    package = importlib.import_module(__package__ or "")
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        importlib.import_module(module.name)


def definitions() -> Mapping[str, SchemeDefinition]:
    """Every scheme by name, wide ones first."""
    _load()
    return dict(sorted(_SCHEMES.items(), key=lambda one: one[0] == MIXED or one[1].scheme.weights is not None))


def definition(name: str) -> SchemeDefinition:
    """The scheme called `name`, by us or by NVIDIA. Raises `EngineError` where there is none."""
    _load()
    if name in _SCHEMES:
        return _SCHEMES[name]
    if (named := by_algorithm(name)) is not None:
        return named
    raise EngineError(f"unknown precision {name!r}; supported are {', '.join(definitions())}")


def by_algorithm(algorithm: str) -> SchemeDefinition | None:
    """The scheme that NVIDIA calls `algorithm`, in capitals or not."""
    return next((one for one in definitions().values() if algorithm.upper() in one.algorithms), None)


def scheme_for(kind: Codes, inputs: Inputs) -> SchemeDefinition | None:
    """The scheme of weights stored as `kind` and such inputs; None where there is none."""
    able = [
        one
        for one in definitions().values()
        if one.scheme.weights is not None and one.scheme.weights.is_like(kind) and one.scheme.inputs.dtype == inputs.dtype
    ]
    return next((one for one in able if one.scheme.inputs.scaling == inputs.scaling), able[0] if able else None)


def kv_definitions() -> Mapping[str, KvDefinition]:
    _load()
    return dict(_KV_CACHES)


def recipe_kind(name: str) -> RecipeKind:
    """The recipe called `name`. Raises `EngineError` for one of an engine that another version built."""
    _load()
    for recipes in chain((one.recipes for one in _SCHEMES.values()), (one.recipes for one in _KV_CACHES.values())):
        if name in recipes:
            return recipes[name]
    raise EngineError(f"unknown weight recipe {name!r}; rebuild the engine")
