"""A residual addition and the norm that reads it become one op with two results: the norm, and the sum that carries the residual on.

This links the whole residual chain across layers: each layer's last addition meets the next layer's first norm. Where attention and
feed-forward join the residual together (GPT-J), the addition of the two is taken in as well. The dialect rounds each sum where the
separate additions do, so fusing changes no bit.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from trtllm_engines.compiler.graph import ModelGraph, call, item, op_name
from trtllm_engines.compiler.pattern import Bindings, OpPattern, Rule, Var, rewrite
from trtllm_kernels.dialect.ops import OP_SPECS


def _fuse(graph: ModelGraph, matched: Bindings) -> None:
    norm: fx.Node = matched["root"]
    total: fx.Node = matched["sum"]
    parameters: tuple[Any, ...] = (*norm.args[1:-1], matched.get("addend"), norm.args[-1])
    label = str(norm.meta["label"])
    with graph.fx.inserting_before(_first_user(graph, total)):
        moved = [graph.fx.get_attr(str(p.target)) if isinstance(p, fx.Node) and p.op == "get_attr" else p for p in parameters]
        fused = call(graph.fx, OP_SPECS[op_name(norm)].of_sum, matched["x"], matched["residual"], *moved, label=label)
        normed = item(graph.fx, fused, 0, label)
        carried = item(graph.fx, fused, 1, str(total.meta["label"]))
    norm.replace_all_uses_with(normed)
    total.replace_all_uses_with(carried)


def _first_user(graph: ModelGraph, node: fx.Node) -> fx.Node:
    """The norm may come after other readers of the sum; the fused op must precede them all."""
    first: fx.Node = next(n for n in graph.fx.nodes if n in node.users)
    return first


_ADDITIONS = {
    "add + add": OpPattern("add", (OpPattern("add", (Var("x"), Var("addend")), users=1), Var("residual")), bind="sum"),
    "add": OpPattern("add", (Var("x"), Var("residual")), bind="sum"),
}
RULES = tuple(
    Rule(f"{name} + {norm}", OpPattern(norm, (addition,)), _fuse)
    for norm, spec in OP_SPECS.items()
    if spec.of_sum
    for name, addition in _ADDITIONS.items()
)


def apply(graph: ModelGraph) -> None:
    rewrite(graph, RULES)
