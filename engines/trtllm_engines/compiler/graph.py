"""The graph passes work on: a `torch.fx.Graph` of dialect ops over named weights, traced from a model definition.

Nodes are of four kinds only: placeholders (step inputs), `get_attr` (weights and constants, by name), `call_function` (a dialect op's
overload, every argument positional and defaults filled in, so that a pattern sees one spelling) and `getitem` (one result of several). A
bare `Graph` rather than a `GraphModule`: the module would want an attribute for every weight, and nothing here needs its generated code.

Weights carry only a specification. How each is made of checkpoint tensors is recorded beside it (`recipes`), so that weights can be read,
drawn or refitted long after the passes ran. How a product is quantized is recorded by its weight (`schemes`): passes ask the scheme what it
allows, and know none by name.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Graph, Node

from trtllm_engines.compiler.plan import ONE_GPU, ParallelLayout, Profile, Stage
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.families import define
from trtllm_engines.models.rope import cos_sin_table
from trtllm_engines.quantization.registry import CAST, Fusion, definition
from trtllm_engines.quantization.scheme import WIDE, Codes, KvScheme, QuantPlan, QuantScheme, WeightRecipe
from trtllm_kernels.dialect.ops import OP_SPECS, Trait
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.references import OPS

ROPE_TABLE = "rope.cos_sin"

DENSE_INPUTS: Mapping[str, TensorSpec] = {
    "token_ids": TensorSpec(("T",), "int32"),
    "positions": TensorSpec(("T",), "int32"),
    "query_start": TensorSpec(("R + 1",), "int32"),
    "logit_rows": TensorSpec(("S",), "int32"),
}


@dataclass
class ModelGraph:
    """A model part-way through compilation. Passes mutate it."""

    config: ModelConfig
    dtype: str
    profile: Profile
    fx: Graph
    inputs: dict[str, TensorSpec]
    """Step inputs by placeholder name; shapes may hold symbols."""
    weights: dict[str, TensorSpec]
    constants: dict[str, Tensor]
    recipes: dict[str, WeightRecipe] = field(default_factory=dict)
    """Weight -> how it is made; absent for a weight that is one wide checkpoint tensor."""
    schemes: dict[str, QuantScheme] = field(default_factory=dict)
    """Weight of a product -> how that is (or will be) quantized; absent for a wide one."""
    kv: KvScheme | None = None
    """What keys and values are cached in; None is the activations' dtype."""
    context_attention: str = WIDE
    """What attention of prompts multiplies."""
    checkpoint_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of every tensor of the checkpoint, as traced."""
    layout: ParallelLayout = ONE_GPU
    """Over how many stages `passes.stage` cuts it, and over how many ranks `passes.shard` splits each."""
    stage: Stage = field(kw_only=True)
    """Which part of the model it is, once `passes.stage` has run."""

    def nodes(self, op: str) -> list[Node]:
        """Nodes of one dialect op, in order."""
        return list(self.fx.find_nodes(op="call_function", target=OPS[op].overload))

    def recipe(self, weight: str) -> WeightRecipe:
        """How `weight` is made."""
        return self.recipes.get(weight) or WeightRecipe(CAST, ((weight, self.checkpoint_shapes.get(weight, (1,))),))

    def parts(self, weight: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(checkpoint name, shape) of what `weight` is made of."""
        return self.recipe(weight).inputs

    def scheme(self, weight: Node) -> QuantScheme:
        """The scheme of the product over `weight`: a weight, or what an op made of one."""
        while weight.op != "get_attr":
            weight = weight.all_input_nodes[0]
        return self.schemes.get(str(weight.target)) or QuantScheme(self.dtype)

    def allows(self, product: Node, fusion: Fusion) -> bool:
        """Whether the scheme of `product` (whose second argument is its weight) may be fused so."""
        weight = product.args[1]
        return isinstance(weight, Node) and fusion in definition(self.scheme(weight).name).fusions


class _Tracer(fx.Tracer):
    """Traces through every layer, and remembers which layer made each node: its label, unique, and its name in the plan."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: Counter[str] = Counter()
        self.parameter_names: dict[int, str] = {}
        """By identity, filled at the first parameter that is read."""

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return False

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """As fx has it, but for its search through all parameters of the model at each that is read."""
        if not isinstance(attr_val, torch.nn.Parameter):
            return super().getattr(attr, attr_val, parameter_proxy_cache)
        if not self.parameter_names:
            self.parameter_names = {id(parameter): name for name, parameter in self.root.named_parameters()}
        name = self.parameter_names[id(attr_val)]
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy("get_attr", name, (), {})
        return parameter_proxy_cache[name]

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        node: Node = super().create_node(*args, **kwargs)
        if node.op == "call_function":
            scope, op = self.scope.module_path, op_name(node)
            whole_layer = op in OP_SPECS and Trait.LAYER in OP_SPECS[op].traits
            node.meta["split"] = getattr(self.root.get_submodule(scope), "split", None)
            label = scope if scope and whole_layer else f"{scope}.{op}".lstrip(".")
            self.labels[label] += 1
            node.meta["label"] = label if self.labels[label] == 1 else f"{label}_{self.labels[label]}"
        return node


def trace(config: ModelConfig, dtype: str, profile: Profile) -> ModelGraph:
    """The model as written: dense attention, one op per line of its definition, everything in `dtype`."""
    module = define(config)
    graph = _Tracer().trace(module)
    constants = {ROPE_TABLE: cos_sin_table(config.rope, profile.max_seq_len)}
    weights: dict[str, TensorSpec] = {}
    by_identity: dict[int, str] = {}
    tensors = dict(module.named_parameters(remove_duplicate=False))
    for node in graph.nodes:
        if node.op == "get_attr":
            name = by_identity.setdefault(id(tensors[node.target]), node.target)
            node.target = name = ROPE_TABLE if name.endswith(ROPE_TABLE) else name
            if name != ROPE_TABLE:
                weights[name] = TensorSpec(tuple(tensors[name].shape), dtype)
        elif node.op == "call_function":
            normalize(node)
    graph.owning_module = None
    result = ModelGraph(config, dtype, profile, graph, dict(DENSE_INPUTS), weights, constants, stage=Stage(0, 0, config.num_layers))
    result.checkpoint_shapes = {name: tuple(int(d) for d in spec.shape) for name, spec in weights.items()}
    return result


def op_name(node: Any) -> str:
    """Dialect name of a node, or ""."""
    return _dialect_name(node.target) if isinstance(node, Node) and node.op == "call_function" else ""


@cache
def _dialect_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "trtllm":
        return str(target._schema.name).split("::")[1]
    return ""


def normalize(node: Node) -> None:
    """Makes every argument positional and fills in defaults."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return
    arguments = target._schema.arguments
    given = {**dict(zip((a.name for a in arguments), node.args, strict=False)), **node.kwargs}
    node.args = tuple(given.get(a.name, a.default_value) for a in arguments)
    node.kwargs = {}


def call(graph: Graph, op: str, *args: Any, label: str) -> Node:
    """Inserts a dialect op at the graph's insertion point."""
    node = graph.call_function(OPS[op].overload, args)
    normalize(node)
    node.meta["label"] = label
    return node


def item(graph: Graph, node: Node, index: int, label: str) -> Node:
    """Result `index` of an op with several."""
    out = graph.call_function(operator.getitem, (node, index))
    out.meta["label"] = label
    return out


def set_arguments(node: Node, **values: Any) -> None:
    """Gives a dialect op other arguments, by name."""
    names = [argument.name for argument in OP_SPECS[op_name(node)].arguments]
    for name, value in values.items():
        node.update_arg(names.index(name), value)


def evaluate(graph: ModelGraph, tensors: Mapping[str, Tensor], inputs: Mapping[str, Tensor], outputs: Sequence[Node] = ()) -> list[Tensor]:
    """Runs the graph op by op through the dialect, at any stage of compilation: the definition against which passes are tested.

    `tensors` holds weights by name (constants are the graph's own). Returns the graph's output, then `outputs`.
    """
    values: dict[Node, Any] = {}
    read_back = set(outputs)
    last_use = {arg: node for node in graph.fx.nodes for arg in node.all_input_nodes}
    for node in graph.fx.nodes:
        if node.op == "placeholder":
            values[node] = inputs[node.name]
        elif node.op == "get_attr":
            name = str(node.target)
            values[node] = graph.constants[name] if name in graph.constants else tensors[name]
        elif node.op == "call_function":
            target: Callable[..., Any] = node.target
            values[node] = target(*fx.node.map_arg(node.args, lambda n: values[n]))
        else:
            result = fx.node.map_arg(node.args[0], lambda n: values[n])
            return [*(result if isinstance(result, tuple) else (result,)), *(values[n] for n in outputs)]
        for arg in node.all_input_nodes:
            if last_use[arg] is node and arg not in read_back:
                del values[arg]
    raise EngineError("graph has no output")


def assign_schemes(graph: ModelGraph, plan: QuantPlan) -> None:
    """Gives every product of a traced graph the scheme that `plan` has for its module, and the cache its own.

    A weight that something else reads as well (a tied embedding) stays wide.
    """
    readers = Counter(str(weight.target) for node in graph.fx.nodes for weight in node.all_input_nodes if weight.op == "get_attr")
    for product in graph.nodes("linear"):
        weight = str(product.args[1].target)  # type: ignore[union-attr]
        scheme = plan.scheme_of(weight.removesuffix(".weight")) if readers[weight] == 1 else plan.wide
        columns = int(graph.weights[weight].shape[1]) // (graph.layout.tp if product.meta.get("split") == "inputs" else 1)
        graph.schemes[weight] = scheme.with_groups_for(columns) if plan.smaller_groups else scheme
    graph.kv, graph.context_attention = plan.kv, plan.context_attention


def stack_weight(graph: ModelGraph, name: str, parts: Sequence[Node]) -> str:
    """Registers weight `name` as `parts` (weights of one scheme) stacked along their first dimension."""
    names = [str(part.target) for part in parts]
    specs = [graph.weights[part] for part in names]
    rows = sum(int(spec.shape[0]) for spec in specs)
    graph.weights[name] = TensorSpec((rows, *specs[0].shape[1:]), specs[0].dtype)
    recipes = [graph.recipe(part) for part in names]
    inputs = tuple(one for recipe in recipes for one in recipe.inputs)
    shards = tuple(shard for recipe in recipes for shard in recipe.shards or (None,) * len(recipe.inputs))
    graph.recipes[name] = WeightRecipe(CAST, inputs, shards=shards if any(shards) else ())
    if names[0] in graph.schemes:
        graph.schemes[name] = graph.schemes[names[0]]
    return name


def derived_weight(graph: ModelGraph, name: str, shape: tuple[int, ...], dtype: str, recipe: WeightRecipe) -> Node:
    """Registers a weight that no layer of the model has, such as a scale, and returns the node that reads it."""
    graph.weights[name] = TensorSpec(shape, dtype)
    graph.recipes[name] = recipe
    return graph.fx.get_attr(name)


def quantize_weight(graph: ModelGraph, name: str, codes: Codes, codes_kind: str, scale_kind: str) -> Node:
    """Makes weight `name` [N, K] the codes that recipe `codes_kind` gives, registers its scale, which `scale_kind` gives, and returns the
    node that reads the scale."""
    rows, columns = (int(size) for size in graph.weights[name].shape)
    recipe = graph.recipe(name)
    graph.weights[name] = replace(graph.weights[name], dtype=codes.dtype)
    graph.recipes[name] = replace(recipe, kind=codes_kind)
    return derived_weight(graph, f"{name}_scale", codes.scale_shape(rows, columns), codes.scale_dtype, replace(recipe, kind=scale_kind))


def prune(graph: ModelGraph) -> None:
    """Drops nodes nobody uses and weights nobody names. Placeholders stay; ops that mutate stay."""
    for node in reversed(list(graph.fx.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            op = op_name(node)
            if not (op and OPS[op].mutates):
                graph.fx.erase_node(node)
    named = {str(node.target) for node in graph.fx.nodes if node.op == "get_attr"}
    for table in (graph.weights, graph.constants, graph.recipes, graph.schemes):
        for name in [n for n in table if n not in named]:
            del table[name]
