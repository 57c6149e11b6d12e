"""A product and the GELU that alone reads it become one op, so that the wide activation is written once. Runs after quantization."""

from __future__ import annotations

from trtllm_engines.compiler.graph import ModelGraph, call
from trtllm_engines.compiler.pattern import Bindings, OpPattern, Rule, Var, rewrite


def _fuse(graph: ModelGraph, matched: Bindings) -> None:
    if not graph.allows(matched["product"], "linear_gelu"):
        return
    x, weight, bias, x_scale, weight_scale, _, group_scale, weight_zero = matched["product"].args
    label = str(matched["root"].meta["label"])
    arguments = (x, weight, bias, x_scale, weight_scale, matched["out_scale"], group_scale, weight_zero)
    fused = call(graph.fx, "linear_gelu", *arguments, label=label)
    matched["root"].replace_all_uses_with(fused)


RULES = (
    Rule(
        "linear + gelu",
        OpPattern("gelu", (OpPattern("linear", (Var("x"), Var("weight")), bind="product", users=1), Var("out_scale"))),
        _fuse,
    ),
)


def apply(graph: ModelGraph) -> None:
    rewrite(graph, RULES)
