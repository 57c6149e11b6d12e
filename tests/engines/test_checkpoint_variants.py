"""Checkpoints that tools write with other settings than the fixtures of `data/quantized`: values, and the scheme of each module."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantized_checkpoints import FOLDER, dense
from safetensors.torch import load_file, save_file
from test_quantized_checkpoints import logits
from torch import Tensor

from trtllm_engines.checkpoints import open_weights
from trtllm_engines.checkpoints.checkpoint_precision import checkpoint_plan, default_precision, plan_for
from trtllm_engines.errors import EngineError

LAYER = "model.layers.0"
DOWN, OUT, QUERY = f"{LAYER}.mlp.down_proj", f"{LAYER}.self_attn.o_proj", f"{LAYER}.self_attn.q_proj"
Tensors = dict[str, Tensor]


def changed(tmp_path: Path, name: str, tensors: Callable[[Tensors], None], **config: Any) -> Path:
    """A copy of fixture `name` with other tensors, and other entries of its configuration."""
    folder = tmp_path / name
    shutil.copytree(FOLDER / name, folder)
    stored = load_file(folder / "model.safetensors")
    tensors(stored)
    save_file(stored, folder / "model.safetensors")
    whole = json.loads((folder / "config.json").read_text())
    whole["quantization_config"] |= config
    (folder / "config.json").write_text(json.dumps(whole))
    return folder


def values(folder: Path, module: str, shape: tuple[int, ...]) -> Tensor:
    return open_weights(folder).read(f"{module}.weight", shape, torch.float32, torch.device("cpu"))


def schemes(folder: Path, *modules: str) -> list[str]:
    plan = checkpoint_plan(folder)
    assert plan is not None
    return [str(plan.scheme_of(module).weights) for module in modules]


def with_eight_bits_and_a_wide_one(stored: Tensors) -> None:
    """down_proj in the 8 bits of another fixture, o_proj wide."""
    for key in [key for key in stored if key.startswith((DOWN, OUT)) and not key.endswith("bias")]:
        del stored[key]
    stored |= {key: tensor for key, tensor in load_file(FOLDER / "autoround-gptq8" / "model.safetensors").items() if key.startswith(DOWN)}
    stored[f"{OUT}.weight"] = dense("autoround-gptq8")[f"{OUT}.weight"].bfloat16()


@pytest.mark.parametrize(
    "config",
    [
        {"dynamic": {r"-:.*\.o_proj": {}, r"+:.*\.(down|o)_proj": {"bits": 8, "sym": True}}},
        {"dynamic": {r".*\.down_proj": {"bits": 8, "sym": True}, r"-:.*\.o_proj": {}}},
        {
            "quant_method": "auto-round",
            "packing_format": "auto_round:auto_gptq",
            "extra_config": {DOWN: {"bits": 8, "sym": True}, r".*o_proj.*": {"bits": 16}},
        },
    ],
    ids=["GPTQModel", "GPTQModel, no sign", "auto-round"],
)
def test_modules_with_settings_of_their_own(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = changed(tmp_path, "autoround-gptq4-asym", with_eight_bits_and_a_wide_one, **config)
    assert schemes(folder, QUERY, DOWN, OUT) == [
        "int4, one scale per group of 32 with a zero point",
        "int8, one scale per group of 32",
        "None",
    ]
    expected = dense("autoround-gptq8")[f"{DOWN}.weight"]
    torch.testing.assert_close(values(folder, DOWN, tuple(expected.shape)), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "config",
    [{"format": "gptq_v2"}, {"quant_method": "auto-round", "packing_format": "auto_round"}],
    ids=["GPTQModel", "auto-round"],
)
def test_zero_points_of_the_second_version(tmp_path: Path, config: dict[str, Any]) -> None:
    def stored_whole(stored: Tensors) -> None:
        for key in [key for key in stored if key.endswith("qzeros")]:
            octets = stored[key].contiguous().view(torch.uint8)
            stored[key] = ((octets & 15) + 1 | (octets >> 4) + 1 << 4).view(torch.int32)

    folder = changed(tmp_path, "autoround-gptq4-asym", stored_whole, **config)
    expected = dense("autoround-gptq4-asym")[f"{QUERY}.weight"]
    torch.testing.assert_close(values(folder, QUERY, tuple(expected.shape)), expected, atol=1e-6, rtol=1e-5)


def test_a_zero_point_of_0_is_stored_as_the_largest_code(tmp_path: Path) -> None:
    """0 less one, in four bits: a group without negative values. AutoGPTQ takes the sum modulo 16."""

    def without_zeros(stored: Tensors) -> None:
        stored[f"{QUERY}.qzeros"] = torch.full_like(stored[f"{QUERY}.qzeros"], -1)

    folder = changed(tmp_path, "autoround-gptq4-asym", without_zeros)
    stored = load_file(folder / "model.safetensors")
    codes = (stored[f"{QUERY}.qweight"].T.contiguous().view(torch.uint8)[..., None] >> torch.tensor([0, 4]) & 15).flatten(1)
    expected = codes * stored[f"{QUERY}.scales"].float().T.repeat_interleave(32, 1)
    torch.testing.assert_close(values(folder, QUERY, tuple(expected.shape)), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("order", [False, True], ids=["in order", "act-order"])
def test_a_last_group_that_is_not_whole(tmp_path: Path, order: bool) -> None:
    """Groups of 96 in rows of 128, as AutoGPTQ has them with columns sorted by importance too: 96 columns in one and 32 in the other."""
    group = torch.arange(128) // 96
    group = group[torch.randperm(128, generator=torch.Generator().manual_seed(0))] if order else group

    def partial(stored: Tensors) -> None:
        if order:
            stored[f"{DOWN}.g_idx"] = group.int()

    folder = changed(tmp_path, "autoround-gptq4-partial-group", partial, quant_method="gptq", desc_act=order)
    stored = load_file(folder / "model.safetensors")
    codes = (stored[f"{DOWN}.qweight"].T.contiguous().view(torch.uint8)[..., None] >> torch.tensor([0, 4]) & 15).flatten(1)
    expected = (codes.float() - 8) * stored[f"{DOWN}.scales"].float().T[:, group]
    assert schemes(folder, DOWN) == ["int4, one scale per group of 32"]
    torch.testing.assert_close(values(folder, DOWN, (64, 128)), expected, atol=0, rtol=0)


def test_blocks_of_nf4_that_end_within_a_row(tmp_path: Path) -> None:
    """Blocks of 128 over rows of 64, and of 96, where the last block is not whole."""
    for size in (128, 96):

        def larger(stored: Tensors, size: int = size) -> None:
            state = json.loads(bytes(stored[f"{QUERY}.weight.quant_state.bitsandbytes__nf4"].tolist())) | {"blocksize": size}
            stored[f"{QUERY}.weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
            stored[f"{QUERY}.weight.absmax"] = torch.linspace(0.5, 1.5, -(-4096 // size))

        folder = changed(tmp_path / str(size), "bitsandbytes-nf4-words", larger)
        stored = load_file(folder / "model.safetensors")
        octets = stored[f"{QUERY}.weight"].view(torch.uint8).flatten()
        codes = stored[f"{QUERY}.weight.quant_map"][torch.stack((octets >> 4, octets & 15), 1).flatten().long()]
        expected = codes * stored[f"{QUERY}.weight.absmax"].repeat_interleave(size)[:4096]
        torch.testing.assert_close(values(folder, QUERY, (64, 64)), expected.view(64, 64), atol=0, rtol=0)


def test_packed_words_that_are_not_of_the_stated_bits(tmp_path: Path) -> None:
    """Words of 8-bit codes would hold as many of 4 bits, and more."""
    folder = changed(tmp_path, "llmcompressor-w8a16", lambda stored: None)
    config = json.loads((folder / "config.json").read_text())
    for one in config["quantization_config"]["config_groups"].values():
        one["weights"]["num_bits"] = 4
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(EngineError, match=r"weight_packed in .* has shape \[64, 32\], which 4-bit codes of \[64, 128\] .* have not"):
        checkpoint_plan(folder)


@pytest.mark.parametrize("name", ["llmcompressor-w8a16", "llmcompressor-w8a8-smooth"], ids=["packed", "a code a byte"])
@pytest.mark.parametrize("zero", [None, 3], ids=["symmetric", "asymmetric"])
def test_int8_with_one_scale_for_the_tensor(tmp_path: Path, name: str, zero: int | None) -> None:
    parts = load_file(FOLDER / name / "model.safetensors")
    scaled = [key.removesuffix("_scale") for key in parts if key.endswith("weight_scale")]

    def one_scale(stored: Tensors) -> None:
        for key in scaled:
            stored[f"{key}_scale"] = torch.tensor([0.01])
            if zero is not None:
                stored[f"{key}_zero_point"] = torch.tensor([zero], dtype=torch.int8)

    folder = changed(tmp_path, name, one_scale)
    config = json.loads((folder / "config.json").read_text())
    for group in config["quantization_config"]["config_groups"].values():
        group["weights"] |= {"strategy": "tensor", "symmetric": zero is None}
    (folder / "config.json").write_text(json.dumps(config))
    codes = parts.get(f"{QUERY}.weight")
    if codes is None:
        codes = (parts[f"{QUERY}.weight_packed"].contiguous().view(torch.uint8).short() - 128).char()
    expected = (codes.float() - (zero or 0)) * 0.01
    assert schemes(folder, QUERY) == ["int8, one scale per row" + (" with a zero point" if zero else "")]
    torch.testing.assert_close(values(folder, QUERY, tuple(codes.shape)), expected)


def test_zero_points_that_are_stated_must_be_there(tmp_path: Path) -> None:
    def without_zeros(stored: Tensors) -> None:
        for key in [key for key in stored if key.endswith("zero_point")]:
            del stored[key]

    folder = changed(tmp_path, "llmcompressor-w4a16-asym-gptq", without_zeros)
    with pytest.raises(EngineError, match=r"has no .*down_proj\.weight_zero_point, which the codes of"):
        checkpoint_plan(folder)


@pytest.mark.parametrize(
    ("name", "scale"),
    [
        ("autoround-gptq8", "scales"),
        ("autoround-awq4", "scales"),
        ("llmcompressor-w4a16", "weight_scale"),
        ("modelopt-int4-awq", "weight_scale"),
    ],
)
def test_scales_of_a_type_that_no_engine_has_are_named(tmp_path: Path, name: str, scale: str) -> None:
    def doubled(stored: Tensors) -> None:
        stored |= {key: tensor.double() for key, tensor in stored.items() if key.endswith(scale)}

    with pytest.raises(EngineError, match=rf"proj\.{scale} in .* is of type F64; it must be of F32 or F16 or BF16"):
        checkpoint_plan(changed(tmp_path, name, doubled))


def in_blocks(folder: Path, side: int, shape: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Makes fixture weights fp8 in squares of `side`, with scales of powers of two; returns what they stand for."""
    stored, meant = {}, {}
    for key, tensor in dense("llmcompressor-w8a16").items():
        if not key.endswith("_proj.weight"):
            stored[key] = tensor.bfloat16()
            continue
        rows, columns = tensor.shape
        padded = torch.nn.functional.pad(tensor, (0, -columns % side, 0, -rows % side))
        blocks = padded.unflatten(0, (-1, side)).unflatten(2, (-1, side))
        scale = 2.0 ** torch.ceil(torch.log2(blocks.abs().amax((1, 3)) / 448))
        codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        whole = (codes.float() * scale[:, None, :, None]).flatten(2).flatten(0, 1)
        meant[key] = whole[:rows, :columns]
        stored[key] = codes.flatten(2).flatten(0, 1)[:rows, :columns].contiguous()
        stored[f"{key}_scale"] = shape(scale).to(dtype)
    save_file(stored, folder / "model.safetensors")
    return meant


@pytest.mark.parametrize(
    ("config", "side", "shape", "dtype"),
    [
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, 64, lambda scale: scale, torch.float32),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, 64, lambda scale: scale, torch.float8_e8m0fnu),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, 128, lambda scale: scale, torch.bfloat16),
        ({"quant_method": "modelopt", "quant_algo": "fp8_pb_wo"}, 128, lambda scale: scale[:, None, :, None], torch.float32),
    ],
    ids=["DeepSeek", "scales that are powers of two", "matrices of one block", "ModelOpt"],
)
def test_fp8_in_blocks(tmp_path: Path, config: dict[str, Any], side: int, shape: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    folder = tmp_path / "blocks"
    shutil.copytree(FOLDER / "llmcompressor-w8a16", folder)
    meant = in_blocks(folder, side, shape, dtype)
    whole = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(whole | {"quantization_config": config}))
    plan = checkpoint_plan(folder)
    assert plan is not None
    assert plan.name == "fp8_block"
    assert {plan.scheme_of(f"{LAYER}.self_attn.{part}_proj").name for part in "qkv"} == {"fp8_block"}
    for module in (QUERY, DOWN, f"{LAYER}.self_attn.k_proj"):
        expected = meant[f"{module}.weight"]
        torch.testing.assert_close(values(folder, module, tuple(expected.shape)), expected, atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(64, 1), (64,), (), (2, 4)], ids=["rows", "rows in one dimension", "tensor", "blocks"])
def test_fp8_scales_that_are_divided_by(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """As GPTQModel writes them, under the name that transformers multiplies by."""
    codes = torch.linspace(-400, 400, 64 * 128).view(64, 128).to(torch.float8_e4m3fn)
    scale = 2.0 ** torch.arange(1, 1 + math.prod(shape)).remainder(8).view(shape)
    by_element = (
        scale if scale.dim() == 0 else scale.view(64, 1) if 64 in shape else scale.repeat_interleave(32, 0).repeat_interleave(32, 1)
    )

    def divided(stored: Tensors) -> None:
        for key in [key for key in stored if key.startswith(f"{DOWN}.")]:
            del stored[key]
        stored |= {f"{DOWN}.weight": codes, f"{DOWN}.weight_scale_inv": scale}

    folder = changed(tmp_path, "llmcompressor-w8a16", divided)
    config = json.loads((folder / "config.json").read_text())
    blocks = {"weight_block_size": [32, 32]} if shape == (2, 4) else {}
    config["quantization_config"] = {"quant_method": "fp8", "method": "fp8", "weight_scale_semantics": "inverse", **blocks}
    (folder / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(values(folder, DOWN, (64, 128)), codes.float() / by_element, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("autoround-gptq4-asym", {"rotation": "hadamard"}),
        ("autoround-gptq4-asym", {"spinquant_config": {"r4": True}}),
        ("autoround-awq4", {"rotation_config": {"hadamard_type": "hadamard"}}),
        ("autoround-fp8-static", {"rotation_config": {"hadamard_type": "hadamard"}}),
    ],
)
def test_weights_behind_a_rotation_are_refused_whatever_the_precision(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    folder = changed(tmp_path, name, lambda stored: None, **config)
    with pytest.raises(EngineError, match=f"activations that are rotated .{next(iter(config))}"):
        default_precision(folder, gpu=False)
    with pytest.raises(EngineError, match=f"weights made by .* activations that are rotated .{next(iter(config))}"):
        values(folder, DOWN, (64, 128))
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    with pytest.raises(EngineError, match=f"weights made by .* activations that are rotated .{next(iter(config))}"):
        values(folder, DOWN, (64, 128))


def test_weights_that_were_rotated_and_not_quantized_are_refused(tmp_path: Path) -> None:
    """auto-round writes its rotation into config.json itself where there is no quantization."""
    folder = tmp_path / "rotated"
    folder.mkdir()
    save_file({f"{DOWN}.weight": torch.ones(64, 128)}, folder / "model.safetensors")
    for config, refused in (({"r1": True, "online_r1_rotation": True}, True), ({"r1": True, "online_r1_rotation": False}, False)):
        (folder / "config.json").write_text(json.dumps({"spinquant_config": config}))
        if refused:
            with pytest.raises(EngineError, match=r"weights made by auto-round with activations that are rotated \(spinquant_config\)"):
                values(folder, DOWN, (64, 128))
        else:
            assert values(folder, DOWN, (64, 128)).eq(1).all()


def test_two_configurations_that_disagree_are_both_named(tmp_path: Path) -> None:
    folder = changed(tmp_path, "llmcompressor-w4a16", lambda stored: None)
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    said = (
        r"quantized by ModelOpt's FP8 by hf_quant_config\.json, but compressed-tensors \(pack-quantized\) by config\.json, which no engine"
    )
    with pytest.raises(EngineError, match=said):
        values(folder, DOWN, (64, 128))


def test_what_is_left_of_a_weight_beside_a_product_of_low_rank_is_refused(tmp_path: Path) -> None:
    def svdquant(stored: Tensors) -> None:
        stored[f"{DOWN}.svdquant_lora_a"] = torch.ones(4, 128)
        stored[f"{DOWN}.svdquant_lora_b"] = torch.ones(64, 4)

    for algorithm in ("NVFP4_SVD", "NVFP4"):
        folder = changed(tmp_path / algorithm, "modelopt-nvfp4", svdquant, quant_algo=algorithm)
        with pytest.raises(EngineError, match=r"down_proj\.weight: its U8 values in .* are codes, quantized by ModelOpt's NVFP4"):
            values(folder, DOWN, (64, 128))


def test_symmetric_awq_stores_the_same_zero_point_everywhere(tmp_path: Path) -> None:
    """As auto-round and GPTQModel write it: `zero_point` false, and 8 in every nibble."""

    def symmetric(stored: Tensors) -> None:
        for key in [key for key in stored if key.endswith("qzeros")]:
            stored[key] = torch.full_like(stored[key], -0x77777778)

    name = "autoround-awq4"
    own = {"quant_method": "awq", "version": "gemm", "zero_point": False, "sym": True}
    folder = changed(tmp_path, name, symmetric, **own)
    assert schemes(folder, QUERY) == ["int4, one scale per group of 32"]
    stored = load_file(folder / "model.safetensors")
    octets = stored[f"{QUERY}.qweight"].view(torch.uint8)
    nibbles = torch.stack((octets & 15, octets >> 4), -1).flatten(1).unflatten(1, (-1, 8))[:, :, [0, 4, 1, 5, 2, 6, 3, 7]].flatten(1)
    expected = (nibbles.float() - 8) * stored[f"{QUERY}.scales"].float().repeat_interleave(32, 0)
    torch.testing.assert_close(values(folder, QUERY, (64, 64)), expected.T, atol=0, rtol=0)
    with pytest.raises(
        EngineError, match=r"q_proj\.qzeros in .* has zero points other than 8, and config\.json says none; set zero_point to true there"
    ):
        values(changed(tmp_path / "asymmetric", name, lambda stored: None, **own), QUERY, (64, 64))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("modelopt-mixed", {"quant_algo": "MXFP8"}),
        ("autoround-fp8-static", {"packing_format": "auto_round:llm_compressor", "data_type": "mx_fp", "bits": 8}),
    ],
)
def test_fp8_with_scales_of_32_columns_is_named(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    def mxfp8(stored: Tensors) -> None:
        for key in [key for key in stored if key.startswith(f"{DOWN}.")]:
            del stored[key]
        stored |= {f"{DOWN}.weight": torch.ones(64, 128).to(torch.float8_e4m3fn), f"{DOWN}.weight_scale": torch.ones(64, 4).byte()}

    with pytest.raises(
        EngineError, match=r"down_proj\.weight: its F8_E4M3 values in .* are codes, quantized by .*, which no engine here runs"
    ):
        values(changed(tmp_path, name, mxfp8, **config), DOWN, (64, 128))


@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
def test_rows_beside_factors_of_inputs_have_finite_scales(tmp_path: Path, damage: float) -> None:
    def damaged(stored: Tensors) -> None:
        stored[f"{DOWN}.weight_scale"][-1] = damage

    folder = changed(tmp_path, "modelopt-int8-sq", damaged)
    assert f"{DOWN}.pre_quant_scale" in load_file(folder / "model.safetensors")
    with pytest.raises(EngineError, match=r"down_proj\.weight: a scale of its codes is not finite"):
        logits(folder, plan_for(folder, "int8_sq"))


def test_nf4_codes_that_are_missing_are_named(tmp_path: Path) -> None:
    folder = changed(tmp_path, "bitsandbytes-nf4-double", lambda stored: stored.pop(f"{DOWN}.weight"))
    with pytest.raises(EngineError, match=r"has no .*down_proj\.weight, which the codes of .*down_proj need"):
        values(folder, DOWN, (64, 128))


def test_nvfp4_scales_with_rows_and_columns_exchanged_are_named(tmp_path: Path) -> None:
    def transposed(stored: Tensors) -> None:
        stored[f"{DOWN}.weight_scale"] = stored[f"{DOWN}.weight_scale"].T.contiguous()

    with pytest.raises(EngineError, match=r"down_proj\.weight_scale in .* does not have as many scales for each of 64 rows"):
        values(changed(tmp_path, "modelopt-nvfp4", transposed), DOWN, (64, 128))


def test_an_empty_scale_of_an_input_is_named(tmp_path: Path) -> None:
    def emptied(stored: Tensors) -> None:
        stored[f"{DOWN}.input_scale"] = torch.zeros(0)

    source = open_weights(changed(tmp_path, "llmcompressor-w8a16", emptied))
    with pytest.raises(EngineError, match=r"down_proj\.input_scale in .* is empty; it must be a wide number"):
        source.input_scale(f"{DOWN}.input_scale")


def test_the_codes_of_another_tool_that_calls_itself_bitsandbytes_are_named(tmp_path: Path) -> None:
    """GPTQModel's names for the parts are others."""
    folder = changed(tmp_path, "bitsandbytes-int8", lambda stored: stored.pop(f"{DOWN}.SCB"))
    whole = json.loads((folder / "config.json").read_text())
    whole["quantization_config"] = {"quant_method": "bitsandbytes", "bits": 8, "format": "int8"}
    (folder / "config.json").write_text(json.dumps(whole))
    with pytest.raises(EngineError, match=r"down_proj\.weight: its I8 values in .* are codes, quantized by bitsandbytes \(int8\)"):
        values(folder, DOWN, (64, 128))


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": "NVFP4"}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "INT8"}, "int8"),
    ],
)
def test_a_cache_that_is_stated(tmp_path: Path, config: dict[str, Any], dtype: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    plan = checkpoint_plan(tmp_path)
    assert plan is not None
    assert plan.kv.dtype == dtype


@pytest.mark.parametrize(
    ("name", "part", "damage", "said"),
    [
        (
            "llmcompressor-nvfp4a16",
            "weight_global_scale",
            lambda scale: scale * 0,
            r"weight_global_scale in .* is 0; it must be a positive",
        ),
        ("llmcompressor-nvfp4a16", "weight_global_scale", lambda scale: scale * torch.inf, "is inf; it must be a positive number"),
        ("modelopt-nvfp4", "weight_scale_2", lambda scale: scale * torch.nan, "weight_scale_2 in .* is nan; it must be a positive"),
        (
            "modelopt-int4-awq",
            "pre_quant_scale",
            lambda scale: scale * torch.nan,
            r"a factor \(pre_quant_scale\) of its codes is not finite",
        ),
        ("llmcompressor-fp8-block", "weight", lambda codes: (codes.float() * torch.nan).to(codes.dtype), "down_proj.weight: a code of its"),
        ("llmcompressor-nvfp4a16", "weight_scale", lambda scale: scale.view(torch.uint8), r"of type U8 and has .*; it must be of F8_E4M3"),
    ],
)
def test_parts_that_are_no_numbers_are_named(tmp_path: Path, name: str, part: str, damage: Callable[[Tensor], Tensor], said: str) -> None:
    """Otherwise the engine's logits would be NaN, or those of weights that are all 0."""

    def damaged(stored: Tensors) -> None:
        stored[f"{DOWN}.{part}"] = damage(stored[f"{DOWN}.{part}"])

    folder = changed(tmp_path, name, damaged)
    with pytest.raises(EngineError, match=said):
        logits(folder, plan_for(folder, default_precision(folder, gpu=False)))


def test_factors_of_inputs_beside_fp8_weights(tmp_path: Path) -> None:
    """They are part of the values, and the weight's own codes take them as inputs that are multiplied first."""
    fp8 = dense("llmcompressor-w8a16")[f"{DOWN}.weight"].to(torch.float8_e4m3fn)
    factor = torch.linspace(0.5, 2.0, 128)

    def factored(stored: Tensors) -> None:
        parts = {"weight": fp8, "weight_scale": torch.tensor(0.5), "input_scale": torch.tensor(0.01), "pre_quant_scale": factor}
        for key in [key for key in stored if key.startswith(DOWN)]:
            del stored[key]
        stored |= {f"{DOWN}.{leaf}": tensor for leaf, tensor in parts.items()}

    folder = changed(tmp_path, "llmcompressor-w8a16", factored)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "modelopt",
        "quant_algo": "FP8",
        "exclude_modules": ["*self_attn*", "*gate*", "*up*"],
    }
    wide = {key: tensor.bfloat16() for key, tensor in dense("llmcompressor-w8a16").items() if not key.startswith(DOWN)}
    save_file(
        wide | {key: one for key, one in load_file(folder / "model.safetensors").items() if key.startswith(DOWN)},
        folder / "model.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(config))
    torch.testing.assert_close(values(folder, DOWN, (64, 128)), fp8.float() * 0.5 * factor, atol=0, rtol=1e-6)
    plan = plan_for(folder, default_precision(folder, gpu=False))
    assert str(plan.scheme_of(DOWN).inputs) == "fp8, one scale per token, a factor per column"
    reference = logits(folder, plan_for(folder, "fp32"))
    assert torch.nn.functional.cosine_similarity(logits(folder, plan).float(), reference).min() > 0.99


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        ({}, "fp32"),
        ({"quant_method": "compressed-tensors", "config_groups": {}, "format": "dense", "sparsity_config": {"format": "dense"}}, "fp32"),
    ],
    ids=["an empty statement", "pruned, not quantized"],
)
def test_a_configuration_that_quantizes_nothing(tmp_path: Path, config: dict[str, Any], precision: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": config}))
    assert default_precision(tmp_path, gpu=False) == precision


@pytest.mark.parametrize(
    ("leaf", "shape"),
    [("W_q", (64, 64)), ("weight._data", (64, 64)), ("codes", (64, 64)), ("dense_weights", (512,))],
    ids=["HQQ", "Quanto", "AQLM", "SpQR"],
)
def test_codes_that_are_called_otherwise_are_named(tmp_path: Path, leaf: str, shape: tuple[int, ...]) -> None:
    def renamed(stored: Tensors) -> None:
        del stored[f"{QUERY}.weight_scale"], stored[f"{QUERY}.weight_packed"], stored[f"{QUERY}.weight_shape"]
        stored[f"{QUERY}.{leaf}"] = torch.zeros(shape, dtype=torch.int8)

    folder = changed(tmp_path, "llmcompressor-w8a16", renamed, quant_method="another")
    with pytest.raises(EngineError, match=rf"q_proj\.{leaf}: its I8 values in .* are codes of .*q_proj\.weight, quantized by another"):
        values(folder, QUERY, (64, 64))


def test_sparse_weights_are_refused(tmp_path: Path) -> None:
    folder = changed(tmp_path, "llmcompressor-w8a16", lambda stored: None, sparsity_config={"format": "sparse-24-bitmask"})
    for act in (lambda: default_precision(folder, gpu=False), lambda: values(folder, QUERY, (64, 64)), lambda: values(folder, "a", (1, 1))):
        with pytest.raises(EngineError, match=r"sparse weights|are codes"):
            act()


def test_zero_points_of_a_byte_each(tmp_path: Path) -> None:
    """As compressed-tensors stored those of groups before it packed them."""
    name = "llmcompressor-w4a16-asym-gptq"

    def unpacked(stored: Tensors) -> None:
        for key in [key for key in stored if key.endswith("weight_zero_point")]:
            rows = stored[key.replace("zero_point", "scale")].shape[0]
            octets = stored[key].T.contiguous().view(torch.uint8)
            nibbles = torch.stack((octets & 15, octets >> 4), -1).flatten(-2).T[:rows]
            stored[key] = (nibbles.to(torch.int8) - 8).contiguous()

    folder, expected = changed(tmp_path, name, unpacked), dense(name)[f"{QUERY}.weight"]
    torch.testing.assert_close(values(folder, QUERY, tuple(expected.shape)), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("spelling", ["k_proj.k_scale", "k_scale", "k_proj.output_scale", "kv_scale"])
def test_the_scale_of_cached_keys_under_each_of_its_names(tmp_path: Path, spelling: str) -> None:
    attention = f"{LAYER}.self_attn"

    def with_scale(stored: Tensors) -> None:
        stored[f"{attention}.{spelling}"] = torch.tensor(0.25)

    source = open_weights(changed(tmp_path, "llmcompressor-w8a16", with_scale))
    assert source.kv_scale(f"{attention}.k_proj.k_scale") == 0.25


def test_what_mlx_writes_is_named(tmp_path: Path) -> None:
    """Its configuration has a place of its own in config.json."""

    def words(stored: Tensors) -> None:
        for key in [key for key in stored if key.startswith(f"{QUERY}.")]:
            del stored[key]
        stored[f"{QUERY}.weight"] = torch.zeros((64, 8), dtype=torch.uint32)

    folder = changed(tmp_path, "llmcompressor-w8a16", words)
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] = {"group_size": 64, "bits": 4}
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    for act in (lambda: default_precision(folder, gpu=False), lambda: values(folder, QUERY, (64, 64))):
        with pytest.raises(EngineError, match=r"quantized by MLX"):
            act()
