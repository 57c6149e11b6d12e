"""The passes that make an engine fp8: logits stay near the wide engine's, no quantization is left on its own, scales come as stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiler_models import LLAMA, MODELS, PROFILE, TOTAL, checkpoint, dense_inputs, paged_inputs, stacked
from safetensors.torch import save_file
from torch import Tensor, fx
from torch.nn import functional

from trtllm_engines.checkpoints.checkpoint import SafetensorsWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.graph import ModelGraph, assign_schemes, evaluate, op_name, trace
from trtllm_engines.compiler.passes import PASSES, run_passes
from trtllm_engines.compiler.verify import VerifyError, verify
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization import named_plan
from trtllm_kernels.references.quantize import FP8, FP8_MAX

CPU = torch.device("cpu")
QKV = [f"model.layers.1.self_attn.{p}_proj" for p in "qkv"]


def quantized_graph(model: str, kv_dtype: str = "fp8", quantized: bool = True) -> ModelGraph:
    graph = trace(MODELS[model], "bf16", PROFILE)
    assign_schemes(graph, named_plan("fp8" if quantized else "bf16", kv_dtype))
    run_passes(graph)
    return graph


def write_checkpoint(folder: Path, model: str) -> dict[str, Tensor]:
    """A bf16 checkpoint with the activation scales that its own prompts call for; returns its tensors."""
    graph = trace(MODELS[model], "bf16", PROFILE)
    tensors = checkpoint(graph)
    products = graph.nodes("linear")
    values = evaluate(graph, stacked(graph, tensors), dense_inputs(), [node.args[0] for node in products])[1:]
    scales = {
        str(node.args[1].target).removesuffix("weight") + "input_scale": x.float().abs().amax() / FP8_MAX
        for node, x in zip(products, values, strict=True)
    }
    save_file({**tensors, **scales}, folder / "model.safetensors")
    return tensors


def weights_of(folder: Path, model: str, kv_dtype: str = "auto") -> dict[str, Tensor]:
    plan = compile_model(MODELS[model], "fp8", PROFILE, weights_source={"kind": "test"}, kv_dtype=kv_dtype).plan
    source = SafetensorsWeights(folder)
    return {name: assemble(plan, name, source, CPU) for name in plan.weights}


@pytest.mark.parametrize("model", MODELS)
def test_logits_of_a_calibrated_engine_are_nearly_the_wide_ones(model: str, tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, model)
    wide = quantized_graph(model, kv_dtype="bf16", quantized=False)
    expected = evaluate(wide, stacked(wide, tensors), paged_inputs(wide))[0].float()
    graph = quantized_graph(model)
    assert graph.inputs["kv_cache"].dtype == "fp8"
    logits = evaluate(graph, weights_of(tmp_path, model), paged_inputs(graph))[0].float()
    assert logits.shape == (TOTAL, LLAMA.vocab_size)
    cosine = functional.cosine_similarity(logits, expected)
    # codes err by 2 to 3% each, a product of two of them by 4%, and these three layers of random weights attenuate nothing
    assert cosine.mean() > 0.985
    assert cosine.min() > 0.95
    assert not torch.equal(logits, expected)


@pytest.mark.parametrize("model", ["llama", "gptj"])
def test_passes_after_quantization_keep_the_result(model: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, model)
    weights = weights_of(tmp_path, model)
    graph = trace(MODELS[model], "bf16", PROFILE)
    assign_schemes(graph, named_plan("fp8"))
    before, stages = None, list(PASSES)
    for name, apply in PASSES.items():
        apply(graph)
        verify(graph, name)
        if stages.index(name) < stages.index("quantize"):
            continue
        stacked_weights = weights if "gate_up_silu" in map(op_name, graph.fx.nodes) else deinterleaved(weights)
        after = evaluate(graph, stacked_weights, paged_inputs(graph))[0].float()
        # values are rounded to bf16 before their codes until quantization is pushed: a code may flip, and three layers amplify it
        assert before is None or functional.cosine_similarity(after, before).min() > 0.99, name
        before = after


def deinterleaved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gate rows first, as they are until `fuse_gate_up`."""
    return {n: torch.cat((w[0::2], w[1::2])) if n.endswith("gate_up_proj.weight") else w for n, w in weights.items()}


def test_an_fp8_cache_alone_changes_little_and_a_wide_one_goes_with_fp8_products(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, "llama")
    wide = quantized_graph("llama", kv_dtype="bf16", quantized=False)
    expected = evaluate(wide, stacked(wide, tensors), paged_inputs(wide))[0].float()
    cached = quantized_graph("llama", quantized=False)
    scales = {name: torch.ones(1) for name in cached.weights if name.endswith(("k_scale", "v_scale"))}
    assert len(scales) == 2 * LLAMA.num_layers
    inputs = paged_inputs(cached)
    # whole prompts attend to their own exact keys, so only the prompt of one token, a decode row, reads codes
    logits = evaluate(cached, {**stacked(wide, tensors), **scales}, inputs)[0].float()
    assert functional.cosine_similarity(logits, expected).min() > 0.99
    assert inputs["kv_cache"].dtype == FP8
    narrow = quantized_graph("llama", kv_dtype="bf16")
    assert narrow.inputs["kv_cache"].dtype == "bf16"
    assert not any(name.endswith(("k_scale", "v_scale")) for name in narrow.weights)


def test_an_int8_cache_changes_less_than_an_fp8_one_and_needs_nothing_of_the_checkpoint(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, "llama")
    wide = quantized_graph("llama", kv_dtype="bf16", quantized=False)
    expected = evaluate(wide, stacked(wide, tensors), paged_inputs(wide))[0].float()
    graph = quantized_graph("llama", "int8", quantized=False)
    assert (graph.inputs["kv_cache"].dtype, graph.inputs["kv_scales"].dtype) == ("int8", "fp32")
    assert graph.inputs["kv_scales"].shape == graph.inputs["kv_cache"].shape[:-1]
    assert graph.weights.keys() == wide.weights.keys()
    logits = evaluate(graph, stacked(wide, tensors), paged_inputs(graph))[0].float()
    assert functional.cosine_similarity(logits, expected).min() > 0.9995
    assert not torch.equal(logits, expected)
    drop(graph.nodes("rope_kv_write")[1], "kv_scales")
    with pytest.raises(VerifyError, match="uses an int8 cache without kv_scales"):
        verify(graph, "test")


@pytest.mark.parametrize("model", MODELS)
def test_every_quantization_is_pushed_into_the_op_before_it(model: str) -> None:
    graph = quantized_graph(model)
    assert not graph.nodes("quantize")
    for node in (node for name in ("linear", "gate_up_silu", "linear_gelu") for node in graph.nodes(name)):
        arguments = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=True))
        head = str(arguments["weight"].target) in ("lm_head.weight", "model.embed_tokens.weight")
        assert (arguments["x"].meta["spec"].dtype, arguments["x_scale"] is None) == (("bf16", True) if head else ("fp8", False))


def test_products_of_one_tensor_share_its_quantization() -> None:
    graph = quantized_graph("gptj")
    norm = graph.nodes("layer_norm")[1]
    scale = str(norm.args[-1].target)
    readers = [
        node for node in graph.fx.nodes if op_name(node) in ("linear", "linear_gelu") and str(getattr(node.args[3], "target", "")) == scale
    ]
    assert [op_name(node) for node in readers] == ["linear", "linear_gelu"]
    modules = ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in")
    assert [name for name, _ in graph.parts(scale)] == [f"transformer.h.1.{module}.input_scale" for module in modules]


def drop(node: fx.Node, argument: str) -> None:
    names = [a.name for a in node.target._schema.arguments]
    node.update_arg(names.index(argument), None)


def test_verifier_refuses_codes_without_their_scales() -> None:
    graph = quantized_graph("llama")
    drop(graph.nodes("gate_up_silu")[0], "weight_scale")
    with pytest.raises(VerifyError, match=r"gate_up_silu 'model\.layers\.0\.mlp\.silu_mul' multiplies fp8 without both its scales"):
        verify(graph, "test")
    graph = quantized_graph("llama")
    drop(graph.nodes("paged_attention")[0], "v_scale")
    with pytest.raises(VerifyError, match="uses an fp8 cache without k_scale and v_scale"):
        verify(graph, "test")


def compressed(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A checkpoint in compressed-tensors' layout, a scale a row of each projection, and the cache's on the attention; (codes, scales)."""
    tensors = write_checkpoint(folder, "llama")
    source = SafetensorsWeights(folder)
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            stored[name] = tensor
            continue
        scale = tensor.float().abs().amax(1, keepdim=True) / FP8_MAX
        stored[name], stored[f"{name}_scale"] = (tensor.float() / scale).to(FP8), scale
        module = name.removesuffix("weight")
        stored[f"{module}input_scale"] = torch.tensor([source.input_scale(f"{module}input_scale")])
    for layer in range(LLAMA.num_layers):
        for index, kind in enumerate("kv"):
            stored[f"model.layers.{layer}.self_attn.{kind}_scale"] = torch.tensor(0.25 * (layer + 1) + index)
    (folder / "model.safetensors").unlink()
    save_file(stored, folder / "model.safetensors")
    return tensors, stored


def test_scales_a_row_become_one_a_weight_and_cost_one_rounding(tmp_path: Path) -> None:
    _, stored = compressed(tmp_path)
    weights = weights_of(tmp_path, "llama")
    merged, parts = weights["model.layers.1.self_attn.qkv_proj.weight"], [stored[f"{module}.weight"] for module in QKV]
    rows = torch.cat([stored[f"{module}.weight_scale"] for module in QKV])
    scale = weights["model.layers.1.self_attn.qkv_proj.weight_scale"]
    assert scale == rows.max()
    exact = torch.cat(parts).float() * rows
    assert merged.dtype == FP8
    torch.testing.assert_close(merged.float() * scale, exact, rtol=2**-4, atol=float(scale) * 2**-9)
    same = (rows == rows.max()).flatten()
    assert torch.equal(merged[same].float(), torch.cat(parts)[same].float())


def test_cache_scales_on_the_attention_are_read(tmp_path: Path) -> None:
    compressed(tmp_path)
    weights = weights_of(tmp_path, "llama")
    assert [float(weights[f"model.layers.1.self_attn.attn.{kind}_scale"]) for kind in "kv"] == [0.5, 1.5]


def test_cache_scales_default_to_one_and_a_missing_input_scale_is_one_sentence(tmp_path: Path) -> None:
    tensors = write_checkpoint(tmp_path, "llama")
    assert float(weights_of(tmp_path, "llama")["model.layers.0.self_attn.attn.k_scale"]) == 1.0
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(EngineError, match=r"has no activation scale .*q_proj\.input_scale, which an fp8 engine needs; calibrate first"):
        weights_of(tmp_path, "llama")
