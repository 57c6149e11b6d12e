"""Weights as codes in an engine: drawn, rounded, stacked, split over ranks, columns in another order; and checkpoints that lack a part."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from compiler_models import LLAMA, MODELS, PROFILE
from quantized_checkpoints import FOLDER
from safetensors.torch import load_file, save_file
from test_quantized_checkpoints import SCHEMES, compiled, expected, in_fp32, logits
from torch import Tensor

from trtllm_engines.checkpoints import open_weights
from trtllm_engines.checkpoints.checkpoint_precision import checkpoint_plan, plan_for
from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import ParallelLayout, Plan
from trtllm_engines.engine.build import build
from trtllm_engines.engine.fits import products_of
from trtllm_engines.engine.folder import load_engine, rebuild_command
from trtllm_engines.errors import EngineError
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.quantization import named_plan
from trtllm_engines.quantization.precision_map import check_entries_decide
from trtllm_engines.quantization.registry import EXACT_CODES, definition, definitions
from trtllm_engines.quantization.rounding import rounded
from trtllm_engines.quantization.scheme import Codes, ModuleRule, QuantScheme
from trtllm_kernels.references.codes import weight_values

CPU = torch.device("cpu")
SCHEMES_OF_CODES = [name for name, one in definitions().items() if EXACT_CODES in one.recipes]
LLAMA_128 = replace(LLAMA, num_layers=2, hidden_size=128, num_heads=8, num_kv_heads=4, intermediate_size=256, vocab_size=96)


@cache
def plan_of(scheme: str, tp: int = 1, config: str = "") -> Plan:
    model = MODELS[config] if config else LLAMA_128
    return compile_model(model, scheme, PROFILE, weights_source={"kind": "dummy", "seed": 0}, layout=ParallelLayout(tp)).plan


def values_of(plan: Plan, weight: str, rank: int = 0) -> Tensor:
    """fp32 [N, K] of a weight of drawn codes, as the engine's product takes it."""
    prefix = weight.removesuffix("weight")
    names = ("weight", "weight_scale", "group_scale", "weight_zero")
    made = {name: assemble(plan, f"{prefix}{name}", DummyWeights(), CPU, rank) for name in names if f"{prefix}{name}" in plan.weights}
    assert all(tensor.is_contiguous() for tensor in made.values())  # as kernels take them
    return weight_values(made.pop("weight"), plan.schemes[weight].inputs.dtype or "bf16", **made)


@pytest.mark.parametrize("scheme", SCHEMES_OF_CODES)
def test_drawn_codes_have_the_deviation_of_drawn_weights(scheme: str) -> None:
    plan = plan_of(scheme)
    for weight, rows in (("model.layers.0.mlp.down_proj.weight", 128), ("model.layers.1.self_attn.qkv_proj.weight", 256)):
        values = values_of(plan, weight)
        columns = values.shape[1]
        assert values.shape == (rows, 256 if rows == 128 else 128)
        assert torch.equal(values, values_of(plan, weight))
        assert abs(float(values.std()) * math.sqrt(columns) - 1) < (0.15 if scheme == "fp8_block" else 0.03)  # a scale or two
        assert abs(float(values.mean())) * math.sqrt(columns) < 0.03
        assert not torch.equal(values, values_of(plan, weight.translate(str.maketrans("01", "10"))))


@pytest.mark.parametrize("scheme", SCHEMES_OF_CODES)
def test_ranks_have_parts_of_the_codes_of_one(scheme: str) -> None:
    whole, split = plan_of(scheme), plan_of(scheme, tp=2)
    down = "model.layers.0.mlp.down_proj.weight"
    columns = [values_of(split, down, rank) for rank in range(2)]
    torch.testing.assert_close(torch.cat(columns, 1), values_of(whole, down), rtol=1e-6, atol=0)
    gate_up = "model.layers.0.mlp.gate_up_proj.weight"
    rows = [values_of(split, gate_up, rank) for rank in range(2)]
    torch.testing.assert_close(torch.cat(rows), values_of(whole, gate_up), rtol=1e-6, atol=0)  # gate and up rows alternate
    qkv = [values_of(split, "model.layers.0.self_attn.qkv_proj.weight", rank) for rank in range(2)]
    query, key, value = values_of(whole, "model.layers.0.self_attn.qkv_proj.weight").split((128, 64, 64))
    for rank, part in enumerate(qkv):
        expected = torch.cat([one.chunk(2)[rank] for one in (query, key, value)])
        torch.testing.assert_close(part, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        (Codes("int4", "group", 32), 1 / 15),
        (Codes("int4", "group", 32, True), 1 / 14),
        (Codes("int8", "row"), 1 / 253),
        (Codes("int8", "group", 64, True, "fp16"), 1 / 240),
        (Codes("fp4", "group", 16, scale_dtype="fp8", tensor_scale=True), 1 / 5.6),
        (Codes("fp4", "group", 32, scale_dtype="e8m0"), 1 / 3.9),
        (Codes("nf4", "group", 64), 1 / 6.5),
        (Codes("fp8", "block", 32), 1 / 16),
    ],
)
def test_wide_weights_are_rounded_to_the_nearest_code(kind: Codes, step: float) -> None:
    torch.manual_seed(0)
    wide = torch.randn(96, 128)
    codes = rounded("w", (96, 128), kind, lambda: wide)
    error = (codes.values() - wide).abs()
    groups = wide.abs().unflatten(1, (-1, kind.group_size or 128)).amax(2).repeat_interleave(kind.group_size or 128, 1)
    if kind.granularity == "block":
        groups = groups.unflatten(0, (-1, 32)).amax(1).repeat_interleave(32, 0)
    assert float((error / groups).max()) < step * 1.01


def test_rows_that_groups_do_not_divide_have_smaller_ones() -> None:
    narrow = replace(LLAMA_128, hidden_size=192)
    plan = compile_model(narrow, "int4", PROFILE, weights_source={"kind": "dummy", "seed": 0}).plan
    sizes = {weight: scheme.weights.group_size for weight, scheme in plan.schemes.items() if scheme.weights}
    assert sizes["model.layers.0.mlp.gate_up_proj.weight"] == 64
    assert sizes["model.layers.0.mlp.down_proj.weight"] == 128
    with pytest.raises(EngineError, match=r"mlp\.down_proj\.weight: a weight of 64 x 96 cannot be stored as int4; .*multiples of 64"):
        plan_of("int4", config="llama")
    exact = replace(named_plan("int4"), smaller_groups=False)
    with pytest.raises(EngineError, match=r"q_proj\.weight has 192 columns, which do not divide into groups of 128"):
        compile_model(narrow, exact, PROFILE, weights_source={"kind": "dummy", "seed": 0})


def test_names_of_nvidia_are_the_schemes() -> None:
    expected = {"int4_awq": "int4", "W4A16_GPTQ": "int4", "W8A16": "int8_wo", "W4A8_AWQ": "w4a8", "NVFP4": "nvfp4_wo"}
    expected |= {
        "W4A16_MXFP4": "mxfp4_wo",
        "FP8_BLOCK_SCALES": "fp8_block",
        "MIXED_PRECISION": "mixed",
        "NO_QUANT": "bf16",
        "no_quant": "bf16",
    }
    assert {alias: definition(alias).name for alias in expected} == expected
    assert named_plan("W4A16_AWQ").name == "int4"
    with pytest.raises(EngineError, match="precision mixed has a scheme for each product; say which"):
        named_plan("mixed")


def copied(tmp_path: Path, name: str) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path / name
    shutil.copytree(FOLDER / name, folder)
    return folder, load_file(folder / "model.safetensors")


def shuffled(tensors: dict[str, Tensor], seed_of: Callable[[str], int]) -> None:
    """Gives each module's columns their groups in another order."""
    for key in [key for key in tensors if key.endswith("g_idx")]:
        generator = torch.Generator().manual_seed(seed_of(key))
        tensors[key] = tensors[key][torch.randperm(len(tensors[key]), generator=generator)]


def test_columns_in_another_order_are_gathered_first(tmp_path: Path) -> None:
    folder, tensors = copied(tmp_path, "autoround-gptq4-asym")
    shuffled(tensors, lambda key: len(tensors[key]))
    save_file(tensors, folder / "model.safetensors")
    plan = plan_for(folder, "int4")
    assert str(plan.scheme_of("model.layers.0.mlp.up_proj").inputs) == "wide, columns in order"
    torch.testing.assert_close(logits(folder, in_fp32(plan)), expected(str(folder))[::5], atol=2e-5, rtol=1e-4)
    ops = [op.name for op in compiled(folder, plan).ops if op.op == "arrange_columns"]
    assert len(ops) == 4
    quant = replace(named_plan("int4"), rules=(ModuleRule(".*", plan.scheme_of("model.layers.0.mlp.up_proj")),))
    with pytest.raises(EngineError, match=r"o_proj\.weight was quantized with its columns in another order .*use --tp 1"):
        compile_model(LLAMA_128, quant, PROFILE, weights_source={"kind": "test"}, layout=ParallelLayout(2))
    shuffled(tensors, lambda key: len(key) + ("k_proj" in key))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(EngineError, match=r"q_proj\.weight and .*k_proj\.weight have different column orders \(g_idx\)"):
        logits(folder, in_fp32(plan))


def test_columns_of_compressed_tensors_in_another_order(tmp_path: Path) -> None:
    folder, tensors = copied(tmp_path, "llmcompressor-w4a16")
    for key in [key for key in tensors if key.endswith("weight_shape")]:
        tensors[key.replace("weight_shape", "weight_g_idx")] = torch.arange(int(tensors[key][1]), dtype=torch.int32) // 32
    shuffled(tensors, lambda key: len(tensors[key]))
    save_file(tensors, folder / "model.safetensors")
    torch.testing.assert_close(logits(folder, in_fp32(plan_for(folder, "int4"))), expected(str(folder))[::5], atol=2e-5, rtol=1e-4)


def test_configurations_in_files_of_their_own(tmp_path: Path) -> None:
    for name, file, renamed in (
        ("autoround-gptq3", "quantize_config.json", {}),
        ("autoround-awq4", "quant_config.json", {"bits": "w_bit", "group_size": "q_group_size"}),
    ):
        folder, _ = copied(tmp_path, name)
        config = json.loads((folder / "config.json").read_text())
        apart = config.pop("quantization_config")
        del apart["quant_method"]
        (folder / "config.json").write_text(json.dumps(config))
        (folder / file).write_text(json.dumps({renamed.get(key, key): value for key, value in apart.items()}))
        plan, inside = checkpoint_plan(folder), checkpoint_plan(FOLDER / name)
        assert plan is not None
        assert inside is not None
        assert plan == replace(inside, source=file)


def test_mixed_parts_of_one_product_are_refused_by_name() -> None:
    plan = named_plan("int4")
    other = QuantScheme("int4", Codes("int4", "group", 32, True, "fp16"))
    quant = replace(plan, rules=(ModuleRule(r".*k_proj", other), *plan.rules))
    with pytest.raises(EngineError, match=r"q_proj \(int4\), .*k_proj \(int4\), .*are quantized differently"):
        compile_model(LLAMA_128, quant, PROFILE, weights_source={"kind": "dummy", "seed": 0})
    up = replace(plan, rules=(ModuleRule(r".*up_proj", other), *plan.rules))
    products = compile_model(LLAMA_128, up, PROFILE, weights_source={"kind": "dummy", "seed": 0}).plan.schemes
    assert {"model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight"} <= products.keys()


@pytest.mark.parametrize(
    ("name", "lost", "said"),
    [
        ("llmcompressor-w4a16", "mlp.down_proj.weight_scale", "has no .*mlp.down_proj.weight_scale, which the codes of"),
        ("llmcompressor-nvfp4a16", "mlp.up_proj.weight_global_scale", "has no .*mlp.up_proj.weight_global_scale"),
        ("autoround-gptq3", "self_attn.q_proj.scales", "has no .*self_attn.q_proj.scales"),
        ("autoround-awq4", "self_attn.o_proj.qzeros", "has no .*self_attn.o_proj.qzeros"),
        ("modelopt-int4-awq", "self_attn.v_proj.weight_scale", "has no .*self_attn.v_proj.weight_scale"),
        ("bitsandbytes-int8", "self_attn.k_proj.SCB", "has no .*self_attn.k_proj.SCB"),
        ("bitsandbytes-nf4-double", "self_attn.k_proj.weight.absmax", "has no .*self_attn.k_proj.weight.absmax"),
    ],
)
def test_a_missing_part_is_named(tmp_path: Path, name: str, lost: str, said: str) -> None:
    folder, tensors = copied(tmp_path, name)
    del tensors[f"model.layers.0.{lost}"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(EngineError, match=said):
        checkpoint_plan(folder)
    with pytest.raises(EngineError, match=said):
        plan_for(folder, "bf16")


def test_groups_and_orders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder, tensors = copied(tmp_path, "llmcompressor-w4a16")
    scale = "model.layers.0.mlp.down_proj.weight_scale"
    save_file({**tensors, scale: tensors[scale][:, :3].contiguous()}, folder / "model.safetensors")
    with pytest.raises(EngineError, match=r"down_proj\.weight in .* has 128 columns and scales for 3 groups, which do not divide"):
        checkpoint_plan(folder)
    folder, tensors = copied(tmp_path, "autoround-gptq4-asym")
    g_idx = "model.layers.0.mlp.down_proj.g_idx"
    save_file({**tensors, g_idx: tensors[g_idx] // 2}, folder / "model.safetensors")
    with pytest.raises(EngineError, match=r"down_proj\.g_idx in .* does not give each of 4 groups 32 columns"):
        checkpoint_plan(folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["desc_act"] = True
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: tensor for key, tensor in tensors.items() if key != g_idx}, folder / "model.safetensors")
    with pytest.raises(EngineError, match=r"down_proj\.weight in .* another order \(desc_act\), and .*g_idx is missing"):
        checkpoint_plan(folder)


def test_scales_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    folder, tensors = copied(tmp_path, "llmcompressor-w4a16")
    tensors["model.layers.0.mlp.up_proj.weight_scale"][3, 1] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(EngineError, match=r"weight model\.layers\.0\.mlp\.up_proj\.weight: a scale of its codes is not finite"):
        logits(folder, plan_for(folder, "int4"))
    with pytest.raises(EngineError, match=r"up_proj\.weight .*is not finite"):
        logits(folder, plan_for(folder, "fp32"))


def test_codes_are_kept_by_schemes_that_differ_in_inputs(tmp_path: Path) -> None:
    name = "llmcompressor-w4afp8"
    assert SCHEMES[name][0] == "w4a8"
    plan = plan_for(FOLDER / name, "int4")
    assert plan.scheme_of("model.layers.0.mlp.up_proj") == QuantScheme("int4", Codes("int4", "group", 32, scale_dtype="bf16"))
    torch.testing.assert_close(logits(name, in_fp32(plan)), logits(name, plan_for(FOLDER / name, "fp32")), atol=2e-5, rtol=1e-4)
    source = open_weights(FOLDER / name)
    assert source.stored("model.norm.weight", (64,), Codes("int4", "row"), CPU) is None


MAP = """
"model.layers.0.*" = "bf16"
"*.down_proj" = "W8A16"
"*.mlp.*" = "int4"
"""


def test_a_file_says_the_precision_of_each_product(tmp_path: Path) -> None:
    path = tmp_path / "map.toml"
    path.write_text(MAP)
    plan = plan_for(None, "mixed", precision_map=path)
    names = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.down_proj", "model.layers.1.mlp.up_proj", "model.layers.1.self_attn.q_proj"]
    assert [plan.scheme_of(name).name for name in names] == ["bf16", "int8_wo", "int4", "bf16"]
    model, every = FOLDER / "llmcompressor-w4a16", write(tmp_path, '"*_proj" = "int4"')
    folder = build(model, "mixed", out=tmp_path / "e", profile=PROFILE, precision_map=every)
    built = load_engine(folder)
    assert built.plan.schemes["model.layers.0.mlp.down_proj.weight"].weights == Codes("int4", "group", 32, scale_dtype="bf16")
    assert "--precision mixed" in rebuild_command(built.plan, folder)
    assert "--precision-map" in rebuild_command(built.plan, folder)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"*.dense" = "int4"', r"'\*\.dense' has no effect: no GEMM of the model has such a name; names are such as model\.layers\.0\.mlp"),
        ('"*" = "int4"\n"*.down_proj" = "int8_wo"', r"'\*\.down_proj' has no effect: entries above it decide all that it fits"),
        ('"lm_head" = "int8_wo"', "'lm_head' has no effect: lm_head stays bf16 in every precision"),
        ('"*_proj" = "int4"\n"lm_head" = "bf16"\n"*" = "bf16"', ""),
    ],
)
def test_entries_that_decide_nothing_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path, products = write(tmp_path, text), products_of(resolve_model(FOLDER / "llmcompressor-w4a16").config)
    if not said:
        return check_entries_decide(path, products)
    with pytest.raises(EngineError, match=said):
        build(FOLDER / "llmcompressor-w4a16", "mixed", out=tmp_path / "e", profile=PROFILE, precision_map=path)
    return None


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "other.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"*" = 4', r"other\.toml: '\*' is 4; it must be a precision, such as"),
        ('"*" = "int5"', r"other\.toml: '\*': unknown precision 'int5'; supported are"),
        ('"*" = "fp16"', r"other\.toml: '\*' is fp16; it must be bf16 or a precision with codes"),
        ("", r"other\.toml has 0 entries"),
        ("*", r"other\.toml is not TOML"),
    ],
)
def test_entries_that_do_not_fit_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        plan_for(None, "mixed", precision_map=write(tmp_path, text))
    with pytest.raises(EngineError, match=r"--precision-map .*none\.toml is not a file"):
        plan_for(None, "mixed", precision_map=tmp_path / "none.toml")
