"""The residual is added by the product before it: cuBLASLt adds a matrix to what it stores, so the sum is never a pass of its own.

What was product, then addition and norm, becomes a product with a residual and a norm of its result, which also carries the residual on.
The norm's kernel then reads one tensor and writes one in place of two and two. Where attention and feed-forward join the residual together
(GPT-J), the two products add in turn, the second to the first's result. Each sum is rounded once, with its product, where the
additions rounded twice; so this runs after the passes that change no bit. A product whose scheme does not allow it stays as it is.

The sum keeps the name it had; the product alone is not a value any more.
"""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from trtllm_engines.compiler.graph import ModelGraph, call, item, op_name, prune
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.references import OPS

_RESIDUAL = OP_SPECS["linear"].tensors.index("residual")
_NORMS = {spec.of_sum: name for name, spec in OP_SPECS.items() if spec.of_sum}
"""What each norm of a sum is without the addition."""


def apply(graph: ModelGraph) -> None:
    for node in list(graph.fx.nodes):
        if op_name(node) in _NORMS:
            _fuse(graph, node)
    prune(graph)


def _is_product_for(graph: ModelGraph, summand: fx.Node, norm: fx.Node) -> bool:
    """Whether it is a product that `norm` alone reads, and that may add the residual."""
    return op_name(summand) == "linear" and list(summand.users) == [norm] and graph.allows(summand, "residual")


def _fuse(graph: ModelGraph, node: fx.Node) -> None:
    op = op_name(node)
    named: dict[str, Any] = dict(zip((a.name for a in OPS[op].overload._schema.arguments), node.args, strict=True))
    summands: list[fx.Node] = [named.pop("x"), *([addend] if (addend := named.pop("addend")) is not None else [])]
    total: fx.Node = named.pop("residual")
    taken = [one for one in summands if _is_product_for(graph, one, node) and summands.count(one) == 1 and total < one]
    if not taken:
        return
    for product in sorted(taken):
        arguments = (*product.args[:_RESIDUAL], total, *product.args[_RESIDUAL + 1 :])
        with graph.fx.inserting_before(product):
            total = call(graph.fx, "linear", *arguments, label=str(product.meta["label"]))
        total.meta["value"] = f"{product.meta['label']}.residual"
    label, out_scale = str(node.meta["label"]), named.pop("out_scale")
    left = [one for one in summands if one not in taken]
    with graph.fx.inserting_before(node):
        if left:
            norm = call(graph.fx, op, left[0], total, *named.values(), None, out_scale, label=label)
            normed, carried = item(graph.fx, norm, 0, label), item(graph.fx, norm, 1, f"{label}.1")
        else:
            normed, carried = call(graph.fx, _NORMS[op], total, *named.values(), out_scale, label=label), total
    for user in [user for user in node.users if user.target is operator.getitem]:
        if user.args[1] == 1:
            carried.meta["value" if carried is total else "label"] = str(user.meta["label"])
        user.replace_all_uses_with(normed if user.args[1] == 0 else carried)
