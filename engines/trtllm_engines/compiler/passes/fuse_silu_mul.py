"""silu(gate) * up of one split product reads the packed product directly: the split, a copy of the widest activation, goes away."""

from __future__ import annotations

from trtllm_engines.compiler.graph import ModelGraph, call
from trtllm_engines.compiler.pattern import Bindings, Item, OpPattern, Rule, Var, rewrite


def _fuse(graph: ModelGraph, matched: Bindings) -> None:
    packed = call(graph.fx, "silu_mul_packed", matched["packed"], label=str(matched["root"].meta["label"]))
    matched["root"].replace_all_uses_with(packed)


_SPLIT = OpPattern("split", (Var("packed"), Var("sizes")), bind="split", users=2)
RULES = (Rule("silu_mul of a split", OpPattern("silu_mul", (Item(_SPLIT, 0), Item(_SPLIT, 1))), _fuse),)


def apply(graph: ModelGraph) -> None:
    rewrite(graph, RULES)
