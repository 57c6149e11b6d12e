"""A reduction over ranks takes in the residual addition and RMS norm that follow it: one kernel, and what is normalised is sent in fp8.

Runs after quantization has been pushed into the norm.
"""

from __future__ import annotations

from trtllm_engines.compiler.graph import ModelGraph, call
from trtllm_engines.compiler.pattern import Bindings, OpPattern, Rule, Var, rewrite


def _fuse(graph: ModelGraph, matched: Bindings) -> None:
    norm = matched["root"]
    label = str(norm.meta["label"])
    arguments = (matched["x"], matched["residual"], matched["weight"], matched["group"], matched["eps"], matched["out_scale"])
    norm.replace_all_uses_with(call(graph.fx, "all_reduce_add_rms_norm", *arguments, label=label))


_REDUCED = OpPattern("all_reduce", (Var("x"), Var("group")), users=1)
RULES = (
    Rule(
        "all_reduce + add_rms_norm",
        OpPattern("add_rms_norm", (_REDUCED, Var("residual"), Var("weight"), Var("eps"), None, Var("out_scale"))),
        _fuse,
    ),
)


def apply(graph: ModelGraph) -> None:
    rewrite(graph, RULES)
