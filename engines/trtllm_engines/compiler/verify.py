"""Runs between every two passes and refuses a graph that is not well formed, naming the node.

Shapes and dtypes are not trusted from passes: they are recomputed through each op's fake implementation, with several values of T, R, S and
the number of KV pages, so a pass that is right only for one batch size is caught here. `node.meta["spec"]` then holds a `TensorSpec` (or a
tuple of them) that later passes and the memory plan read. A failure is a bug in a pass, hence `VerifyError` and not a user's error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import fx

from trtllm_engines.compiler.graph import ModelGraph, op_name
from trtllm_engines.compiler.placement import Placement, PlacementError, place
from trtllm_engines.quantization.registry import recipe_kind
from trtllm_engines.quantization.scheme import QuantScheme
from trtllm_kernels.dialect.ops import OP_SPECS, Trait
from trtllm_kernels.dialect.specs import DTYPES, spec_of, storage_shape
from trtllm_kernels.dialect.types import TensorSpec

_SIZES = ({"T": 1009, "R": 211, "S": 103, "P": 499}, {"T": 2003, "R": 307, "S": 151, "P": 601}, {"T": 4001, "R": 401, "S": 197, "P": 797})
"""What the symbols stand for, each time shapes are computed: primes, so that no two sizes are equal by accident."""


Spec = TensorSpec | tuple[TensorSpec, ...]


class VerifyError(AssertionError):
    """A pass left the graph malformed."""


_checked: dict[object, Spec] = {}
"""Results of calls that were found right, by all that they depend on. Layers and passes repeat, so a model of eighty layers costs little
more than one of two."""


def verify(graph: ModelGraph, stage: str) -> None:
    """Raises `VerifyError` naming `stage` and the node; annotates every node with its specification."""
    kept_in = "" if graph.kv is None else graph.kv.granularity
    ops = {node: op_name(node) for node in graph.fx.nodes}
    for node, op in ops.items():
        _check_use(graph, node, op, stage)
        if node.op == "placeholder":
            node.meta["spec"] = graph.inputs[node.name]
        elif node.op == "get_attr":
            name = str(node.target)
            constant = graph.constants.get(name)
            node.meta["spec"] = graph.weights[name] if constant is None else spec_of(constant)
        elif op:
            arguments = _arguments(node, op)
            scheme = _scheme(graph, node, op)
            call = (node.target, arguments, scheme, graph.dtype, kept_in)
            if call not in _checked:
                _check_arguments(graph, node, op, arguments, scheme, stage)
                try:
                    _checked[call] = _result(node.target, arguments)
                except Exception as error:
                    raise VerifyError(f"after {stage}: {_describe(node)} rejects its arguments: {error}") from error
            node.meta["spec"] = _checked[call]
        elif node.op == "call_function":
            source, index = node.args
            node.meta["spec"] = source.meta["spec"][index]
    _check_stacks(graph, stage)
    _check_placements(graph, stage)
    _check_cache_order(ops, stage)


def _arguments(node: fx.Node, op: str) -> tuple[Any, ...]:
    """Specifications of tensors, and attributes; layers are all the first, since none differs in its shapes."""
    layer = _place(op, "layer")
    return tuple(a.meta["spec"] if isinstance(a, fx.Node) else 0 if place == layer else a for place, a in enumerate(node.args))


@cache
def _place(op: str, argument: str) -> int | None:
    names = _argument_names(op)
    return names.index(argument) if argument in names else None


def _scheme(graph: ModelGraph, node: fx.Node, op: str) -> QuantScheme | None:
    """How the weight that the op reads is quantized; None for a wide one, and where it reads none."""
    place = _place(op, "weight")
    weight: Any = None if place is None else node.args[place]
    return graph.schemes.get(str(weight.target)) if weight is not None and weight.op == "get_attr" else None


def _result(target: Any, arguments: tuple[Any, ...]) -> Spec:
    """What an op returns: its fake runs on tensors without data, once for each of `_SIZES`, and what differs between the results is text.

    Rejected: torch's symbolic sizes, which load its compiler, a second and a half of every process that builds an engine.
    """
    results = [target(*(_tensor(a, sizes) if isinstance(a, TensorSpec) else a for a in arguments)) for sizes in _SIZES]
    return tuple(map(_spec, zip(*results, strict=True))) if isinstance(results[0], (tuple, list)) else _spec(results)


def _tensor(spec: TensorSpec, sizes: Mapping[str, int]) -> torch.Tensor:
    shape = [dim if isinstance(dim, int) else eval(dim, {"__builtins__": {}}, dict(sizes)) for dim in spec.shape]
    return torch.empty(storage_shape(shape, spec.dtype), dtype=DTYPES[spec.dtype], device="meta")


def _spec(results: Sequence[torch.Tensor]) -> TensorSpec:
    """Of one result, computed with each of `_SIZES`."""
    specs = [spec_of(result) for result in results]
    return replace(specs[0], shape=tuple(map(_dim, zip(*(spec.shape for spec in specs), strict=True))))


def _dim(numbers: tuple[Any, ...]) -> int | str:
    """The size that is one of `numbers` with each of `_SIZES`: a constant, or a symbol plus a constant. Raises ValueError for any other."""
    if len(set(numbers)) == 1:
        return int(numbers[0])
    for symbol in _SIZES[0]:
        differences = {number - sizes[symbol] for number, sizes in zip(numbers, _SIZES, strict=True)}
        if len(differences) == 1:
            (constant,) = differences
            return f"{symbol} {'-' if constant < 0 else '+'} {abs(constant)}" if constant else symbol
    raise ValueError(f"a result of {numbers} elements is neither constant nor a constant more than one of {', '.join(_SIZES[0])}")


@cache
def _argument_names(op: str) -> tuple[str, ...]:
    return tuple(argument.name for argument in OP_SPECS[op].arguments)


def _describe(node: fx.Node) -> str:
    return f"{op_name(node) or node.op} {node.meta.get('label', node.name)!r}"


def _check_use(graph: ModelGraph, node: fx.Node, op: str, stage: str) -> None:
    if node.op == "placeholder" and node.name not in graph.inputs:
        raise VerifyError(f"after {stage}: {node.name} is not a step input")
    if node.op == "get_attr" and str(node.target) not in graph.weights and str(node.target) not in graph.constants:
        raise VerifyError(f"after {stage}: weight {node.target} does not exist")
    if node.op == "call_function" and not node.users and not (op and OP_SPECS[op].mutates):
        raise VerifyError(f"after {stage}: result of {_describe(node)} is not used")
    if node.op not in ("placeholder", "get_attr", "call_function", "output"):
        raise VerifyError(f"after {stage}: node {node.name} is a {node.op}, which a compiled graph does not have")


def _check_arguments(graph: ModelGraph, node: fx.Node, op_name: str, arguments: Any, scheme: QuantScheme | None, stage: str) -> None:
    """Floating-point tensors of one op share a dtype, but for those it names itself, scales, and what a GEMM's scheme says of it."""
    op = OP_SPECS[op_name]
    by_name = dict(zip(_argument_names(op_name), arguments, strict=True))
    present = {name: by_name[name] for name in op.tensors if by_name[name] is not None}
    own = {*op.own_dtype, *op.scales}
    if op.kind == "gemm":
        x, weight, bias, residual = present["x"], present["weight"], present.get("bias"), present.get("residual")
        if x.shape[1] != weight.shape[1] or (bias is not None and bias.shape[0] != weight.shape[0]):
            raise VerifyError(f"after {stage}: {_describe(node)} multiplies {x.shape} by {weight.shape}")
        if residual is not None and residual.shape != (x.shape[0], weight.shape[0]):
            raise VerifyError(f"after {stage}: {_describe(node)} adds {residual.shape} to a product of {x.shape} by {weight.shape}")
    if scheme is not None:
        own |= _check_scheme(graph, node, scheme, present, stage)
    dtypes = {spec.dtype for name, spec in present.items() if name not in own} - {"int32", "int64"}
    if len(dtypes) > 1:
        raise VerifyError(f"after {stage}: {_describe(node)} mixes {', '.join(sorted(dtypes))}")
    needed = {"tensor": ("k_scale", "v_scale"), "row": ("kv_scales",)}.get("" if graph.kv is None else graph.kv.granularity, ())
    if "kv_cache" in present and present["kv_cache"].dtype != graph.dtype and not present.keys() >= set(needed):
        raise VerifyError(f"after {stage}: {_describe(node)} uses an {present['kv_cache'].dtype} cache without {' and '.join(needed)}")
    combined = [present[name] for name in op.same_shape if name in present]
    for spec in combined[1:]:
        if spec.shape != combined[0].shape:
            raise VerifyError(f"after {stage}: {_describe(node)} combines {combined[0].shape} with {spec.shape}")


def _check_scheme(graph: ModelGraph, node: fx.Node, scheme: QuantScheme, present: Mapping[str, TensorSpec], stage: str) -> set[str]:
    """Refuses an op over codes without what their scheme asks for; returns the arguments whose dtypes the scheme gives."""
    if scheme.weights is None or present["weight"].dtype != scheme.weights.dtype:
        return set()
    codes, inputs = scheme.weights, scheme.inputs
    rows, columns = (int(size) for size in present["weight"].shape)
    expected = codes.parameters(rows, columns)
    scales = {name for name in expected if name.endswith("scale")} | ({"x_scale"} if inputs.scaling != "none" else set())
    if not scales <= present.keys():
        unscaled = (
            f"multiplies {codes.dtype} without both its scales" if "x_scale" in scales else f"takes {codes.dtype} codes without their scale"
        )
        raise VerifyError(f"after {stage}: {_describe(node)} {unscaled}")
    if codes.zero_point and "weight_zero" not in present:
        raise VerifyError(f"after {stage}: {_describe(node)} takes {codes.dtype} codes without their zero points")
    for name, spec in expected.items():
        if present[name] != spec:
            what = "zero points" if name == "weight_zero" else "scales"
            raise VerifyError(f"after {stage}: {_describe(node)} has {what} {present[name]} where {scheme.name} has {spec}")
    if extra := {"weight_scale", "group_scale", "weight_zero"} & present.keys() - expected.keys():
        raise VerifyError(f"after {stage}: {_describe(node)} has a {min(extra)}, which {scheme.name} has not")
    dtype = inputs.dtype or graph.dtype
    if "x" in present and present["x"].dtype != dtype:
        raise VerifyError(f"after {stage}: {_describe(node)} multiplies {present['x'].dtype} inputs where {scheme.name} has {dtype}")
    wide = {name for name in ("bias", "residual") if name in present and present[name].dtype == graph.dtype}
    return wide | {"x", "weight", "weight_zero"}


def _check_stacks(graph: ModelGraph, stage: str) -> None:
    for name, spec in graph.weights.items():
        recipe = graph.recipe(name)
        if recipe_kind(recipe.kind).is_scale:
            continue
        parts = [shape for _, shape in recipe.local_inputs]
        if sum(p[0] for p in parts) != spec.shape[0] or any(p[1:] != spec.shape[1:] for p in parts):
            raise VerifyError(f"after {stage}: weight {name} is {spec.shape} but its parts are {parts}")


def _check_placements(graph: ModelGraph, stage: str) -> None:
    """In a tensor-parallel graph every op finds its arguments where it needs them."""
    if graph.layout.tp == 1 or "group" not in graph.inputs:
        return
    placed: dict[fx.Node, Placement] = {}
    for node in graph.fx.nodes:
        try:
            placed[node] = place(graph, node, placed)
        except PlacementError as error:
            raise VerifyError(f"after {stage}: {_describe(node)}: {error}") from error


def _check_cache_order(ops: Mapping[fx.Node, str], stage: str) -> None:
    """Each layer of the cache is written exactly once, before it is read, and layers are 0, 1, 2, ... `ops`: every node in order, with the
    name of its op."""
    written: list[int] = []
    for node, op in ops.items():
        writes, reads = _cache_use(op) if op else (False, False)
        if not (writes or reads):
            continue
        layer: Any = node.args[_argument_names(op).index("layer")]
        if writes:
            written.append(layer)
        elif layer not in written:
            raise VerifyError(f"after {stage}: {_describe(node)} reads the cache of layer {layer} before it is written")
    if written != list(range(len(written))):
        raise VerifyError(f"after {stage}: cache layers are written in the order {written}")


@cache
def _cache_use(op: str) -> tuple[bool, bool]:
    """Whether the op writes the KV cache, and whether it reads it."""
    traits = OP_SPECS[op].traits
    return Trait.WRITES_CACHE in traits, Trait.READS_CACHE in traits
