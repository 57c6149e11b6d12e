"""Each pass is held to the definition: the graph before it and after it, run through the references on the same random inputs, agree."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from compiler_models import LENGTHS, LLAMA, MODELS, PROFILE, TOTAL, checkpoint, dense_inputs, int32, paged_inputs, stacked
from torch import Tensor, fx

from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.graph import ModelGraph, assign_schemes, call, evaluate, op_name, trace
from trtllm_engines.compiler.passes import PASSES, fuse_add_norm, run_passes
from trtllm_engines.compiler.pattern import OpPattern, Var, match
from trtllm_engines.compiler.plan import ParallelLayout
from trtllm_engines.compiler.verify import VerifyError, verify
from trtllm_engines.quantization import named_plan
from trtllm_kernels.dialect.types import TensorSpec

EXACT = {"atol": 0.0, "rtol": 0.0}
ROUNDING = {"atol": 2e-4, "rtol": 2e-4}


def run(graph: ModelGraph, tensors: dict[str, Tensor]) -> Tensor:
    paged = bool(graph.nodes("prepare_step"))
    return evaluate(graph, stacked(graph, tensors), paged_inputs(graph) if paged else dense_inputs())[0]


def counts(graph: ModelGraph) -> dict[str, int]:
    ops = [op_name(node) for node in graph.fx.nodes if op_name(node)]
    return {op: ops.count(op) for op in sorted(set(ops))}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_pass_keeps_the_result(model: str, dtype: str) -> None:
    graph = trace(MODELS[model], dtype, PROFILE)
    tensors = checkpoint(graph)
    verify(graph, "trace")
    before = run(graph, tensors)
    assert before.shape == (TOTAL, LLAMA.vocab_size)
    assert before.float().std() > 0.1
    for name, apply in PASSES.items():
        apply(graph)
        verify(graph, name)
        after = run(graph, tensors)
        # bf16: one reordered fp32 sum may flip a rounding, which three layers then amplify.
        tolerance = ROUNDING if dtype == "fp32" else {"atol": 0.06, "rtol": 0.02}
        torch.testing.assert_close(after, before, **tolerance, msg=lambda m, name=name: f"{name}: {m}")
        before = after


@pytest.mark.parametrize("model", MODELS)
def test_fusing_adds_and_norms_changes_no_bit(model: str) -> None:
    graph = trace(MODELS[model], "bf16", PROFILE)
    tensors = checkpoint(graph)
    before = run(graph, tensors)
    fuse_add_norm.apply(graph)
    verify(graph, "fuse_add_norm")
    torch.testing.assert_close(run(graph, tensors), before, **EXACT)


def test_a_compiled_llama_has_eight_ops_a_layer() -> None:
    graph = trace(LLAMA, "fp32", PROFILE)
    run_passes(graph)
    layers = LLAMA.num_layers
    assert counts(graph) == {
        "prepare_step": 1,
        "embedding": 1,
        "rms_norm": 2 * layers + 1,
        "linear": 3 * layers,
        "linear_sample": 1,
        "rope_kv_write": layers,
        "paged_attention": layers,
        "gate_up_silu": layers,
        "gather_rows": 2,
    }


def rows_of(graph: ModelGraph, op: str) -> list[int | str]:
    return [node.meta["spec"].shape[0] for node in graph.nodes(op)]


@pytest.mark.parametrize("model", ["llama", "gptj"])
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8_sq"])
def test_rows_that_nothing_reads_leave_after_the_last_attention(model: str, precision: str) -> None:
    graph = trace(MODELS[model], "bf16", PROFILE)
    assign_schemes(graph, named_plan(precision, "auto"))
    run_passes(graph)
    others = LLAMA.num_layers - 1
    assert rows_of(graph, "paged_attention") == ["T"] * (others + 1), "its keys and values are every token's"
    into_head = graph.nodes("linear_sample")[0].args[0]
    assert isinstance(into_head, fx.Node)
    assert into_head.meta["spec"].shape[0] == "S"
    assert rows_of(graph, "linear")[-2:] == ["S", "S"], "the output projection and the feed-forward's last"
    gathered = [node.args[0].meta["spec"].dtype for node in graph.nodes("gather_rows")]  # type: ignore[union-attr]
    assert "bf16" in gathered, "the residual"
    assert (precision == "fp8") == ("fp8" in gathered), "what is quantized with the rest is gathered as codes"
    labels = [node.meta["label"] for node in graph.fx.nodes if op_name(node)]
    assert len(set(labels)) == len(labels)


def test_every_row_stays_where_values_are_read_and_where_ranks_have_rows_of_their_own() -> None:
    source = {"kind": "dummy", "seed": 0}
    for settings in ({"every_row": True}, {"mark_outputs": ["model.layers.0.add"]}, {"layout": ParallelLayout(2)}):
        plan = compile_model(replace(LLAMA, vocab_size=96), "bf16", PROFILE, weights_source=source, **settings).plan  # type: ignore[arg-type]
        assert [op.name for op in plan.ops if op.op == "gather_rows"] == ["gather_rows"]


def test_a_compiled_gptj_has_seven_ops_a_layer_and_no_addition_of_its_own() -> None:
    graph = trace(MODELS["gptj"], "fp32", PROFILE)
    run_passes(graph)
    layers = LLAMA.num_layers
    assert counts(graph) == {
        "prepare_step": 1,
        "embedding": 1,
        "layer_norm": layers + 1,
        "linear": 3 * layers,
        "linear_sample": 1,
        "linear_gelu": layers,
        "rope_kv_write": layers,
        "paged_attention": layers,
        "gather_rows": 3,
    }


def test_qk_norm_is_taken_into_the_cache_write() -> None:
    graph = trace(MODELS["qk norm"], "fp32", PROFILE)
    run_passes(graph)
    assert counts(graph)["rms_norm"] == 2 * LLAMA.num_layers + 1
    write = graph.nodes("rope_kv_write")[1]
    assert [str(node.target) for node in write.args[5:7]] == [f"model.layers.1.self_attn.{n}_norm.weight" for n in "qk"]


def test_merged_weights_say_what_they_stack() -> None:
    graph = trace(MODELS["qkv bias"], "fp32", PROFILE)
    run_passes(graph)
    names = [name for name, _ in graph.parts("model.layers.0.self_attn.qkv_proj.bias")]
    assert names == [f"model.layers.0.self_attn.{p}_proj.bias" for p in "qkv"]
    assert graph.weights["model.layers.0.self_attn.qkv_proj.weight"].shape == (64 + 32 + 32, 64)
    assert "model.layers.0.self_attn.q_proj.weight" not in graph.weights


def test_tied_embeddings_are_one_weight() -> None:
    graph = trace(MODELS["tied embeddings"], "fp32", PROFILE)
    assert "lm_head.weight" not in graph.weights
    assert "lm_head.weight" in trace(LLAMA, "fp32", PROFILE).weights


@pytest.mark.parametrize("model", MODELS)
def test_chunks_and_decode_steps_give_the_logits_of_the_whole_prompt(model: str) -> None:
    """The paged graph, fed a prompt as chunks of 7, 6 and 3 and then one token at a time, against the dense graph at once."""
    config = MODELS[model]
    dense = trace(config, "fp32", PROFILE)
    tensors = checkpoint(dense)
    paged = trace(config, "fp32", PROFILE)
    run_passes(paged)
    length = LENGTHS[2]
    tokens = dense_inputs()["token_ids"][:length]
    rows = torch.arange(length, dtype=torch.int32)
    inputs = {"token_ids": tokens, "positions": rows, "query_start": int32([0, length]), "logit_rows": rows}
    expected = evaluate(dense, tensors, inputs)[0]

    state = paged_inputs(paged)
    state["last_tokens"][3] = tokens[-1]
    logits, done = [], 0
    for chunk in (7, 6, 3, 1):
        ids = tokens[done : done + chunk] if chunk > 1 else int32([-1])
        done += chunk
        step = {
            **state,
            "context_tokens": ids,
            "seq_slots": int32([3]),
            "query_start": int32([0, chunk]),
            "kv_lens": int32([done]),
            "logit_rows": torch.arange(chunk, dtype=torch.int32),
            "sampling_words": state["sampling_words"][:chunk],
            "sample_slots": int32([0] * chunk),
        }
        logits.append(evaluate(paged, stacked(paged, tensors), step)[0])
    torch.testing.assert_close(torch.cat(logits), expected, **ROUNDING)


def test_shapes_are_symbolic_after_verification() -> None:
    graph = trace(LLAMA, "bf16", PROFILE)
    run_passes(graph)
    prepare = graph.nodes("prepare_step")[0]
    assert prepare.meta["spec"] == (TensorSpec(("T",), "int32"),) * 3
    assert graph.nodes("gather_rows")[0].meta["spec"] == TensorSpec(("S", 64), "bf16")
    assert graph.nodes("gate_up_silu")[0].meta["spec"] == TensorSpec(("T", 96), "bf16")


def _graph() -> ModelGraph:
    graph = trace(LLAMA, "fp32", PROFILE)
    verify(graph, "trace")
    return graph


def test_verifier_refuses_an_unused_value() -> None:
    graph = _graph()
    linear = graph.nodes("linear")[0]
    with graph.fx.inserting_after(linear):
        call(graph.fx, "gelu", linear, label="stray")
    with pytest.raises(VerifyError, match="after test: result of gelu 'stray' is not used"):
        verify(graph, "test")


def test_verifier_refuses_a_weight_that_does_not_exist() -> None:
    graph = _graph()
    del graph.weights["model.norm.weight"]
    with pytest.raises(VerifyError, match=r"weight model\.norm\.weight does not exist"):
        verify(graph, "test")


def test_verifier_refuses_mixed_dtypes() -> None:
    graph = _graph()
    graph.weights["model.norm.weight"] = TensorSpec((64,), "bf16")
    with pytest.raises(VerifyError, match=r"rms_norm 'model\.norm' mixes bf16, fp32"):
        verify(graph, "test")


def test_verifier_refuses_a_sum_of_shapes_that_do_not_fit() -> None:
    graph = trace(MODELS["gptj"], "fp32", PROFILE)
    run_passes(graph, {name: apply for name, apply in PASSES.items() if name != "fuse_residual"})
    norm = graph.nodes("add_layer_norm")[0]
    norm.update_arg(1, norm.args[5])  # the embedding is read elsewhere too, so nothing is left unused
    norm.update_arg(5, graph.nodes("linear_gelu")[0])
    with pytest.raises(VerifyError, match=r"add_layer_norm '.*' combines \('T', 64\) with \('T', 96\)"):
        verify(graph, "test")


def test_verifier_refuses_a_product_of_shapes_that_do_not_fit() -> None:
    graph = _graph()
    graph.weights["lm_head.weight"] = TensorSpec((97, 63), "fp32")
    with pytest.raises(VerifyError, match="linear 'lm_head' multiplies"):
        verify(graph, "test")


def test_verifier_refuses_reading_the_cache_before_writing_it() -> None:
    graph = _graph()
    run_passes(graph)
    write = graph.nodes("rope_kv_write")[1]
    write.update_arg(7, 2)
    with pytest.raises(VerifyError, match="reads the cache of layer 1 before it is written"):
        verify(graph, "test")


def test_verifier_refuses_a_stack_that_does_not_add_up() -> None:
    graph = _graph()
    run_passes(graph)
    recipe = graph.recipes["model.layers.0.mlp.gate_up_proj.weight"]
    graph.recipes["model.layers.0.mlp.gate_up_proj.weight"] = replace(recipe, inputs=recipe.inputs[:1])
    with pytest.raises(VerifyError, match=r"weight model\.layers\.0\.mlp\.gate_up_proj\.weight is .* but its parts are"):
        verify(graph, "test")


def test_a_variable_bound_twice_must_bind_the_same_node() -> None:
    graph = _graph()
    silu = graph.nodes("silu_mul")[0]
    one_input = OpPattern("silu_mul", (OpPattern("linear", (Var("x"),)), OpPattern("linear", (Var("x"),))))
    assert match(one_input, silu, {}) is not None
    silu.args[1].update_arg(0, graph.nodes("embedding")[0])  # type: ignore[union-attr]
    assert match(one_input, silu, {}) is None
