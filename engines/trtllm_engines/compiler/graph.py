"""The graph passes work on: a `torch.fx.Graph` of dialect ops over named weights, traced from a model definition.

Nodes are of four kinds only: placeholders (step inputs), `get_attr` (weights and constants, by name), `call_function` (a dialect op's
overload, every argument positional and defaults filled in, so that a pattern sees one spelling) and `getitem` (one result of several). A
bare `Graph` rather than a `GraphModule`: the module would want an attribute for every weight, and nothing here needs its generated code.

Weights carry only a specification. What a merged weight is made of is recorded beside it (`sources`), so that weights can be read, drawn
or refitted long after the passes ran.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import Graph, Node

from trtllm_engines.compiler.plan import Profile
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.families import define
from trtllm_engines.models.rope import cos_sin_table
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
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Weight -> checkpoint tensors it stacks along its first dimension; absent for a weight that is one checkpoint tensor."""

    kv_dtype: str = ""
    """dtype of the KV cache; "" is the activations'."""
    quantized: bool = False
    """Whether products become fp8 (`passes.quantize`), with one static scale a tensor or,"""
    by_row: bool = False
    """with one a row of the weights and one a row of the activations, found at run time."""
    recipes: dict[str, str] = field(default_factory=dict)
    """Weight -> how it is made of its sources when not by stacking: see `plan.WeightRecipe`."""

    def nodes(self, op: str) -> list[Node]:
        """Nodes of one dialect op, in order."""
        return [node for node in self.fx.nodes if op_name(node) == op]

    checkpoint_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape of every tensor of the checkpoint, as traced."""

    def parts(self, weight: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(checkpoint name, shape) of what `weight` stacks."""
        return tuple((name, self.checkpoint_shapes.get(name, (1,))) for name in self.sources.get(weight, (weight,)))


class _Tracer(fx.Tracer):
    """Traces through every layer, and remembers which layer made each node: its label, unique, and its name in the plan."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: Counter[str] = Counter()

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        return False

    def create_node(self, *args: Any, **kwargs: Any) -> Node:
        node: Node = super().create_node(*args, **kwargs)
        if node.op == "call_function":
            scope, op = self.scope.module_path, op_name(node)
            whole_layer = op in OP_SPECS and Trait.LAYER in OP_SPECS[op].traits
            label = scope if scope and whole_layer else f"{scope}.{op}".lstrip(".")
            self.labels[label] += 1
            node.meta["label"] = label if self.labels[label] == 1 else f"{label}_{self.labels[label]}"
        return node


def trace(config: ModelConfig, dtype: str, profile: Profile) -> ModelGraph:
    """The model as written: dense attention, one op a line of its definition."""
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
    result = ModelGraph(config, dtype, profile, graph, dict(DENSE_INPUTS), weights, constants)
    result.checkpoint_shapes = {name: tuple(int(d) for d in spec.shape) for name, spec in weights.items()}
    return result


def op_name(node: Any) -> str:
    """Dialect name of a node, or ""."""
    target = getattr(node, "target", None)
    if getattr(node, "op", "") == "call_function" and isinstance(target, torch._ops.OpOverload) and target.namespace == "trtllm":
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


def evaluate(graph: ModelGraph, tensors: Mapping[str, Tensor], inputs: Mapping[str, Tensor], outputs: Sequence[Node] = ()) -> list[Tensor]:
    """Runs the graph op by op through the dialect, at any stage of compilation: the definition against which passes are tested.

    `tensors` holds weights by name (constants are the graph's own). Returns the graph's output, then `outputs`.
    """
    values: dict[Node, Any] = {}
    wanted = set(outputs)
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
            if last_use[arg] is node and arg not in wanted:
                del values[arg]
    raise EngineError("graph has no output")


def stack_weight(graph: ModelGraph, name: str, parts: Sequence[Node]) -> str:
    """Registers weight `name` as `parts` (weights) stacked along their first dimension."""
    specs = [graph.weights[str(part.target)] for part in parts]
    rows = sum(int(spec.shape[0]) for spec in specs)
    graph.weights[name] = TensorSpec((rows, *specs[0].shape[1:]), specs[0].dtype)
    graph.sources[name] = tuple(source for part in parts for source in graph.sources.get(str(part.target), (str(part.target),)))
    return name


def scale_weight(graph: ModelGraph, name: str, sources: Sequence[str], recipe: str, rows: int = 0) -> Node:
    """Registers a scale (fp32, one element, or [rows, 1]) derived from `sources` and returns the node that reads it."""
    graph.weights[name] = TensorSpec((rows, 1) if rows else (1,), "fp32")
    graph.sources[name] = tuple(sources)
    graph.recipes[name] = recipe
    return graph.fx.get_attr(name)


def prune(graph: ModelGraph) -> None:
    """Drops nodes nobody uses and weights nobody names. Placeholders stay; ops that mutate stay."""
    for node in reversed(list(graph.fx.nodes)):
        mutates = bool(op_name(node)) and bool(OPS[op_name(node)].mutates)
        if node.op in ("call_function", "get_attr") and not node.users and not mutates:
            graph.fx.erase_node(node)
    named = {str(node.target) for node in graph.fx.nodes if node.op == "get_attr"}
    for table in (graph.weights, graph.sources, graph.constants, graph.recipes):
        for name in [n for n in table if n not in named]:
            del table[name]
