"""Cuts a model into the stages of a pipeline, at the residual stream between two layers, and keeps one of them.

The stream is received at a stage's beginning, and sent at its end, by ops of the plan like any other. Runs first, when every op is one
layer's and only the stream passes from a layer to the next; what a tensor-parallel group divides is then found in each stage as in a whole
model.

Stages are balanced by the bytes of weights that steps read, with every layer alike, and the embedding, of which a step reads rows, as
nothing. The head has in a decode step the work of so many layers as it has bytes of theirs (of a model of 8 billion parameters in fp8,
whose head stays wide, 4.8 of 32); among the tokens of prompts it has next to none, since few rows are sampled. It counts half. Counted
whole (18 layers and 14), two H200 had 1.78 times the tokens of one at 128/128: steps of 8,192 prompt tokens took 60 ms, and 104 on one.
"""

from __future__ import annotations

import math
import re

from torch.fx import Node

from trtllm_engines.compiler.graph import ModelGraph, call, op_name, prune
from trtllm_engines.compiler.plan import HIDDEN, PIPE, Stage
from trtllm_engines.errors import EngineError
from trtllm_kernels.dialect.dtypes import bits_of
from trtllm_kernels.dialect.group import pipe_spec
from trtllm_kernels.dialect.types import TensorSpec

HEAD_SHARE = 0.5
"""What the head counts of the layers that have its bytes."""
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def apply(graph: ModelGraph) -> None:
    if graph.layout.pp == 1:
        return
    config = graph.config
    head = HEAD_SHARE * head_layers(graph)
    graph.stage = stage = stages_of(config.num_layers, graph.layout.pp, head, config.name)[graph.stage.index]
    enters = _crossing(graph, stage.first_layer) if stage.first_layer > 0 else None
    with graph.fx.inserting_before(next(node for node in graph.fx.nodes if node.op != "placeholder")):
        pipe = graph.fx.placeholder(PIPE)
        graph.inputs[PIPE] = pipe_spec(graph.layout.pipe_way)
        if enters is not None:
            hidden = graph.fx.placeholder(HIDDEN)
            graph.inputs[HIDDEN] = TensorSpec(("T", config.hidden_size), graph.dtype)
            received = call(graph.fx, "receive", hidden, pipe, label="receive")
    if stage.end_layer < config.num_layers:
        output = next(node for node in graph.fx.nodes if node.op == "output")
        with graph.fx.inserting_before(output):
            output.args = (call(graph.fx, "send", _crossing(graph, stage.end_layer), pipe, label="send"),)
    if enters is not None:
        enters.replace_all_uses_with(received)
    prune(graph)


def stages_of(num_layers: int, pp: int, head: float, model: str) -> tuple[Stage, ...]:
    """Layers of each stage, such that the slowest takes least; `head` is the head's cost in layers. What does not divide goes to the first
    stages. Raises `EngineError` for fewer layers than stages."""
    if num_layers < pp:
        raise EngineError(f"{model}: num_hidden_layers is {num_layers}, fewer than the stages of --pp {pp}; choose a smaller --pp")
    last = num_layers
    if pp > 1:
        others = pp - 1
        last = min(range(1, num_layers - others + 1), key=lambda own: (max(math.ceil((num_layers - own) / others), own + head), own))
    rest = num_layers - last
    counts = [rest // (pp - 1) + (index < rest % (pp - 1)) for index in range(pp - 1)] + [last]
    ends = [sum(counts[: index + 1]) for index in range(pp)]
    return tuple(Stage(index, end - count, end) for index, (end, count) in enumerate(zip(ends, counts, strict=True)))


def head_layers(graph: ModelGraph) -> float:
    """How many layers have as many bytes of weights as the head, given the schemes of all products."""
    head = layers = 0.0
    for product in graph.nodes("linear"):
        weight = product.args[1]
        assert isinstance(weight, Node)
        codes = graph.scheme(weight).weights
        elements = math.prod(int(size) for size in graph.weights[str(weight.target)].shape)
        bits = elements * bits_of(codes.dtype if codes else graph.dtype)
        if layer_of(product) is None:
            head += bits
        else:
            layers += bits
    return head * graph.config.num_layers / layers


def layer_of(node: Node) -> int | None:
    """The layer an op is of: the first number in its label."""
    numbered = _LAYER.search(str(node.meta["label"])) if op_name(node) else None
    return None if numbered is None else int(numbered[1])


def _crossing(graph: ModelGraph, layer: int) -> Node:
    """The one value that ops from `layer` on have of those before."""
    before: list[Node] = []
    for node in graph.fx.nodes:
        if layer_of(node) == layer:
            break
        if op_name(node):
            before.append(node)
    inside = set(before)
    crossing = [node for node in before if any(user not in inside for user in node.users)]
    if len(crossing) != 1:
        names = ", ".join(str(node.meta["label"]) for node in crossing)
        raise EngineError(f"{graph.config.name}: {len(crossing)} values pass from layer {layer - 1} to {layer} ({names}); only one can")
    return crossing[0]
