"""Moves each `quantize_rows` into the op that makes its input, where that has such a version (`OpSpec.by_row`): a norm or an activation
whose program has the whole row finds the row's scale itself, and the wide result is neither written nor read.

Only where nothing else reads the wide result. The fp32 result is rounded once, straight to codes. Runs last but for sampling: what the
residual's addition and the products' fusions leave is then known, and those passes know the plain ops only.
"""

from __future__ import annotations

import operator

from torch import fx

from trtllm_engines.compiler.graph import ModelGraph, call, item, op_name, prune
from trtllm_kernels.dialect.ops import OP_SPECS


def apply(graph: ModelGraph) -> None:
    for node in graph.nodes("quantize_rows"):
        x, dtype = node.args
        assert isinstance(x, fx.Node)
        is_item = x.op == "call_function" and not op_name(x)
        producer = x.args[0] if is_item else x
        if isinstance(producer, fx.Node) and len(x.users) == 1 and (not is_item or x.args[1] == 0):
            _fuse(graph, node, producer, str(dtype))
    prune(graph)


def _fuse(graph: ModelGraph, node: fx.Node, producer: fx.Node, dtype: str) -> None:
    spec = OP_SPECS.get(op_name(producer))
    if spec is None or not spec.by_row:
        return
    named = dict(zip((argument.name for argument in spec.arguments), producer.args, strict=True)) | {"dtype": dtype}
    if named.pop("out_scale") is not None:
        return
    arguments = (named[argument.name] for argument in OP_SPECS[spec.by_row].arguments)
    with graph.fx.inserting_before(producer):
        fused = call(graph.fx, spec.by_row, *arguments, label=str(producer.meta["label"]))
        results = [(user, int(user.args[1])) for user in node.users]  # type: ignore[arg-type]
        results += [(user, int(user.args[1]) + 1) for user in producer.users if user.target is operator.getitem and user.args[1] != 0]  # type: ignore[arg-type]
        for user, index in results:
            result = item(graph.fx, fused, index, str(user.meta["label"]))
            result.meta.update({key: value for key, value in user.meta.items() if key == "value"})
            user.replace_all_uses_with(result)
