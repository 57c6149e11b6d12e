"""What checkpoints say of their quantization, in the words of the tools that write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trtllm_engines.checkpoints.checkpoint_precision import checkpoint_plan, checkpoint_precision, default_precision
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization import module_names

FP8 = {"num_bits": 8, "type": "float"}
INT8 = {"num_bits": 8, "type": "int", "strategy": "channel"}


def group(weights: str, dynamic: bool, **more: Any) -> dict[str, Any]:
    return {"weights": {**FP8, "strategy": weights, **more}, "input_activations": {**FP8, "dynamic": dynamic}}


def compressed(*groups: dict[str, Any]) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {f"group_{i}": one for i, one in enumerate(groups)}}


def folder(path: Path, config: dict[str, Any] | None = None, apart: dict[str, Any] | None = None) -> Path:
    (path / "config.json").write_text(json.dumps({} if config is None else {"quantization_config": config}))
    if apart is not None:
        (path / "hf_quant_config.json").write_text(json.dumps({"producer": {}, "quantization": apart}))
    return path


@pytest.mark.parametrize(
    ("config", "apart", "precision"),
    [
        (None, {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, "fp8"),
        (None, {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, "fp8_rowwise"),
        (None, {"quant_algo": None}, None),
        (None, {"quant_algo": "NO_QUANT"}, "bf16"),
        (None, None, None),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, None, "fp8"),
        ({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8"}}, None, "fp8"),
        (compressed(group("tensor", False)), None, "fp8"),
        (compressed(group("channel", True)), None, "fp8_rowwise"),
        ({"quant_method": "fp8", "activation_scheme": "static"}, None, "fp8"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic"}, None, "fp8_rowwise"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, None, "fp8_block"),
        (compressed(group("channel", False) | {"input_activations": None}), None, "fp8_wo"),
        (compressed({"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}}), None, "int4"),
        (compressed({"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}), None, "int8_wo"),
        (compressed({"weights": INT8, "input_activations": {"num_bits": 8, "type": "int", "dynamic": False}}), None, "int8_sq"),
        (compressed({"weights": {**INT8, "symmetric": False}, "input_activations": {"num_bits": 8, "type": "int"}}), None, "int8_wo"),
        (compressed({"weights": {**INT8, "num_bits": 4}, "input_activations": {"num_bits": 8, "type": "int"}}), None, "int4"),
        (compressed({"input_activations": {**FP8, "dynamic": False}}), None, "bf16"),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": FP8}, None, "bf16"),
        (None, {"quant_algo": None, "kv_cache_quant_algo": "FP8"}, "bf16"),
        ({"config_groups": {"all": {"weights": INT8}}}, None, "int8_wo"),
        ({"bits": 4, "group_size": 128, "desc_act": False}, None, "int4"),
        ({"bits": 4, "group_size": 128, "zero_point": True}, None, "int4"),
        ({"weight_block_size": [128, 128]}, None, "fp8_block"),
        (compressed(group("block", True, block_structure="128x128")), None, "fp8_block"),
        ({"quant_method": "gptq", "bits": 4, "group_size": None, "sym": None, "desc_act": None}, None, "int4"),
        ({"quant_method": "awq", "bits": 4, "group_size": None, "zero_point": None, "version": None}, None, "int4"),
        ({"quant_method": "intel/auto-round", "bits": 4, "backend": "auto_round:awq", "sym": False}, None, "int4"),
        ({"load_in_8bit": True}, None, "int8_wo"),
        ({"quant_method": "awq", "bits": 4}, None, "int4"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, None, "int4"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1}, None, "int8_wo"),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_gptq"}, None, "int4"),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_awq", "sym": False}, None, "int4"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, None, "nf4"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, None, "int8_wo"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}, None, "nvfp4_wo"),
        (None, {"quant_algo": "W4A16_AWQ", "group_size": 64}, "int4"),
        (None, {"quant_algo": "W4A8_AWQ", "group_size": 128}, "w4a8"),
        (None, {"quant_algo": "mxfp4"}, "mxfp4_wo"),
        (
            None,
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {"quant_algo": "FP8"}, "b": {"quant_algo": "W8A16"}}},
            "mixed",
        ),
        (
            None,
            {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"a": {"quant_algo": "NO_QUANT"}, "b": {"quant_algo": "FP8"}}},
            "fp8",
        ),
    ],
)
def test_a_checkpoint_says_its_precision(tmp_path: Path, config: Any, apart: Any, precision: str | None) -> None:
    assert checkpoint_precision(folder(tmp_path, config, apart)) == precision
    assert default_precision(tmp_path, gpu=True) == (precision or "bf16")
    assert default_precision(tmp_path, gpu=False) == (precision or "fp32")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "AWQ with 4 bits in the layout gemv"),
        ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 64]}, "fp8 in blocks of 128x64"),
        ({"quant_method": "gptq", "bits": 5}, "GPTQ with 5 bits"),
        ({"group_size": 64, "bits": 4}, "MLX"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -7}, "group_size is -7; it must be at least -1"),
        ({"quant_method": "awq", "bits": 4, "group_size": -7}, "group_size is -7; it must be at least -1"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "GPTQ in the layout marlin"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down_proj": {"bits": 5}}}, "GPTQ with 5 bits"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"+:.*down_proj": {"bits": "4"}}}, "dynamic.*bits is '4'; it must be"),
        ({"quant_method": "gptq", "bits": 4, "dynamic": {"-:*down": {}}}, "names of modules hold an expression that cannot be read"),
        ({"quant_method": "awq", "bits": 4, "extra_config": {"a": {"bits": 8}}}, "AWQ with 8 bits in a"),
        (
            {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_gptq", "rotation_config": {"type": "hadamard"}},
            "auto-round with activations that are rotated",
        ),
        (
            {"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:auto_awq", "rotation_config": {"type": "hadamard"}},
            r"auto-round with activations that are rotated \(rotation_config\)",
        ),
        (
            {"quant_method": "auto-round", "bits": 8, "packing_format": "auto_round:fp8", "spinquant_config": {"r1": False, "r4": True}},
            r"auto-round with activations that are rotated \(spinquant_config\)",
        ),
        ({"quant_method": "gptq", "bits": 4, "spinquant_config": {"r1": True}}, r"rotated \(spinquant_config\)"),
        ({"quant_method": "gptq", "bits": 4, "rotation": "hadamard"}, r"GPTQModel with activations that are rotated \(rotation\)"),
        ({"quant_method": "fp8", "weight_scale_semantics": "direct"}, "fp8 with weight_scale_semantics direct"),
        ({**compressed({"weights": INT8}), "format": "marlin-24"}, "compressed-tensors in the layout marlin-24"),
        (
            {**compressed({"weights": INT8}), "transform_config": {"config_groups": {"R4": {"apply": [{"location": "input"}]}}}},
            r"activations that are transformed \(R4\)",
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes' fp4"),
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "auto-round", "bits": 4, "packing_format": "auto_round:fake"}, "auto-round"),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_MXFP4_MXFP8"}, "W4A8_MXFP4_MXFP8"),
        (compressed({"weights": {**INT8, "strategy": "block"}, "input_activations": {"num_bits": 8, "type": "int"}}), "8-bit int"),
        (compressed({"weights": {"num_bits": 1, "type": "int", "strategy": "group"}}), "1-bit int"),
        (compressed(group("group", False)), "per group"),
        (compressed(), "config_groups"),
    ],
)
def test_other_quantizations_are_named_and_refused(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        checkpoint_precision(folder(tmp_path, config))


def test_rotations_that_are_part_of_the_weights_change_nothing(tmp_path: Path) -> None:
    offline = {"r1": True, "online_r1_rotation": False, "r2": True, "r3": True, "r4": False}
    assert checkpoint_precision(folder(tmp_path, {"quant_method": "gptq", "bits": 4, "spinquant_config": offline})) == "int4"


def test_names_of_modules_that_cannot_be_read_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"config\.json: the names of modules hold an expression that cannot be read .*\[0-9"):
        checkpoint_precision(folder(tmp_path, {**compressed(group("channel", True)), "ignore": ["re:.*layers.[0-9"]}))
    with pytest.raises(EngineError, match=r"config_groups\.group_0 is .FP8.; it must be an object"):
        checkpoint_precision(folder(tmp_path, {"quant_method": "compressed-tensors", "config_groups": {"group_0": "FP8"}}))
    plan = checkpoint_plan(folder(tmp_path, {"quant_method": "fp8", "modules_to_not_convert": ["*visual", "layers.1"]}))
    assert plan is not None
    names = ["model.layers.0.mlp.up_proj", "model.layers.1", "model*visual", "lm_head"]
    assert [plan.scheme_of(name).name for name in names] == ["fp8_rowwise", "bf16", "bf16", "bf16"]


@pytest.mark.parametrize("hostile", [r"re:(.*)(.*)(.*)(.*)\4\3\2\1aab?$b?", "re:(a{999}){999}", "re:(?:(?:a{9}){9}){9}"])
def test_an_expression_that_takes_for_ever_is_refused(tmp_path: Path, hostile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_names, "SECONDS", 0.2)
    module_names.expression.cache_clear()
    config = {**compressed(group("channel", True)), "ignore": [hostile]}

    def matched() -> None:
        plan = checkpoint_plan(folder(tmp_path, config))
        assert plan is not None
        plan.scheme_of("model.layers.0.mlp.down_proj." + "a" * 400)

    with pytest.raises(EngineError, match=r"hold an expression .*write a simpler one: "):
        matched()


def test_presets_and_files_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    assert checkpoint_precision("llama-3.1-8b") is None
    assert checkpoint_precision(tmp_path / "model.gguf") is None
    (tmp_path / "hf_quant_config.json").write_text("{")
    with pytest.raises(EngineError, match="cannot be read as JSON"):
        checkpoint_precision(tmp_path)
