"""Three projections of one input become one product: at small batch the weights are read by one well-shaped kernel instead of three.

The norms of Qwen3 stay where they are, on the split results; paging the attention takes them in later. It takes one product only, so
projections that are quantized differently are refused here, where their names are known.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from trtllm_engines.compiler.graph import ModelGraph, call, item, stack_weight
from trtllm_engines.compiler.pattern import Bindings, OpPattern, Rule, Var, rewrite
from trtllm_engines.errors import EngineError


def _projection(name: str) -> OpPattern:
    return OpPattern("linear", (Var("x"), Var(f"{name}_weight"), Var(f"{name}_bias")), bind=name, users=1)


def _rotated(name: str, normed: bool) -> OpPattern:
    inner: Any = _projection(name)
    if normed:
        inner = OpPattern("rms_norm", (inner,), users=1)
    return OpPattern("rope", (inner,))


def _merge(graph: ModelGraph, matched: Bindings) -> None:
    projections: list[fx.Node] = [matched[name] for name in "qkv"]
    weights: list[fx.Node] = [matched[f"{name}_weight"] for name in "qkv"]
    biases = [matched[f"{name}_bias"] for name in "qkv"]
    schemes = [graph.scheme(weight) for weight in weights]
    if len(set(schemes)) > 1:
        names = ", ".join(
            f"{str(weight.target).removesuffix('.weight')} ({scheme.name})" for weight, scheme in zip(weights, schemes, strict=True)
        )
        raise EngineError(
            f"{graph.config.name}: {names} are quantized differently, and attention needs them as one product; "
            f"give them one precision, such as --precision bf16"
        )
    first = min(projections, key=list(graph.fx.nodes).index)
    module = str(weights[0].target).rsplit(".", 2)[0]
    with graph.fx.inserting_before(first):
        weight = graph.fx.get_attr(stack_weight(graph, f"{module}.qkv_proj.weight", weights))
        bias = None if biases[0] is None else graph.fx.get_attr(stack_weight(graph, f"{module}.qkv_proj.bias", biases))
        merged = call(graph.fx, "linear", matched["x"], weight, bias, label=f"{module}.qkv_proj")
        sizes = [int(graph.weights[str(w.target)].shape[0]) for w in weights]
        split = call(graph.fx, "split", merged, sizes, label=f"{module}.qkv_split")
        for index, projection in enumerate(projections):
            projection.replace_all_uses_with(item(graph.fx, split, index, str(projection.meta["label"])))


RULES = tuple(
    Rule(
        f"merge qkv{' with qk norm' if normed else ''}",
        OpPattern("attention", (_rotated("q", normed), _rotated("k", normed), _projection("v"))),
        _merge,
    )
    for normed in (False, True)
)


def apply(graph: ModelGraph) -> None:
    rewrite(graph, RULES)
