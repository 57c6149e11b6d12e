"""The product that gives logits also chooses each row's token, so that logits are not read again to be sampled. Runs last.

What is chosen so is greedy or at a temperature; steps that ask for more (filters, penalties, log-probabilities) sample once more from the
logits, which are written in any case (`runtime.sampler`).
"""

from __future__ import annotations

from trtllm_engines.compiler.graph import ModelGraph, call, item, op_name, prune
from trtllm_engines.compiler.passes.shard import GROUP
from trtllm_engines.compiler.placement import split_of
from trtllm_engines.errors import EngineError

STEP = ("sampling_words", "sample_slots", "ring_slot", "argmax_scratch", "last_tokens", "token_ring")


def apply(graph: ModelGraph) -> None:
    if graph.stage.index < graph.layout.pp - 1:
        return
    output = next(node for node in graph.fx.nodes if node.op == "output")
    head = output.args[0]
    if op_name(head) != "linear" or any(argument is not None for argument in head.args[3:]):
        raise EngineError(f"{graph.config.name}: its logits come from {head}, and only those of a plain product can be sampled")
    step = {node.name: node for node in graph.fx.nodes if node.op == "placeholder"}
    label = str(head.meta["label"])
    with graph.fx.inserting_before(output):
        split = split_of(graph, head.args[1]) is not None
        op, inputs = ("sharded_linear_sample", (*STEP, GROUP)) if split else ("linear_sample", STEP)
        sampled = call(graph.fx, op, *head.args[:3], *(step[name] for name in inputs), label=label)
        head.replace_all_uses_with(item(graph.fx, sampled, 0, label))
    prune(graph)
