"""The residual taken into the product before it: which graphs, under which names, in whose memory, and to the bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compiler_models import LLAMA, MODELS, PROFILE, checkpoint, paged_inputs, stacked
from torch import fx

from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.graph import ModelGraph, assign_schemes, call, evaluate, op_name, trace
from trtllm_engines.compiler.passes import PASSES, fuse_residual, run_passes
from trtllm_engines.compiler.plan import Plan
from trtllm_engines.compiler.verify import VerifyError, verify
from trtllm_engines.quantization import named_plan
from trtllm_kernels.references import OPS

BEFORE = {name: apply for name, apply in PASSES.items() if name != "fuse_residual"}
RESIDUAL = OPS["linear"].tensors.index("residual")


def unfused(model: str, dtype: str = "fp32", precision: str = "") -> ModelGraph:
    graph = trace(MODELS[model], dtype, PROFILE)
    assign_schemes(graph, named_plan(precision or dtype, dtype))
    run_passes(graph, BEFORE)
    return graph


def adding(graph: ModelGraph) -> list[fx.Node]:
    return [node for node in graph.nodes("linear") if node.args[RESIDUAL] is not None]


def apply(graph: ModelGraph) -> None:
    fuse_residual.apply(graph)
    verify(graph, "fuse_residual")


def compiled(model: str, precision: str) -> Plan:
    return compile_model(MODELS[model], precision, PROFILE, weights_source={"kind": "dummy", "seed": 0}, every_row=True).plan


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_each_sum_is_its_product_bias_and_residual_rounded_once(model: str, dtype: str) -> None:
    graph = unfused(model, dtype)
    tensors = stacked(graph, checkpoint(graph))
    apply(graph)
    sums = adding(graph)
    assert len(sums) == 2 * MODELS[model].num_layers
    wanted = [node for one in sums for node in (one, one.args[0], one.args[RESIDUAL])]
    values = evaluate(graph, tensors, paged_inputs(graph), wanted)[1:]
    for node, (total, x, residual) in zip(sums, zip(*[iter(values)] * 3, strict=True), strict=True):
        weight, bias = (None if arg is None else tensors[str(arg.target)].float() for arg in node.args[1:3])
        exact = x.float() @ weight.T + (0.0 if bias is None else bias) + residual.float()
        assert torch.equal(total, exact.to(total.dtype))


def test_nothing_changes_in_fp32_where_one_branch_joins_at_a_time() -> None:
    graph = unfused("llama")
    tensors, inputs = stacked(graph, checkpoint(graph)), paged_inputs(graph)
    before = evaluate(graph, tensors, paged_inputs(graph))[0]
    apply(graph)
    assert torch.equal(evaluate(graph, tensors, inputs)[0], before)


def test_a_llama_layer_adds_in_both_projections_and_keeps_the_sums_names() -> None:
    plan = compiled("llama", "bf16")
    sums = [op for op in plan.ops if op.op == "linear" and op.inputs[RESIDUAL]]
    assert [op.name for op in sums[:2]] == ["model.layers.0.self_attn.o_proj", "model.layers.0.mlp.down_proj"]
    assert [op.outputs[0] for op in sums[:2]] == ["model.layers.0.add", "model.layers.0.add_2"]
    assert sums[0].inputs[RESIDUAL] == "model.embed_tokens"
    assert [op.inputs[RESIDUAL] for op in sums[1:]] == [op.outputs[0] for op in sums[:-1]]
    norms = [op for op in plan.ops if op.op == "rms_norm"]
    assert [op.inputs[0] for op in norms] == ["model.embed_tokens", *(op.outputs[0] for op in sums)]
    assert [op.name for op in norms[:2]] == ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"]


def test_both_branches_of_a_parallel_block_add_in_turn() -> None:
    plan = compiled("gptj", "bf16")
    sums = [op for op in plan.ops if op.op == "linear" and op.inputs[RESIDUAL]]
    assert [op.name for op in sums[:2]] == ["transformer.h.0.attn.out_proj", "transformer.h.0.mlp.fc_out"]
    assert sums[1].inputs[RESIDUAL] == sums[0].outputs[0] == "transformer.h.0.attn.out_proj.residual"
    assert sums[1].inputs[2], "with its bias"
    assert sums[2].inputs[RESIDUAL] == sums[1].outputs[0]
    assert not [op for op in plan.ops if op.op == "add_layer_norm"]


@pytest.mark.parametrize("model", ["llama", "gptj"])
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_the_whole_residual_stream_is_one_buffer(model: str, precision: str) -> None:
    plan = compiled(model, precision)
    sums = [op for op in plan.ops if op.op == "linear" and op.inputs[RESIDUAL]]
    assert all(op.reuses == op.inputs[RESIDUAL] for op in sums)
    assert len({plan.buffers[name] for op in sums for name in (op.inputs[RESIDUAL], op.outputs[0])}) == 1
    assert {plan.values[op.outputs[0]].dtype for op in sums} == {"bf16"}


def test_a_marked_sum_keeps_its_memory() -> None:
    source = {"kind": "dummy", "seed": 0}
    plan = compile_model(LLAMA, "bf16", PROFILE, weights_source=source, mark_outputs=["model.layers.0.add"]).plan
    reader = next(op for op in plan.ops if op.op == "linear" and op.inputs[RESIDUAL] == "model.layers.0.add")
    assert not reader.reuses
    assert plan.buffers[reader.outputs[0]] != plan.buffers["model.layers.0.add"]


def test_norms_that_quantize_rows_and_what_is_read_elsewhere_are_left_alone() -> None:
    graph = unfused("llama", "bf16", "fp8_rowwise")
    apply(graph)
    assert len(adding(graph)) == 1  # before the head, whose norm quantizes nothing
    graph = unfused("llama")
    product = graph.nodes("add_rms_norm")[0].args[0]
    with graph.fx.inserting_after(product):
        copy = call(graph.fx, "gelu", product, label="reader")
    output = next(node for node in graph.fx.nodes if node.op == "output")
    output.args = ((output.args[0], copy),)
    apply(graph)
    assert len(adding(graph)) == 2 * LLAMA.num_layers - 1
    assert [op_name(product), len(graph.nodes("add_rms_norm"))] == ["linear", 1]


def test_of_two_summands_one_product_is_taken_and_the_other_stays() -> None:
    graph = unfused("gptj")
    tensors = stacked(graph, checkpoint(graph))
    norm = graph.nodes("add_layer_norm")[0]
    with graph.fx.inserting_before(norm):
        other = call(graph.fx, "gelu", norm.args[0], label="other")
    norm.update_arg(0, other)
    expected = evaluate(graph, tensors, paged_inputs(graph))[0]
    apply(graph)
    (left,) = graph.nodes("add_layer_norm")
    assert (left.args[0], op_name(left.args[1]), left.args[5]) == (other, "linear", None)
    torch.testing.assert_close(evaluate(graph, tensors, paged_inputs(graph))[0], expected, atol=2e-5, rtol=2e-5)


def test_a_residual_made_after_the_product_is_not_for_it() -> None:
    graph = unfused("llama")
    norm = graph.nodes("add_rms_norm")[0]
    with graph.fx.inserting_before(norm):
        late = call(graph.fx, "gelu", norm.args[1], label="late")
    norm.update_arg(1, late)
    apply(graph)
    assert len(adding(graph)) == 2 * LLAMA.num_layers - 1


def test_verifier_refuses_a_residual_of_another_shape_or_type() -> None:
    graph = unfused("llama")
    apply(graph)
    node = adding(graph)[0]
    graph.weights["stray"] = replace(node.meta["spec"], shape=("T", 7))
    with graph.fx.inserting_before(node):
        node.update_arg(RESIDUAL, graph.fx.get_attr("stray"))
    with pytest.raises(VerifyError, match=r"linear 'model\.layers\.0\.self_attn\.o_proj' adds \('T', 7\) to a product of"):
        verify(graph, "test")
    graph.weights["stray"] = replace(node.meta["spec"], dtype="fp16")
    with pytest.raises(VerifyError, match="mixes fp16, fp32"):
        verify(graph, "test")
