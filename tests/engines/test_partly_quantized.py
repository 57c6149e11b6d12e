"""Checkpoints as quantizing tools write them: modules left wide stay wide, codes stay as stored, and other codes are refused by name.

Codes, scales and configurations are made here from the formats' definitions; nothing of the project's own writer is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from compiler_models import LLAMA, PROFILE, checkpoint
from hf_folders import hf_folder, logits_of
from torch import Tensor
from torch.nn import functional

from trtllm_engines.calibration.perplexity import perplexity
from trtllm_engines.checkpoints.checkpoint_precision import checkpoint_precision, default_precision, plan_for
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.graph import trace
from trtllm_engines.engine import build as building
from trtllm_engines.engine.build import build, refit
from trtllm_engines.engine.folder import Engine, load_engine
from trtllm_engines.engine.inspect import describe
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import read_config

INPUT_SCALE = 0.05


def tensors() -> dict[str, Tensor]:
    return checkpoint(trace(LLAMA, "bf16", PROFILE))


def compressed(*groups: tuple[list[str], str, bool], ignore: list[str]) -> dict[str, Any]:
    """compressed-tensors: groups of (targets, strategy of the weights, inputs dynamic)."""

    def group(targets: list[str], strategy: str, dynamic: bool) -> dict[str, Any]:
        inputs = {"num_bits": 8, "type": "float", "dynamic": dynamic, "strategy": "token" if dynamic else "tensor"}
        return {"targets": targets, "weights": {"num_bits": 8, "type": "float", "strategy": strategy}, "input_activations": inputs}

    numbered = {f"group_{index}": group(*one) for index, one in enumerate(groups)}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ignore, "config_groups": numbered}


def modelopt(*exclude: str) -> dict[str, Any]:
    return {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head", *exclude]}


def transformers_fp8(scheme: str, *wide: str) -> dict[str, Any]:
    return {"quant_method": "fp8", "activation_scheme": scheme, "weight_block_size": None, "modules_to_not_convert": ["lm_head", *wide]}


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]
    scheme_of: Callable[[str], str]
    """Scheme of each projection, as the tool's documentation has it."""
    apart: bool = False
    """Whether the configuration is `hf_quant_config.json`."""
    spelled: tuple[str, str] = ("weight_scale", "input_scale")


def wide_where(pattern: str, scheme: str) -> Callable[[str], str]:
    return lambda module: "bf16" if re.search(pattern, module) else scheme


DYNAMIC, STATIC = (["Linear"], "channel", True), (["Linear"], "tensor", False)
CASES = {
    "ignored by expression, dynamic": Case(
        compressed(DYNAMIC, ignore=["lm_head", "re:.*down_proj"]), wide_where("down_proj", "fp8_rowwise")
    ),
    "ignored by expression, static": Case(compressed(STATIC, ignore=["lm_head", "re:.*down_proj"]), wide_where("down_proj", "fp8")),
    "a layer ignored by names": Case(
        compressed(DYNAMIC, ignore=["lm_head", *(f"model.layers.0.self_attn.{p}_proj" for p in "qkvo")]),
        wide_where(r"layers\.0\.self_attn", "fp8_rowwise"),
    ),
    "gate without up": Case(compressed(STATIC, ignore=["lm_head", "re:.*gate_proj$"]), wide_where("gate_proj", "fp8")),
    "only the feed-forward is a target": Case(
        compressed((["re:.*mlp.*"], "channel", True), ignore=["lm_head"]), wide_where("self_attn", "fp8_rowwise")
    ),
    "two groups": Case(
        compressed(STATIC, (["re:.*mlp.*"], "channel", True), ignore=["lm_head"]), lambda m: "fp8_rowwise" if "mlp" in m else "fp8"
    ),
    "excluded by wildcard": Case(modelopt("model.layers.*.mlp.down_proj"), wide_where("down_proj", "fp8"), apart=True),
    "a layer excluded by wildcard": Case(modelopt("model.layers.0*"), wide_where(r"layers\.0\.", "fp8"), apart=True),
    "not converted by beginning": Case(
        transformers_fp8("static", "model.layers.1"), wide_where(r"layers\.1\.", "fp8"), spelled=("weight_scale_inv", "activation_scale")
    ),
    "not converted by end": Case(transformers_fp8("dynamic", "o_proj"), wide_where("o_proj", "fp8_rowwise")),
    "null block and nothing left wide": Case(transformers_fp8("static"), wide_where("nothing", "fp8")),
    "stored wide and not said so": Case(transformers_fp8("dynamic"), wide_where(r"layers\.2\.mlp", "fp8_rowwise")),
    "FBGEMM": Case(
        {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head", "down_proj"]},
        wide_where("down_proj", "fp8_rowwise"),
    ),
}


def write(folder: Path, case: Case) -> dict[str, Tensor]:
    """A checkpoint of the small Llama; returns its stored tensors."""
    stored: dict[str, Tensor] = {}
    for name, tensor in tensors().items():
        module = name.removesuffix(".weight")
        scheme = case.scheme_of(module) if module.endswith("_proj") else "bf16"
        if scheme == "bf16":
            stored[name] = tensor
            continue
        scale = tensor.float().abs().amax(1, keepdim=True) / 448 if scheme == "fp8_rowwise" else tensor.float().abs().amax().view(1) / 448
        stored[name] = (tensor.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
        stored[f"{module}.{case.spelled[0]}"] = scale
        if scheme == "fp8":
            stored[f"{module}.{case.spelled[1]}"] = torch.tensor(INPUT_SCALE)
    hf_folder(folder, stored, None if case.apart else case.config)
    if case.apart:
        (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, "quantization": case.config}))
    return stored


def dequantized(stored: dict[str, Tensor], case: Case) -> dict[str, Tensor]:
    return {
        name: tensor.float() * stored[f"{name.removesuffix('weight')}{case.spelled[0]}"].float()
        if tensor.dtype == torch.float8_e4m3fn
        else tensor.float()
        for name, tensor in stored.items()
        if not name.endswith(case.spelled)
    }


def schemes_of(engine: Engine) -> dict[str, str]:
    """Scheme of each projection of the checkpoint."""
    plan = engine.plan
    modules = {weight: [name.removesuffix(".weight") for name, _ in plan.weight_recipes[weight].inputs] for weight in plan.schemes}
    return {module: plan.schemes[weight].name for weight, names in modules.items() for module in names}


@pytest.mark.parametrize("name", CASES)
def test_each_product_has_the_scheme_its_checkpoint_gave_it(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    stored = write(tmp_path / "model", case)
    engine = load_engine(build(tmp_path / "model", default_precision(tmp_path / "model", gpu=True), out=tmp_path / "e", profile=PROFILE))
    found, plan, weights = schemes_of(engine), engine.plan, engine.tensors("cpu")
    projections = {name.removesuffix(".weight") for name in stored if name.endswith("_proj.weight")}
    assert found == {**{module: case.scheme_of(module) for module in projections}, "lm_head": "bf16"}
    for weight, recipe in plan.weight_recipes.items():
        if weight not in plan.schemes:
            continue
        parts = [stored[part] for part, _ in recipe.inputs]
        assert {part.dtype for part in parts} == {weights[weight].dtype}
        stacked = [part.view(torch.uint8) for part in parts]
        expected = torch.stack(stacked, 1).flatten(0, 1) if recipe.interleave else torch.cat(stacked)
        shared = plan.schemes[weight].name != "fp8" or len(parts) == 1
        if shared:  # parts with scales of their own are rounded onto a common one, checked in test_quantize_passes
            assert torch.equal(weights[weight].view(torch.uint8), expected)
    # the same numbers in fp32: what is left is the rounding of inputs to fp8, and of everything to bf16
    dense = hf_folder(tmp_path / "dense", dequantized(stored, case))
    exact = logits_of(build(dense, "fp32", out=tmp_path / "exact", profile=PROFILE))
    assert functional.cosine_similarity(logits_of(engine.path).float(), exact).min() > 0.98
    wide = logits_of(build(tmp_path / "model", "fp32", out=tmp_path / "wide", profile=PROFILE))
    torch.testing.assert_close(wide, exact, atol=1e-5, rtol=1e-5)


def test_modules_left_wide_stay_wide_under_another_precision_too(tmp_path: Path) -> None:
    case = CASES["ignored by expression, static"]
    write(tmp_path / "model", case)
    engine = load_engine(build(tmp_path / "model", "fp8_rowwise", out=tmp_path / "e", profile=PROFILE))
    schemes = schemes_of(engine)
    assert {schemes[f"model.layers.{layer}.mlp.down_proj"] for layer in range(3)} == {"bf16"}
    assert schemes["model.layers.1.mlp.up_proj"] == "fp8_rowwise"
    assert set(schemes_of(load_engine(build(tmp_path / "model", "bf16", out=tmp_path / "w", profile=PROFILE))).values()) == {"bf16"}
    assert plan_for(None, "fp8").scheme_of("model.layers.0.mlp.down_proj").name == "fp8"


def test_inspect_has_one_line_per_scheme(tmp_path: Path) -> None:
    write(tmp_path / "model", CASES["a layer ignored by names"])
    description = describe(build(tmp_path / "model", "fp8_rowwise", out=tmp_path / "e", profile=PROFILE))["quantization"]
    assert description["source"] == "config.json"
    rows = {row["scheme"]: row for row in description["schemes"]}
    assert set(rows["fp8_rowwise"]["products"]) == {
        "model.layers.*.mlp.gate_up_proj",
        "model.layers.*.mlp.down_proj",
        "model.layers.*.self_attn.qkv_proj (layers 1-2)",
        "model.layers.*.self_attn.o_proj (layers 1-2)",
    }
    assert (rows["fp8_rowwise"]["weights"], rows["fp8_rowwise"]["inputs"]) == ("fp8, one scale per row", "fp8, one scale per token")
    assert (rows["fp8_rowwise"]["count"], rows["bf16"]["count"]) == (10, 3)


def test_a_partly_quantized_model_lowers_for_a_gpu(tmp_path: Path) -> None:
    for name in ("gate without up", "ignored by expression, static", "two groups"):
        folder = tmp_path / name
        write(folder, CASES[name])
        quant = plan_for(folder, str(checkpoint_precision(folder)))
        plan = compile_model(read_config(folder), quant, PROFILE, arches=("sm_90",), weights_source={"kind": "test"}).plan
        assert all(op.tactics["sm_90"].launches for op in plan.ops)


def test_projections_of_one_attention_that_differ_are_named(tmp_path: Path) -> None:
    write(tmp_path / "model", Case(compressed(STATIC, ignore=["lm_head", "re:.*v_proj"]), wide_where("v_proj", "fp8")))
    with pytest.raises(EngineError, match=r"layers\.0\.self_attn\.k_proj \(fp8\), .*v_proj \(bf16\) are quantized differently"):
        build(tmp_path / "model", "fp8", out=tmp_path / "e", profile=PROFILE)
    build(tmp_path / "model", "bf16", out=tmp_path / "e", profile=PROFILE)


# --- codes that no engine runs ---

INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}


def int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.float().abs().amax(1, keepdim=True) / 127
    return (weight.float() / scale).round().to(torch.int8), scale


def with_int8(name: str, weight: Tensor) -> dict[str, Tensor]:
    codes, scale = int8_rows(weight)
    return {name: codes, f"{name}_scale": scale}


def with_packed_int(bits: int) -> Callable[[str, Tensor], dict[str, Tensor]]:
    def made(name: str, weight: Tensor) -> dict[str, Tensor]:
        module = name.removesuffix(".weight")
        return {
            f"{module}.weight_packed": torch.zeros((weight.shape[0], weight.shape[1] * bits // 32), dtype=torch.int32),
            f"{module}.weight_scale": torch.ones((weight.shape[0], weight.shape[1] // 32), dtype=torch.bfloat16),
            f"{module}.weight_shape": torch.tensor(weight.shape),
        }

    return made


def with_gptq(name: str, weight: Tensor) -> dict[str, Tensor]:
    module, (rows, columns) = name.removesuffix(".weight"), weight.shape
    return {
        f"{module}.qweight": torch.zeros((columns // 8, rows), dtype=torch.int32),
        f"{module}.qzeros": torch.zeros((columns // 32, rows // 8), dtype=torch.int32),
        f"{module}.scales": torch.ones((columns // 32, rows), dtype=torch.float16),
        f"{module}.g_idx": torch.arange(columns, dtype=torch.int32) // 32,
    }


def with_nibbles(name: str, weight: Tensor) -> dict[str, Tensor]:
    return {name: torch.zeros((weight.numel() // 2, 1), dtype=torch.uint8), f"{name}.absmax": torch.ones(weight.numel() // 64)}


def ct(weights: dict[str, Any], form: str, inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": inputs}}
    return {"quant_method": "compressed-tensors", "format": form, "ignore": ["lm_head"], "config_groups": groups}


REFUSED = {
    "int8 of an unnamed tool": (with_int8, None, "weight", "does not state"),
    "int1 of compressed-tensors": (
        with_packed_int(1),
        ct({**INT8, "num_bits": 1, "strategy": "group"}, "pack-quantized"),
        "weight_packed",
        "pack-quantized",
    ),
    "GPTQ in Marlin's layout": (with_gptq, {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "qweight", "gptq"),
    "a tool without a reader": (with_gptq, {"quant_method": "aqlm"}, "qweight", "aqlm"),
    "fp4 of bitsandbytes": (
        with_nibbles,
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
        "weight",
        "bitsandbytes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_codes_are_refused_by_tensor_and_method_whatever_the_precision(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, config, leaf, method = REFUSED[name]
    stored = {
        key: tensor
        for name, weight in tensors().items()
        for key, tensor in (made(name, weight) if name.endswith("_proj.weight") else {name: weight}).items()
    }
    folder = hf_folder(tmp_path / "model", stored, config)
    engine = build(hf_folder(tmp_path / "wide", tensors()), "fp32", out=tmp_path / "fitted", profile=PROFILE)
    monkeypatch.setattr(building, "_compile_kernels", lambda *_: pytest.fail("kernels are compiled of weights that cannot be read"))
    named = rf"layers\.\d\.(self_attn|mlp)\.\w+_proj\.{leaf}\b.*{re.escape(method)}.*, which no engine here runs"
    for precision in ("fp32", "bf16", "fp16", "fp8", "fp8_rowwise"):
        with pytest.raises(EngineError, match=named):
            build(folder, precision, out=tmp_path / "e", profile=PROFILE)
        assert not (tmp_path / "e").exists()
    if config is not None:
        with pytest.raises(EngineError, match=rf"(?i)quantized by {config['quant_method']}.*\(such as .*_proj\.{leaf}\)"):
            default_precision(folder, gpu=True)
    (tmp_path / "text.jsonl").write_text('{"input_ids": [1, 2, 3]}')
    with pytest.raises(EngineError, match="which no engine here runs"):
        perplexity(folder, "fp32", tmp_path / "text.jsonl", length=8)
    with pytest.raises(EngineError, match="which no engine here runs"):
        refit(engine, folder)
