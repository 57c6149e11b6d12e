"""A reduction over ranks takes in the residual addition and RMS norm that follow it: one kernel, and what is normalised is sent in fp8.

Where no norm follows, as at the end of a pipeline's stage, it takes in the addition: the residual that it adds may be one rank's own rows
(of large steps, on GPUs), and only the reduction makes whole rows of it. Runs after quantization has been pushed into the norm.
"""

from __future__ import annotations

from trtllm_engines.compiler.graph import ModelGraph, call
from trtllm_engines.compiler.pattern import Bindings, OpPattern, Rule, Var, rewrite


def _fuse(graph: ModelGraph, matched: Bindings) -> None:
    norm = matched["root"]
    label = str(norm.meta["label"])
    arguments = (matched["x"], matched["residual"], matched["weight"], matched["group"], matched["eps"], matched["out_scale"])
    norm.replace_all_uses_with(call(graph.fx, "all_reduce_add_rms_norm", *arguments, label=label))


def _add(graph: ModelGraph, matched: Bindings) -> None:
    total = matched["root"]
    arguments = (matched["x"], matched["residual"], matched["group"])
    total.replace_all_uses_with(call(graph.fx, "all_reduce_add", *arguments, label=str(total.meta["label"])))


_REDUCED = OpPattern("all_reduce", (Var("x"), Var("group")), users=1)
RULES = (
    Rule(
        "all_reduce + add_rms_norm",
        OpPattern("add_rms_norm", (_REDUCED, Var("residual"), Var("weight"), Var("eps"), None, Var("out_scale"))),
        _fuse,
    ),
    Rule("all_reduce + add", OpPattern("add", (_REDUCED, Var("residual"))), _add),
    Rule("add + all_reduce", OpPattern("add", (Var("residual"), _REDUCED)), _add),
)


def apply(graph: ModelGraph) -> None:
    rewrite(graph, RULES)
