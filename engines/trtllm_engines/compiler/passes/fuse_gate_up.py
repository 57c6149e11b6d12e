"""The product that feeds SwiGLU and SwiGLU itself become one op over a weight whose gate and up rows interleave.

The widest activation of the model, [tokens, 2 * intermediate], is then never written: the kernel holds both factors of an output in one
thread. Runs after quantization, which the fused op carries through.
"""

from __future__ import annotations

from trtllm_engines.compiler.graph import ModelGraph, call
from trtllm_engines.compiler.pattern import Bindings, OpPattern, Rule, Var, rewrite

INTERLEAVE = "interleave"


def _fuse(graph: ModelGraph, found: Bindings) -> None:
    product = found["product"]
    x, weight, _, x_scale, weight_scale, _ = product.args
    name = str(weight.target)
    if graph.by_row or len(weight.users) != 1 or len(graph.parts(name)) != 2:
        return
    graph.recipes[name] = INTERLEAVE
    label = str(found["root"].meta["label"])
    fused = call(graph.fx, "gate_up_silu", x, weight, x_scale, weight_scale, found["out_scale"], label=label)
    found["root"].replace_all_uses_with(fused)


_PRODUCT = OpPattern("linear", (Var("x"), Var("weight"), None), bind="product", users=1)
RULES = (Rule("gate_up + silu_mul", OpPattern("silu_mul_packed", (_PRODUCT, Var("out_scale"))), _fuse),)


def apply(graph: ModelGraph) -> None:
    rewrite(graph, RULES)
