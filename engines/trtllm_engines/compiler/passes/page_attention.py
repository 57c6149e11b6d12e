"""Dense attention over whole sequences becomes attention over the paged cache, so that a step may hold any part of any sequence.

Rotation of q and k, QK norm and the write of keys and values fuse into `rope_kv_write`; `prepare_step` derives token ids, positions and
cache slots from the step inputs on the device (a decode token is read from the slot's last sample, so the host can schedule a step
ahead). The graph's inputs change from the dense ones to `plan.STEP_INPUTS`.
"""

from __future__ import annotations

from typing import Any

from torch import fx

from trtllm_engines.compiler.graph import ModelGraph, call, item
from trtllm_engines.compiler.pattern import Bindings, Item, OpPattern, Rule, Var, rewrite
from trtllm_engines.compiler.plan import step_input_specs
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.scheme import KvScheme

PREPARED = ("token_ids", "positions", "kv_slots")


def _rotated(name: str, index: int, normed: bool) -> OpPattern:
    split: Any = Item(OpPattern("split", (Var("qkv"),)), index)
    if normed:
        split = OpPattern("rms_norm", (split, Var(f"{name}_norm"), Var("eps")))
    return OpPattern("rope", (split, Var("positions"), Var("table"), Var("head_dim"), Var("interleaved")))


def _page(graph: ModelGraph, matched: Bindings) -> None:
    attention: fx.Node = matched["root"]
    _, _, _, query_start, num_heads, num_kv_heads, scale = attention.args
    step = {node.name: node for node in graph.fx.nodes if node.op == "placeholder"}
    prepared = {str(node.meta["label"]): node for node in graph.fx.nodes if node.meta.get("label") in PREPARED}
    layer = len(graph.nodes("rope_kv_write"))
    label = str(attention.meta["label"]).rsplit(".", 1)[0]
    q = call(
        graph.fx,
        "rope_kv_write",
        matched["qkv"],
        matched["positions"],
        matched["table"],
        step["kv_cache"],
        prepared["kv_slots"],
        matched.get("q_norm"),
        matched.get("k_norm"),
        layer,
        num_heads,
        num_kv_heads,
        matched["head_dim"],
        matched["interleaved"],
        matched.get("eps", 0.0),
        label=f"{label}.rope_kv_write",
    )
    paged = call(
        graph.fx,
        "paged_attention",
        q,
        step["kv_cache"],
        step["block_table"],
        step["seq_slots"],
        query_start,
        step["kv_lens"],
        layer,
        num_heads,
        num_kv_heads,
        scale,
        label=f"{label}.paged_attention",
    )
    attention.replace_all_uses_with(paged)


RULES = tuple(
    Rule(
        f"page attention{' with qk norm' if normed else ''}",
        OpPattern("attention", (_rotated("q", 0, normed), _rotated("k", 1, normed), Item(OpPattern("split", (Var("qkv"),)), 2))),
        _page,
    )
    for normed in (False, True)
)


def _insert_prepare_step(graph: ModelGraph) -> None:
    dense = {node.name: node for node in graph.fx.nodes if node.op == "placeholder"}
    first_op = next(node for node in graph.fx.nodes if node.op != "placeholder")
    inputs = dict(step_input_specs(graph.config, graph.profile, KvScheme(graph.dtype), graph.layout, graph.stage, graph.dtype))
    step = {name: dense[name] for name in inputs if name in dense}
    with graph.fx.inserting_before(first_op):
        for name in inputs:
            if name not in step:
                step[name] = graph.fx.placeholder(name)
        arguments = [step[n] for n in ("context_tokens", "seq_slots", "query_start", "kv_lens", "last_tokens", "block_table")]
        prepare = call(graph.fx, "prepare_step", *arguments, graph.profile.page_size, label="prepare_step")
        for index, name in enumerate(PREPARED):
            if name in dense and not dense[name].users:  # the token ids, in a pipeline stage after the first
                graph.fx.erase_node(dense[name])
                continue
            node = item(graph.fx, prepare, index, name)
            if name in dense:
                dense[name].replace_all_uses_with(node)
                graph.fx.erase_node(dense[name])
    graph.inputs = inputs


def apply(graph: ModelGraph) -> None:
    _insert_prepare_step(graph)
    rewrite(graph, RULES)
    if left := graph.nodes("attention"):
        raise EngineError(f"{graph.config.name}: attention {left[0].meta.get('label')} has a shape that paging does not know")
