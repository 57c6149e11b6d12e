"""The two projections that feed SwiGLU become one product, gate rows first, unless they are quantized differently."""

from __future__ import annotations

from trtllm_engines.compiler.graph import ModelGraph, call, item, stack_weight
from trtllm_engines.compiler.pattern import Bindings, OpPattern, Rule, Var, rewrite


def _merge(graph: ModelGraph, matched: Bindings) -> None:
    names = ("gate", "up")
    weights = [matched[f"{name}_weight"] for name in names]
    biases = [matched[f"{name}_bias"] for name in names]
    if len({graph.scheme(weight) for weight in weights}) > 1:
        return
    module = str(weights[0].target).rsplit(".", 2)[0]
    weight = graph.fx.get_attr(stack_weight(graph, f"{module}.gate_up_proj.weight", weights))
    bias = None if biases[0] is None else graph.fx.get_attr(stack_weight(graph, f"{module}.gate_up_proj.bias", biases))
    merged = call(graph.fx, "linear", matched["x"], weight, bias, label=f"{module}.gate_up_proj")
    sizes = [int(graph.weights[str(w.target)].shape[0]) for w in weights]
    split = call(graph.fx, "split", merged, sizes, label=f"{module}.gate_up_split")
    for index, name in enumerate(names):
        matched[name].replace_all_uses_with(item(graph.fx, split, index, str(matched[name].meta["label"])))


def _projection(name: str) -> OpPattern:
    return OpPattern("linear", (Var("x"), Var(f"{name}_weight"), Var(f"{name}_bias")), bind=name, users=1)


RULES = (Rule("merge gate and up", OpPattern("silu_mul", (_projection("gate"), _projection("up"))), _merge),)


def apply(graph: ModelGraph) -> None:
    rewrite(graph, RULES)
