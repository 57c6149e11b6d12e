"""Rows whose logits nobody asks for are dropped where the last layer is done with them, and not before the head.

Of a prompt only the last token is sampled. Once the last layer's keys and values are in the cache and its attention is computed, the other
tokens are of no use: its output projection, its feed-forward and the last norm work on the rows that are sampled. A step of prompts of a
model of 32 layers has 3% fewer FLOP; the results are the same.

`gather_rows` moves from a value to the arguments of the op that makes it, while that op works row by row and nothing else reads its
results. Not in a tensor-parallel group: there the residual of a large step may be one rank's own rows (`fuse_all_reduce`).
"""

from __future__ import annotations

import operator

from torch.fx import Node

from trtllm_engines.compiler.graph import ModelGraph, call, op_name, prune
from trtllm_kernels.dialect.ops import OP_SPECS, Trait


def apply(graph: ModelGraph) -> None:
    if graph.layout.tp > 1:
        return
    for gather in graph.nodes("gather_rows"):
        _move(graph, gather)
    prune(graph)


def _move(graph: ModelGraph, gather: Node) -> None:
    source, rows = gather.args
    moved = _only_for(graph, gather)
    if not moved:
        return
    gathered: dict[Node, Node] = {}
    for node in moved:
        for value in node.all_input_nodes:
            if value in moved or value in gathered or value.meta["spec"].shape[:1] != ("T",):
                continue
            label = f"{node.meta['label']}.gather_rows" + f".{len(gathered)}" * bool(gathered)
            with graph.fx.inserting_before(moved[0] if value < moved[0] else node):
                gathered[value] = call(graph.fx, "gather_rows", value, rows, label=label)
    for value, few in gathered.items():
        for node in moved:
            node.replace_input_with(value, few)
    assert isinstance(source, Node)
    gather.replace_all_uses_with(source)


def _only_for(graph: ModelGraph, gather: Node) -> list[Node]:
    """In order, the ops that work row by row, of whose results only rows that `gather` takes are read; and the items of their results."""
    moved: dict[Node, None] = {}
    for node in reversed(list(graph.fx.nodes)):
        op = op_name(node)
        if not op or Trait.ROWWISE not in OP_SPECS[op].traits:
            continue
        items = [user for user in node.users if user.target is operator.getitem]
        readers = [reader for one in items for reader in one.users] if items else list(node.users)
        if readers and all(reader is gather or reader in moved for reader in readers):
            moved |= dict.fromkeys([node, *items])
    return sorted(moved)
