"""Precision fp8_rowwise: made from any checkpoint without calibration, a tensor quantized once, codes of row-scaled checkpoints kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiler_models import MODELS, PROFILE, checkpoint
from hf_folders import hf_folder, logits_of

from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.graph import trace
from trtllm_engines.compiler.plan import Plan, Profile
from trtllm_engines.engine.build import build
from trtllm_engines.engine.folder import load_engine
from trtllm_kernels.references.quantize import FP8, finish, row_scales

CPU = torch.device("cpu")


def compiled(kind: str, precision: str = "fp8_rowwise", kv_dtype: str = "bf16") -> Plan:
    source = {"kind": "dummy", "seed": 0}
    return compile_model(MODELS[kind], precision, PROFILE, arches=("sm_90",), weights_source=source, kv_dtype=kv_dtype).plan


@pytest.mark.parametrize("kind", ["llama", "qkv bias", "qk norm", "gptj"])
def test_every_product_but_the_head_reads_rows_quantized_once(kind: str) -> None:
    plan = compiled(kind)
    quantized = {op.outputs[0]: op for op in plan.ops if op.op == "quantize_rows"}
    products = [op for op in plan.ops if op.op == "linear" and plan.weights[op.inputs[1]].dtype == "fp8"]
    assert [op.name for op in plan.ops if op.op.startswith("linear") and op not in products] == ["lm_head"]
    assert {op.inputs[0] for op in products} == set(quantized)
    assert len({op.inputs[0] for op in quantized.values()}) == len(quantized)
    for op in products:
        _, weight, _, x_scale, weight_scale, residual = op.inputs
        assert not residual
        assert x_scale == quantized[op.inputs[0]].outputs[1]
        assert plan.values[x_scale].shape == ("T", 1)
        assert plan.weights[weight_scale].shape == (plan.weights[weight].shape[0], 1)
        assert op.tactics["sm_90"].launches[-1].library == "scaled_matmul"
    assert not any(recipe.kind == "fp8_input_scale" for recipe in plan.weight_recipes.values())


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
        codes = torch.cat([stored[part].view(torch.uint8) for part, _ in parts])
        assert torch.equal(ours[name].view(torch.uint8), codes)
        torch.testing.assert_close(ours[f"{name}_scale"], torch.cat([stored[f"{part}_scale"] for part, _ in parts]), rtol=1e-6, atol=0)
    assert seen == 7 * 3


def test_drawn_weights_are_quantized_without_clipping() -> None:
    plan, source = compiled("llama"), DummyWeights(0)
    name = "model.layers.0.self_attn.qkv_proj.weight"
    codes, scale = assemble(plan, name, source, CPU), assemble(plan, f"{name}_scale", source, CPU)
    assert (codes.dtype, scale.shape) == (FP8, (plan.weights[name].shape[0], 1))
    parts = torch.cat([source.read(part, shape, torch.float32, CPU) for part, shape in plan.weight_recipes[name].inputs])
    assert ((codes.float() * scale - parts).abs() <= parts.abs() / 16 + scale * 2**-10).all()


def test_the_profile_bounds_the_arena_with_the_scales_in_it() -> None:
    small = compile_model(
        MODELS["llama"], "fp8_rowwise", Profile(1, 200, 16, 16), arches=("cpu",), weights_source={"kind": "dummy", "seed": 0}
    ).plan
    assert all(small.buffers[op.outputs[1]].nbytes == 200 * 4 for op in small.ops if op.op == "quantize_rows")
