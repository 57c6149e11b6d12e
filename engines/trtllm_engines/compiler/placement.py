"""Where the values of a tensor-parallel graph are: what one rank holds of each.

A value is `full` (every rank has all of it), `sharded` (a rank has its columns, or heads), or `partial` (a rank has one summand of it). The
rules are those of the ops' traits. `passes.shard` reduces what is partial where it stops being linear; the verifier follows the same rules
between all passes, and so refuses a program that adds a full value once a rank, in which every shape would be right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch.fx import Node

from trtllm_engines.compiler.graph import ModelGraph, op_name
from trtllm_kernels.dialect.ops import OP_SPECS, Trait

Placement = Literal["full", "sharded", "partial"]


class PlacementError(ValueError):
    """An op's arguments are where it cannot use them."""


def split_of(graph: ModelGraph, weight: Node) -> Literal["outputs", "inputs"] | None:
    """Which dimension of a GEMM's weight ranks have parts of."""
    if weight.op != "get_attr":
        return None
    dims = {shard.dim for shard in graph.recipe(str(weight.target)).shards if shard is not None}
    return "outputs" if 0 in dims else "inputs" if 1 in dims else None


def place(graph: ModelGraph, node: Node, placed: Mapping[Node, Placement]) -> Placement:
    """Where the result of `node` is. Raises `PlacementError`."""
    op = op_name(node)
    if not op:
        source = node.args[0] if node.op == "call_function" else None
        return placed[source] if isinstance(source, Node) else "full"
    spec = OP_SPECS[op]
    arguments = dict(zip((argument.name for argument in spec.arguments), node.args, strict=True))
    tensors = {name: value for name in spec.tensors if isinstance(value := arguments[name], Node)}
    where: dict[str, Placement] = {name: placed.get(value, "full") for name, value in tensors.items()}
    if Trait.REDUCES in spec.traits:
        _expect(where, {"x": "partial"})
        return "full"
    if spec.kind == "gemm":
        split = split_of(graph, tensors["weight"])
        result: Placement = {"outputs": "sharded", "inputs": "partial", None: "full"}[split]  # type: ignore[assignment]
        unscaled = {name: placement for name, placement in where.items() if name not in spec.scales}  # a row's scale is that of its part
        _expect(unscaled, {"x": "sharded" if split == "inputs" else "full", "residual": result})
        return result
    activations = set(where.values())
    if Trait.ADDITIVE in spec.traits and len(activations) == 1:
        return activations.pop()
    if "partial" in activations:
        name = next(name for name, placement in where.items() if placement == "partial")
        raise PlacementError(f"its argument {name} is one rank's summand, which must be reduced first")
    if "sharded" not in activations:
        return "full"
    if Trait.COLUMNWISE not in spec.traits or (Trait.NORM in spec.traits and _whole_rows(graph, tensors)):
        name = next(name for name, placement in where.items() if placement == "sharded")
        raise PlacementError(f"its argument {name} is one rank's columns, and it needs all of them")
    return "sharded"


def _whole_rows(graph: ModelGraph, tensors: Mapping[str, Node]) -> bool:
    """Whether a norm is over whole rows and not over heads."""
    weight = graph.weights[str(tensors["weight"].target)]
    return int(weight.shape[0]) > graph.config.head_dim


def _expect(where: Mapping[str, Placement], expected: Mapping[str, Placement]) -> None:
    for name, placement in where.items():
        if placement != expected.get(name, "full"):
            raise PlacementError(f"its argument {name} is {placement} and must be {expected.get(name, 'full')}")
