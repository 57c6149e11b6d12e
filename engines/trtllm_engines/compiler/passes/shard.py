"""Splits a model over the ranks of a tensor-parallel group (Shoeybi et al. 2019, Megatron-LM), by the hints of its layers.

A GEMM hinted `outputs` keeps this rank's rows of its weight, so that its result is this rank's columns; one hinted `inputs` keeps the
columns that go with them, so that its result is one summand of the whole. That is reduced where it stops being linear: two reductions a
layer for Llama, and one for GPT-J, whose attention and feed-forward are added first. Heads are columns; where there are fewer KV heads
than ranks, neighbouring ranks have the same one. The lm_head is split by vocabulary.

Runs first, when each projection is still a GEMM of its own. All ranks of a group share the graph: which part is whose is known when weights
are loaded (`checkpoints.shard`).
"""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from trtllm_engines.compiler.graph import ModelGraph, call, op_name
from trtllm_engines.compiler.placement import Placement, PlacementError, place
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.scheme import Shard
from trtllm_kernels.dialect.group import group_spec
from trtllm_kernels.dialect.ops import OP_SPECS

GROUP = "group"
"""The step input that ops which communicate take."""


def apply(graph: ModelGraph) -> None:
    ranks = graph.layout.tp
    if ranks == 1:
        return
    _check(graph, ranks)
    graph.inputs[GROUP] = group_spec(ranks, graph.layout.group_way)
    first_op = next(node for node in graph.fx.nodes if node.op != "placeholder")
    with graph.fx.inserting_before(first_op):
        group = graph.fx.placeholder(GROUP)
    placed: dict[Node, Placement] = {}
    for node in list(graph.fx.nodes):
        if op_name(node) == "linear":
            _split(graph, node, ranks)
        if op_name(node) == "attention":
            _split_heads(node, ranks)
        try:
            placed[node] = place(graph, node, placed)
        except PlacementError:
            for argument in node.all_input_nodes:
                if placed[argument] == "partial":
                    _reduce(graph, argument, group, placed)
            placed[node] = place(graph, node, placed)


def _check(graph: ModelGraph, ranks: int) -> None:
    """Raises `EngineError` for what does not divide."""
    config = graph.config
    kv_heads = config.num_kv_heads
    counts = {"num_attention_heads": config.num_heads, "intermediate_size": config.intermediate_size, "vocab_size": config.vocab_size}
    for name, count in counts.items():
        if count % ranks:
            raise EngineError(f"{config.name}: {name} is {count}, which does not divide by --tp {ranks}; choose another --tp")
    if kv_heads % ranks and ranks % kv_heads:
        raise EngineError(
            f"{config.name}: num_key_value_heads is {kv_heads}, of which --tp {ranks} ranks cannot have equal parts; choose another --tp"
        )


def _split(graph: ModelGraph, node: Node, ranks: int) -> None:
    """Leaves a GEMM the part of its weight and bias that its layer's hint says."""
    split, (weight, bias) = node.meta.get("split"), node.args[1:3]
    assert isinstance(weight, Node)
    if split is None:
        return
    if split == "outputs" and len(weight.users) > 1:  # an embedding that is also the head: only the head is split
        weight = _own_weight(graph, node, weight)
    shape = graph.checkpoint_shapes[graph.parts(str(weight.target))[0][0]]
    if split == "inputs":
        _take_part(graph, weight, Shard(1, ranks))
        if isinstance(bias, Node):
            _take_part(graph, bias, Shard(None))
        return
    copies = max(1, ranks // graph.config.num_kv_heads) if shape[0] == graph.config.kv_size and _is_key_or_value(node) else 1
    for parameter in (weight, bias):
        if isinstance(parameter, Node):
            _take_part(graph, parameter, Shard(0, ranks // copies, copies))


def _is_key_or_value(node: Node) -> bool:
    """Whether the projection's result reaches attention as keys or values: they may be fewer than queries."""
    reached, seen = [node], {node}
    while reached:
        value = reached.pop()
        for user in value.users:
            if op_name(user) == "attention":
                return value in user.args[1:3]
            if op_name(user) in ("rope", "rms_norm") and user not in seen:
                seen.add(user)
                reached.append(user)
    return False


def _take_part(graph: ModelGraph, parameter: Node, shard: Shard) -> None:
    name = str(parameter.target)
    recipe, spec = graph.recipe(name), graph.weights[name]
    graph.recipes[name] = replace(recipe, shards=(shard,))
    graph.weights[name] = replace(spec, shape=shard.local_shape(tuple(int(size) for size in spec.shape)))


def _own_weight(graph: ModelGraph, node: Node, shared: Node) -> Node:
    """A weight of the GEMM's own, made of the same checkpoint tensor as `shared`."""
    source, name = str(shared.target), f"{node.meta['label']}.weight"
    graph.weights[name], graph.recipes[name] = graph.weights[source], graph.recipe(source)
    if source in graph.schemes:
        graph.schemes[name] = graph.schemes[source]
    with graph.fx.inserting_before(node):
        own = graph.fx.get_attr(name)
    node.update_arg(1, own)
    return own


def _split_heads(node: Node, ranks: int) -> None:
    names = [argument.name for argument in OP_SPECS["attention"].arguments]
    for name in ("num_heads", "num_kv_heads"):
        at = names.index(name)
        heads = node.args[at]
        assert isinstance(heads, int)
        node.update_arg(at, max(1, heads // ranks))


def _reduce(graph: ModelGraph, value: Node, group: Node, placed: dict[Node, Placement]) -> None:
    """Every reader of `value` reads its sum over the ranks instead."""
    with graph.fx.inserting_after(value):
        total = call(graph.fx, "all_reduce", value, group, label=f"{value.meta['label']}.all_reduce")
    placed[total] = "full"
    for user in list(value.users):
        if user is not total:
            user.replace_input_with(value, total)
