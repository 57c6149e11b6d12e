"""The product that feeds SwiGLU and SwiGLU itself become one op over a weight whose gate and up rows interleave.

The widest activation of the model, [tokens, 2 * intermediate], is then never written: the kernel holds both factors of an output in one
thread. Runs after quantization, which the fused op carries through.
"""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from trtllm_engines.compiler.graph import ModelGraph, call
from trtllm_engines.compiler.pattern import Bindings, OpPattern, Rule, Var, rewrite


def _fuse(graph: ModelGraph, matched: Bindings) -> None:
    product = matched["product"]
    x, weight, _, x_scale, weight_scale, _, group_scale, weight_zero = product.args
    if not graph.allows(product, "gate_up_silu") or len(weight.users) != 1 or len(graph.parts(str(weight.target))) != 2:
        return
    for parameter in (weight, weight_scale, group_scale, weight_zero):
        if parameter is not None:
            _interleave(graph, parameter)
    label = str(matched["root"].meta["label"])
    arguments = (x, weight, x_scale, weight_scale, matched["out_scale"], group_scale, weight_zero)
    fused = call(graph.fx, "gate_up_silu", *arguments, label=label)
    matched["root"].replace_all_uses_with(fused)


def _interleave(graph: ModelGraph, weight: fx.Node) -> None:
    name = str(weight.target)
    graph.recipes[name] = replace(graph.recipe(name), interleave=True)


_PRODUCT = OpPattern("linear", (Var("x"), Var("weight"), None), bind="product", users=1)
RULES = (Rule("gate_up + silu_mul", OpPattern("silu_mul_packed", (_PRODUCT, Var("out_scale"))), _fuse),)


def apply(graph: ModelGraph) -> None:
    rewrite(graph, RULES)
