"""Figures that a GPU cannot reach are found, with the likely cause; what was recorded here is not called so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trtllm_bench.__main__ import main
from trtllm_engines.models.presets import PRESETS, preset_config
from trtllm_engines.quantization.precision import precisions
from trtllm_engines.quantization.registry import definition, definitions
from trtllm_results.compare import published
from trtllm_results.gpus import SHEETS, sheet_of
from trtllm_results.model_sizes import SIZES, canonical, size_of
from trtllm_results.plausibility import Claim, bytes_limit, flops_limit, judge
from trtllm_results.precision_names import our_precision
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store, read_rows

RECORDED = Path(__file__).resolve().parents[2] / "results" / "recorded"
CLAIM = Claim("NVIDIA H200", "llama-3.1-8b", "fp8", 1000, 100, 9446.2)


@pytest.mark.parametrize("name", sorted(set(SIZES) & set(PRESETS)))
def test_sizes_are_those_of_the_presets(name: str) -> None:
    config, size = preset_config(name), SIZES[name]
    assert (size.layers, size.hidden, size.heads, size.kv_heads, size.head_dim, size.intermediate, size.vocabulary) == (
        config.num_layers,
        config.hidden_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.intermediate_size,
        config.vocab_size,
    )


def test_counts_of_a_request() -> None:
    size = SIZES["llama-3.1-8b"]
    assert size.layer_weights == 6_979_321_856
    assert size.layer_weights + 2 * size.head_weights == pytest.approx(8.03e9, rel=1e-3), "parameters, embedding and norms included"
    assert SIZES["gptj-6b"].layer_weights + 2 * SIZES["gptj-6b"].head_weights == pytest.approx(6.05e9, rel=2e-3)
    assert size.kv_elements == 65_536
    assert size.request_flops(1000, 100) == pytest.approx(2 * 6.979e9 * 1099 + 2 * 0.5253e9 * 100 + 524_288 * 1099 * 1100 / 2, rel=1e-3)


def test_names_of_one_shape() -> None:
    names = {
        "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct nvidia/Llama-3.1-8B-Instruct-FP8 meta-llama/Meta-Llama-3-8B /models/llama-3-8b/ "
        "RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8-dynamic RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w4a16 llama3.1-8b llama3_1-8b "
        "hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4 llama_v3.1_8b",
        "llama-3.1-70b": "nvidia/Llama-3.3-70B-Instruct-FP4 llama3-70b",
        "llama-2-70b": "llama2-70b-99.9 llama2-70b-99 meta-llama/Llama-2-70b-chat-hf",
        "gptj-6b": "gptj-99 EleutherAI/gpt-j-6B gptj",
        "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.3",
        "qwen3-8b": "Qwen/Qwen3-8B-FP8",
    }
    assert {name: canonical(name) for name in SIZES} == {name: name for name in SIZES}
    assert {model: {canonical(name) for name in text.split()} for model, text in names.items()} == {model: {model} for model in names}
    others = (
        "no-such-model",
        "mistralai/Mistral-7B-Instruct-v0.1",
        "mistralai/Mixtral-8x7B-v0.1",
        "my-llama-3.1-8b",
        "meta-llama/Llama-4-8B",
    )
    assert [name for name in others if size_of(name)] == [], "of an earlier Mistral attention has a window"


def test_names_of_precisions_are_those_of_the_engines_schemes() -> None:
    left_out = {"NVFP4", "NVFP4_AWQ", "MXFP4"}
    for name, one in definitions().items():
        assert our_precision(name) == name
        assert {our_precision(algorithm) for algorithm in set(one.algorithms) - left_out} <= {name}
    assert [our_precision(name) for name in ("NVFP4", "awq", "")] == ["NVFP4", "awq", ""]


def test_limits_lie_between_what_was_measured_and_the_data_sheet() -> None:
    h200, a100 = sheet_of("h200_sxm"), sheet_of("NVIDIA A100-SXM4-80GB")
    assert h200 is not None
    assert a100 is not None
    assert flops_limit(h200, "fp8") == pytest.approx(1_408e12), "measured 1,265; data sheet 1,979"
    assert flops_limit(h200, "int8") == flops_limit(h200, "fp8"), "cuBLASLt reaches 867 in int8; the tensor cores are the same"
    assert 4.38e12 < bytes_limit(h200) <= 4.8e12
    assert flops_limit(a100, "bf16") == 312e12
    assert flops_limit(a100, "fp8") == 0


def test_the_published_figures_that_cannot_be_are_found_and_no_others() -> None:
    doubtful = {
        (one.source.split()[0], one.model, one.isl, one.osl, one.tp, one.concurrency) for one in published.load() if one.implausible
    }
    assert doubtful == {
        ("project", "llama-3-8b", 128, 128, 1, 0),
        ("vLLM", "llama-3.1-8b", 1000, 100, 1, 112),
        ("vLLM", "llama-3.1-8b", 2000, 100, 1, 64),
        ("vLLM", "llama-3.1-8b", 2000, 100, 2, 96),
        ("vLLM", "llama-3.1-8b", 4000, 100, 1, 32),
    }


def test_replicas_share_the_sequences_that_weights_are_read_for() -> None:
    """Eight copies with a sequence each read all weights eight times for what one copy reads once with eight sequences."""
    one = Claim("NVIDIA H200", "llama-3.1-8b", "bf16", 128, 256, 390.0, batch=1)
    copies = replace(one, output_tokens_per_s=8 * 390.0, gpus=8, batch=8, replicas=8)
    alone, together = judge(one), judge(copies)
    assert alone is not None
    assert together is not None
    assert together.needed == pytest.approx(alone.needed) == pytest.approx(390 * (2 * 6.979e9 + 0.5253e9), rel=0.01)
    assert judge(replace(copies, output_tokens_per_s=8 * 290.0)) is None, "290 x 15 GB are within 4.8 TB/s"
    assert judge(replace(copies, replicas=1)) is None, "eight ranks of one engine read an eighth each"
    few = judge(replace(copies, output_tokens_per_s=4 * 390.0, batch=4))
    assert few is not None
    assert few.needed == pytest.approx(alone.needed, rel=0.01), "four copies have none"
    row = Row(
        Cell("llama-3.1-8b", "bf16", 8, 128, 256, replicas=8), Environment(gpu="NVIDIA H200"), figures={"output_tokens_per_s": 3120.0}
    )
    assert row.implausible is not None


def test_int8_products_of_a_mix_are_no_false_alarm() -> None:
    assert judge(Claim("NVIDIA A100-SXM4-80GB", "llama-3.1-8b", "mixed", 128, 128, 12_085)) is None


def test_the_cause_is_told() -> None:
    doubt = judge(CLAIM)
    assert doubt is not None
    assert doubt.text == (
        "implausible: it implies 1,489 TFLOP/s where an H200 does at most 1,408 in fp8; likely prompts served from a prefix cache, "
        "or shorter prompts than told"
    )
    (brief,) = (one for one in published.load() if one.gpu.startswith("A100") and one.model == "llama-3-8b" and one.implausible)
    assert brief.output_tokens_per_s == 12_085
    assert brief.implausible is not None
    assert brief.implausible.needed == pytest.approx(350e12, rel=0.01)
    assert "INT8; the GPU has no fp8" in brief.implausible.text
    half = judge(replace(CLAIM, precision="bf16", isl=128, osl=128, output_tokens_per_s=40_000))
    assert half is not None
    assert "narrower number format than told" in half.cause
    weights_only = judge(replace(CLAIM, precision="int8_wo", isl=128, osl=128, output_tokens_per_s=26_889))
    assert weights_only is not None
    assert weights_only.cause == "a narrower number format than told (INT8 or FP8)"
    short = judge(replace(CLAIM, isl=1, osl=1000, output_tokens_per_s=120_000))
    assert short is not None
    assert "shorter outputs" in short.cause


def test_a_small_batch_is_held_to_the_bytes_of_its_weights() -> None:
    alone = replace(CLAIM, isl=128, osl=256, batch=1, kv_dtype="fp8")
    assert judge(replace(alone, output_tokens_per_s=465)) is None
    fast = judge(replace(alone, output_tokens_per_s=700))
    assert fast is not None
    assert (fast.what, fast.needed) == ("bytes", pytest.approx(700 * (6.979e9 + 0.5253e9 + 256 * 65_536), rel=1e-3))
    assert "speculation" in fast.cause
    assert judge(replace(alone, batch=2, output_tokens_per_s=700)) is None


@pytest.mark.parametrize(
    "claim",
    [
        replace(CLAIM, prompt_share=0.5),
        replace(CLAIM, gpus=2),
        replace(CLAIM, gpu="AMD EPYC"),
        replace(CLAIM, model="some-moe"),
        replace(CLAIM, precision="q4_k_m"),
        replace(CLAIM, output_tokens_per_s=0),
    ],
)
def test_what_is_possible_or_not_known_is_not_judged(claim: Claim) -> None:
    assert judge(claim) is None


@pytest.mark.parametrize("precision", sorted(set(precisions()) - {"fp32"}))
def test_every_precision_is_held_to_what_the_gpu_multiplies(precision: str) -> None:
    """Of weight-only precisions the products are in bf16. fp32 is left out: tensor cores may do it in another format."""
    form = "fp16" if precision == "fp16" else "fp8" if definition(precision).scheme.inputs.dtype or precision == "fp8_block" else "bf16"
    form = "fp8" if precision == "mixed" else form
    for gpu in SHEETS:
        sheet = sheet_of(gpu)
        assert sheet is not None
        formats = [form, "int8"] if precision == "mixed" else ["int8" if precision == "int8_sq" else form]
        limit = next(filter(None, (flops_limit(sheet, one) for one in (*formats, "bf16"))))
        at_limit = limit / SIZES["llama-3.1-8b"].request_flops(2048, 8) * 8
        claim = replace(CLAIM, gpu=gpu, precision=precision, isl=2048, osl=8)
        assert judge(replace(claim, output_tokens_per_s=0.99 * at_limit)) is None
        doubt = judge(replace(claim, output_tokens_per_s=1.01 * at_limit))
        assert doubt is not None
        assert (doubt.what, doubt.limit) == ("FLOP", limit)


@pytest.mark.parametrize(("name", "ours"), [("W4A16_AWQ", "int4"), ("w4a8_awq", "w4a8"), ("FP8", "fp8")])
def test_names_of_nvidia_are_held_to_the_same(name: str, ours: str) -> None:
    claim = replace(CLAIM, isl=128, osl=256, batch=1, kv_dtype="fp8", output_tokens_per_s=1500)
    doubt = judge(replace(claim, precision=name))
    assert doubt is not None
    assert doubt == judge(replace(claim, precision=ours))


def test_what_is_not_judged_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = Row(Cell("llama-3.1-8b", "fp8", 8, 128, 128), Environment(gpu="NVIDIA H200"), figures={"output_tokens_per_s": 100.0})
    others = [
        (replace(known, cell=replace(known.cell, model="mixtral-8x7b")), "the sizes of model 'mixtral-8x7b' are not known here"),
        (replace(known, cell=replace(known.cell, model="")), "no model is named"),
        (replace(known, environment=Environment(gpu="NVIDIA L4")), "no data sheet of GPU 'NVIDIA L4' is known here"),
        (replace(known, environment=Environment()), ""),
        (replace(known, figures={}), ""),
        (known, ""),
    ]
    assert [one.not_judged for one, _ in others] == [why for _, why in others]
    store = Store(tmp_path / "a")
    store.append(*[replace(one, row_id=str(index)) for index, (one, _) in enumerate(others)])
    for command in ("ls", "show"):
        assert main(["results", command, str(tmp_path / "a")]) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert said.count("not held against what ") == 3
        assert all(why in said for _, why in others)


def test_a_cache_of_four_bits_is_half_a_byte() -> None:
    long = replace(CLAIM, isl=1_000, osl=8_000, kv_dtype="fp8", output_tokens_per_s=16_000)
    assert judge(long) is not None
    assert judge(replace(long, kv_dtype="nvfp4")) is None


def test_weights_of_an_unknown_type_may_have_four_bits() -> None:
    alone = replace(CLAIM, precision="awq_marlin", isl=128, osl=256, batch=1, kv_dtype="fp8")
    assert judge(replace(alone, output_tokens_per_s=1000)) is None, "4.0 GB a step, 4.0 TB/s of an H200's 4.8"
    assert judge(replace(alone, output_tokens_per_s=1500)) is not None


def test_a_board_with_faster_memory_is_not_held_to_the_memory_of_its_class() -> None:
    alone = replace(CLAIM, isl=128, osl=256, batch=1, kv_dtype="fp8", output_tokens_per_s=500)
    assert judge(replace(alone, gpu="NVIDIA H100 80GB HBM3")) is not None
    assert judge(replace(alone, gpu="NVIDIA H100 PCIe")) is not None
    assert judge(replace(alone, gpu="NVIDIA H100 NVL")) is None, "3.76 TB/s, and its data sheet says 3.94"


def test_no_row_recorded_here_is_implausible() -> None:
    stores = sorted(path.parent for path in RECORDED.rglob("results.parquet"))
    rows = [row for store in stores for row in read_rows(store)]
    assert len(rows) > 50
    assert sum(row.environment.gpu != "" and size_of(row.cell.model) is not None for row in rows) > 50
    assert [(row.cell.label, row.implausible.text) for row in rows if row.implausible] == []
    tripled = [
        replace(row, figures={**row.figures, "output_tokens_per_s": 3 * row.figures["output_tokens_per_s"]}) for row in rows if row.figures
    ]
    assert sum(row.implausible is not None for row in tripled) > 10, "the check is not a dead letter on these rows"


def test_a_stored_row_carries_the_mark_once() -> None:
    row = Row(Cell("llama-3.1-8b", "fp8", 112, 1000, 100), Environment(gpu="NVIDIA H200"), figures={"output_tokens_per_s": 9446.2})
    stored = row.checked()
    assert stored.warnings[0].startswith("implausible: it implies 1,489 TFLOP/s")
    assert stored.checked().warnings == stored.warnings
    assert replace(row, figures={"output_tokens_per_s": 7000.0}).checked().warnings == ()
    assert replace(row, figures={**row.figures, "prefix_hit_ratio": 0.9}).checked().warnings == ()
