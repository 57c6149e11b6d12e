"""Precisions fp8_rowwise and int8_sq: made from any checkpoint without calibration, a tensor quantized once and where possible in the op
that makes it, codes of row-scaled checkpoints kept."""

from __future__ import annotations

from collections import Counter
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from compiler_models import MODELS, PROFILE, checkpoint, paged_inputs
from hf_folders import hf_folder, logits_of

from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.graph import assign_schemes, evaluate, trace
from trtllm_engines.compiler.passes import PASSES, run_passes
from trtllm_engines.compiler.plan import Plan, Profile
from trtllm_engines.compiler.verify import verify
from trtllm_engines.engine.build import build
from trtllm_engines.engine.folder import load_engine
from trtllm_engines.quantization import named_plan
from trtllm_engines.quantization.registry import definition
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.references.quantize import FP8, finish, row_scales

CPU = torch.device("cpu")


def compiled(kind: str, precision: str = "fp8_rowwise", kv_dtype: str = "bf16") -> Plan:
    source = {"kind": "dummy", "seed": 0}
    return compile_model(MODELS[kind], precision, PROFILE, arches=("sm_90",), weights_source=source, kv_dtype=kv_dtype, every_row=True).plan


@pytest.mark.parametrize("precision", ["fp8_rowwise", "int8_sq"])
@pytest.mark.parametrize("kind", ["llama", "qkv bias", "qk norm", "gptj"])
def test_every_product_but_the_head_reads_rows_quantized_once(kind: str, precision: str) -> None:
    plan, dtype = compiled(kind, precision), definition(precision).gemm_dtype
    quantized = {op.outputs[0]: op for op in plan.ops if op.op.endswith("quantize_rows")}
    products = [op for op in plan.ops if OP_SPECS[op.op].kind == "gemm" and plan.weights[op.inputs[1]].dtype == dtype]
    assert [op.name for op in plan.ops if op.op.startswith("linear") and op not in products] == ["lm_head"]
    assert {op.inputs[0] for op in products} == set(quantized)
    for op in products:
        named = dict(zip(OP_SPECS[op.op].tensors, op.inputs, strict=True))
        x_scale, weight_scale = named["x_scale"], named["weight_scale"]
        assert x_scale == quantized[named["x"]].outputs[1]
        assert (plan.values[named["x"]].dtype, plan.values[x_scale].shape) == (dtype, ("T", 1))
        assert plan.weights[weight_scale].shape == (plan.weights[named["weight"]].shape[0], 1)
        assert not any(launch.library for launch in op.tactics["sm_90"].launches)
    added = [op for op in products if dict(zip(OP_SPECS[op.op].tensors, op.inputs, strict=True)).get("residual")]
    assert len(added) == 6
    assert not any(recipe.kind == "fp8_input_scale" for recipe in plan.weight_recipes.values())


@pytest.mark.parametrize(
    ("kind", "precision", "made_by"),
    [
        ("llama", "fp8_rowwise", {"rms_norm": 6, "": 6}),
        ("llama", "int8_sq", {"rms_norm": 6, "": 6}),
        ("gptj", "fp8_rowwise", {"layer_norm": 3, "": 6}),
        ("gptj", "int8_sq", {"layer_norm": 3, "": 6}),
    ],
)
def test_norms_and_activations_quantize_their_rows_themselves(kind: str, precision: str, made_by: dict[str, int]) -> None:
    """Attention does not, nor does a product that ends in an activation: a program there has a part of a row."""
    ops = [op.op.removesuffix("quantize_rows").rstrip("_") for op in compiled(kind, precision).ops if op.op.endswith("quantize_rows")]
    assert Counter(ops) == made_by


@pytest.mark.parametrize("kind", ["llama", "gptj"])
@pytest.mark.parametrize("precision", ["fp8_rowwise", "int8_sq"])
def test_quantizing_rows_where_they_are_made_changes_a_rounding_only(kind: str, precision: str) -> None:
    """The fp32 result becomes codes without being rounded to bf16 before, so some codes are other ones, and steps of fp8 are large."""
    plan, source = compiled(kind, precision), DummyWeights(0)
    weights = {name: assemble(plan, name, source, CPU) for name in plan.weights}
    graph = trace(MODELS[kind], "bf16", PROFILE)
    assign_schemes(graph, named_plan(precision, "bf16"))
    run_passes(graph, dict(takewhile(lambda one: one[0] != "fuse_quantize_rows", PASSES.items())))
    before = evaluate(graph, weights, paged_inputs(graph))[0].float()
    apart = len(graph.nodes("quantize_rows"))
    PASSES["fuse_quantize_rows"](graph)
    verify(graph, "fuse_quantize_rows")
    after = evaluate(graph, weights, paged_inputs(graph))[0].float()
    assert len(graph.nodes("quantize_rows")) < apart
    assert 0 < (after - before).norm() / before.norm() < (0.03 if precision == "int8_sq" else 0.12)


def test_an_engine_is_built_from_wide_weights_and_is_nearer_to_them_than_one_scale_a_tensor(tmp_path: Path) -> None:
    """One output row a hundred times the others: a scale a tensor pushes all others into E4M3's subnormals, a scale a row does not."""
    graph = trace(MODELS["llama"], "fp32", PROFILE)
    tensors = checkpoint(graph)
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "gate_proj.weight")):
            tensor[3] *= 1000
    wide = hf_folder(tmp_path / "wide", tensors)
    scales = {name.removesuffix("weight") + "input_scale": torch.tensor(0.05) for name, t in tensors.items() if t.dim() == 2}
    calibrated = hf_folder(tmp_path / "calibrated", {**tensors, **scales})
    options = {"profile": PROFILE, "kv_dtype": "bf16"}
    expected = logits_of(build(wide, "bf16", out=tmp_path / "e0", profile=PROFILE)).float()
    by_row = logits_of(build(wide, "fp8_rowwise", out=tmp_path / "e1", **options)).float()
    by_tensor = logits_of(build(calibrated, "fp8", out=tmp_path / "e2", **options)).float()
    cosine = [torch.nn.functional.cosine_similarity(expected, found).mean() for found in (by_row, by_tensor)]
    assert cosine[0] > 0.98
    assert cosine[0] > cosine[1]


def test_codes_and_scales_of_a_checkpoint_with_scales_of_rows_are_kept(tmp_path: Path) -> None:
    tensors = checkpoint(trace(MODELS["llama"], "fp32", PROFILE))
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and "proj" in name:
            scale = row_scales(tensor * torch.logspace(-3, 2, len(tensor))[:, None])
            stored |= {name: finish(tensor * torch.logspace(-3, 2, len(tensor))[:, None], torch.float32, scale), f"{name}_scale": scale}
        else:
            stored[name] = tensor
    folder = build(hf_folder(tmp_path / "m", stored), "fp8_rowwise", out=tmp_path / "e", profile=PROFILE)
    engine = load_engine(folder)
    ours = engine.tensors("cpu")
    seen = 0
    for name, recipe in engine.plan.weight_recipes.items():
        if engine.plan.weights[name].dtype != "fp8":
            continue
        parts = recipe.inputs
        seen += len(parts)
        together = (lambda rows: torch.stack(rows, 1).flatten(0, 1)) if recipe.interleave else torch.cat
        assert torch.equal(ours[name].view(torch.uint8), together([stored[part].view(torch.uint8) for part, _ in parts]))
        torch.testing.assert_close(ours[f"{name}_scale"], together([stored[f"{part}_scale"] for part, _ in parts]), rtol=1e-6, atol=0)
    assert seen == 7 * 3


def test_drawn_weights_are_quantized_without_clipping() -> None:
    plan, source = compiled("llama"), DummyWeights(0)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    codes, scale = assemble(plan, name, source, CPU), assemble(plan, f"{name}_scale", source, CPU)
    assert (codes.dtype, scale.shape) == (FP8, (plan.weights[name].shape[0], 1))
    parts = torch.cat([source.read(part, shape, torch.float32, CPU) for part, shape in plan.weight_recipes[name].inputs])
    assert ((codes.float() * scale - parts).abs() <= parts.abs() / 16 + scale * 2**-10).all()


def test_int8_weights_are_drawn_as_codes_of_the_models_spread() -> None:
    """The deviation is that of a wide draw, and the codes are those that quantizing it to the same scale gives, a quarter step apart."""
    plan, source = compiled("llama", "int8_sq"), DummyWeights(0)
    for name in ("model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.mlp.down_proj.weight"):
        codes, scale = assemble(plan, name, source, CPU), assemble(plan, f"{name}_scale", source, CPU)
        assert (codes.dtype, scale.shape) == (torch.int8, (plan.weights[name].shape[0], 1))
        assert 100 < int(codes.abs().max()) <= 127
        parts = torch.cat([source.read(part, shape, torch.float32, CPU) for part, shape in plan.weight_recipes[name].inputs])
        assert float((codes * scale).std()) == pytest.approx(parts.shape[1] ** -0.5, rel=0.02)
        assert ((codes * scale - parts).abs() <= 0.51 * scale).all()


def test_a_small_int8_engine_is_near_the_wide_one(tmp_path: Path) -> None:
    tensors = checkpoint(trace(MODELS["llama"], "fp32", PROFILE))
    model = hf_folder(tmp_path / "model", tensors)
    wide = logits_of(build(model, "bf16", out=tmp_path / "wide", profile=PROFILE)).float()
    folder = build(model, "int8_sq", out=tmp_path / "int8", profile=PROFILE, kv_dtype="bf16")
    ours = logits_of(folder).float()
    assert 0 < (ours - wide).norm() / wide.norm() < 0.06
    weight = load_engine(folder).tensors("cpu")["model.layers.0.mlp.down_proj.weight"]
    down = tensors["model.layers.0.mlp.down_proj.weight"]
    assert torch.equal(weight, (down / down.abs().amax(1, keepdim=True) * 127).round().to(torch.int8))


def test_the_profile_bounds_the_arena_with_the_scales_in_it() -> None:
    small = compile_model(
        MODELS["llama"], "fp8_rowwise", Profile(1, 200, 16, 16), weights_source={"kind": "dummy", "seed": 0}, every_row=True
    ).plan
    assert all(small.buffers[op.outputs[1]].nbytes == 200 * 4 for op in small.ops if op.op.endswith("quantize_rows"))
