"""Moves each `quantize` into the op that makes its input, which then rounds once, straight to fp8, and writes half the bytes.

Only where nothing else reads the wide result (GPT-J's norm feeds two products: they share one quantization, so one reader is left), and
where the scheme of the products allows it.
"""

from __future__ import annotations

from torch import fx

from trtllm_engines.compiler.graph import ModelGraph, op_name, prune
from trtllm_kernels.references import OPS


def apply(graph: ModelGraph) -> None:
    for node in graph.nodes("quantize"):
        if not all(graph.allows(product, "quantize") for product in node.users):
            continue
        x, scale = node.args
        assert isinstance(x, fx.Node)
        is_item = x.op == "call_function" and not op_name(x)
        producer = x.args[0] if is_item else x
        if not isinstance(producer, fx.Node) or len(x.users) != 1 or (is_item and x.args[1] != 0):
            continue
        definition = OPS.get(op_name(producer))
        if definition is None or "out_scale" not in definition.tensors:
            continue
        at = [argument.name for argument in definition.spec.arguments].index("out_scale")
        if producer.args[at] is not None:
            continue
        with graph.fx.inserting_before(producer):
            moved = graph.fx.get_attr(str(scale.target)) if isinstance(scale, fx.Node) else scale
        producer.update_arg(at, moved)
        node.replace_all_uses_with(x)
    prune(graph)
