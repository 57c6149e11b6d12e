"""A product and the GELU that alone reads it become one op, so that the wide activation is written once. Runs after quantization."""

from __future__ import annotations

from trtllm_engines.compiler.graph import ModelGraph, call
from trtllm_engines.compiler.pattern import Bindings, OpPattern, Rule, Var, rewrite


def _fuse(graph: ModelGraph, found: Bindings) -> None:
    x, weight, bias, x_scale, weight_scale, _ = found["product"].args
    label = str(found["root"].meta["label"])
    fused = call(graph.fx, "linear_gelu", x, weight, bias, x_scale, weight_scale, found["out_scale"], label=label)
    found["root"].replace_all_uses_with(fused)


RULES = (
    Rule(
        "linear + gelu",
        OpPattern("gelu", (OpPattern("linear", (Var("x"), Var("weight")), bind="product", users=1), Var("out_scale"))),
        _fuse,
    ),
)


def apply(graph: ModelGraph) -> None:
    if not graph.by_row:
        rewrite(graph, RULES)
