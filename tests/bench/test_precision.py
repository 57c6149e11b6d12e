"""Precision and KV cache type on the command line: what goes together runs, what does not is one sentence before anything is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import refused, run

from trtllm_bench import machine
from trtllm_bench.sweep.spec import load_spec
from trtllm_engines.checkpoints.checkpoint_precision import plan_for
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.models.presets import preset_config
from trtllm_engines.quantization import check_types, named_plan
from trtllm_results.store.table import Store

pytestmark = pytest.mark.usefixtures("own_cache")

QUICK = ("--isl", 8, "--osl", 4, "--num-requests", 2, "--device", "cpu", "--max-lag-ms", 1000)


def test_a_sweeps_precision_is_the_checkpoints_wherever_its_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "FP8"}}))
    file = tmp_path / "sweep.toml"
    rest = {"precision": "bf16", "batch_size": 1, "isl": 4, "osl": 2}
    file.write_text(f'model = "{tmp_path}"\n')
    assert load_spec({"model": str(tmp_path)}, defaults=rest).axis("precision") == ("fp8",)
    assert load_spec({}, file, defaults=rest).axis("precision") == ("fp8",)
    assert load_spec({"precision": "fp32"}, file, defaults=rest).axis("precision") == ("fp32",)
    assert load_spec({"model": "tiny-llama"}, file, defaults=rest).axis("precision") == ("bf16",)


def test_a_sweep_over_precisions_runs_on_the_cpu_and_records_each_cache(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    grid = ["--precision", "fp8,fp8_rowwise,bf16", "--batch-size", 2, *QUICK]
    code, _, err = run(capsys, "sweep", "--model", "tiny-llama", *grid, "--out", tmp_path / "s")
    assert code == 0, err
    cells = {row.cell.precision: row.cell.kv_dtype for row in Store(tmp_path / "s").rows() if row.status == "ok"}
    assert cells == {"fp8": "fp8", "fp8_rowwise": "fp8", "bf16": "bf16"}


def test_the_cache_type_may_be_chosen_apart_from_the_precision(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for precision, cache in (("bf16", "fp8"), ("fp8", "bf16")):
        types = ["--precision", precision, "--kv-dtype", cache]
        out = ["--out", tmp_path / "store", "--report-json", tmp_path / f"{precision}.json"]
        assert run(capsys, "throughput", "--model", "tiny-llama", *types, *QUICK, *out)[0] == 0
    reported = [json.loads((tmp_path / f"{precision}.json").read_text())["engine"] for precision in ("bf16", "fp8")]
    assert [(engine["quantization"], engine["kv_cache_dtype"]) for engine in reported] == [(None, "fp8"), ("FP8", "bf16")]
    assert [(row.cell.precision, row.cell.kv_dtype) for row in Store(tmp_path / "store").rows()] == [("bf16", "fp8"), ("fp8", "bf16")]
    assert run(capsys, "latency", "--model", "tiny-llama", *types, *QUICK)[0] == 0
    tokens = ["--token-ids", "1,2,3", "--max-tokens", 3, "--max-seq-len", 16, "--device", "cpu"]
    assert run(capsys, "generate", "--model", "tiny-llama", *types, *tokens)[0] == 0


def test_an_engine_says_its_types_and_how_to_build_it_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    types = ["--precision", "bf16", "--kv-dtype", "fp8"]
    code, out, _ = run(capsys, "build", "--model", "tiny-llama", "--arch", "cpu", *types, "--max-seq-len", 64, "--out", tmp_path / "e")
    assert code == 0
    assert "bf16, KV cache fp8" in out
    found = json.loads(run(capsys, "inspect", tmp_path / "e", "--json")[1])
    assert (found["precision"], found["kv_dtype"]) == ("bf16", "fp8")
    assert "--precision bf16" in found["rebuild"]
    assert "--kv-dtype fp8" in found["rebuild"]
    said = refused(capsys, "throughput", "--engine-dir", tmp_path / "e", "--kv-dtype", "bf16", *QUICK)
    assert "--engine-dir already says what the KV cache is" in said
    said = refused(capsys, "generate", "--engine-dir", tmp_path / "e", "--kv-dtype", "bf16", "--token-ids", "1", "--device", "cpu")
    assert "types and weights are fixed" in said


def test_an_engine_says_what_attention_of_prompts_multiplies(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked, engine = ["--precision", "fp8", "--context-attention", "fp8"], tmp_path / "e"
    code, out, _ = run(capsys, "build", "--model", "tiny-llama", "--arch", "cpu", *asked, "--max-seq-len", 64, "--out", engine)
    assert code == 0
    assert "fp8, KV cache fp8, context attention fp8" in out
    found = json.loads(run(capsys, "inspect", engine, "--json")[1])
    assert found["context_attention"] == "fp8"
    assert "--context-attention fp8" in found["rebuild"]
    said = refused(capsys, "throughput", "--engine-dir", engine, "--context-attention", "wide", *QUICK)
    assert "--engine-dir already says what attention of prompts multiplies" in said
    for command in ("build", "throughput"):
        types = ["--precision", "bf16", "--context-attention", "fp8", "--out", tmp_path / "none"]
        assert "multiplies the codes of an fp8 KV cache and this one is in bf16" in refused(
            capsys, command, "--model", "tiny-llama", *types
        )


def test_a_sweep_varies_what_attention_of_prompts_multiplies(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    grid = ["--precision", "fp8", "--context-attention", "wide,fp8", "--batch-size", 1, *QUICK]
    code, _, err = run(capsys, "sweep", "--model", "tiny-llama", *grid, "--out", tmp_path / "s")
    assert code == 0, err
    rows = list(Store(tmp_path / "s").rows())
    assert [(row.varied, row.cell.settings.get("context_attention")) for row in rows] == [
        ({"context_attention": "wide"}, "wide"),
        ({"context_attention": "fp8"}, "fp8"),
    ]
    assert rows[1].label.endswith("context-attention=fp8")
    assert len({row.cell.engine_fingerprint for row in rows}) == 2


@pytest.mark.parametrize("command", ["build", "sweep", "throughput", "latency"])
@pytest.mark.parametrize(
    ("precision", "kv_dtype", "says"),
    [
        ("fp32", "fp8", "an fp8 KV cache needs 16-bit activations"),
        ("fp8", "fp16", "an engine in fp8 can keep its KV cache in bf16, fp8 or int8, not fp16"),
        ("bf16", "fp32", "an engine in bf16 can keep its KV cache in bf16, fp8 or int8, not fp32"),
        ("bf16", "fp7", "unknown KV cache dtype 'fp7'; supported are auto, fp32, fp16, bf16, fp8"),
    ],
)
def test_types_that_do_not_go_together_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, precision: str, kv_dtype: str, says: str
) -> None:
    types = ["--precision", precision, "--kv-dtype", kv_dtype]
    assert says in refused(capsys, command, "--model", "tiny-llama", *types, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("precision", "kv_dtype", "what", "cure"),
    [
        ("fp8", "auto", "precision fp8", "bf16"),
        ("fp8_rowwise", "bf16", "precision fp8_rowwise", "bf16"),
        ("bf16", "fp8", "an fp8 KV cache", "--kv-dtype bf16 or --kv-dtype int8"),
        ("int8_sq", "fp8", "an fp8 KV cache", "--kv-dtype bf16 or --kv-dtype int8"),
    ],
)
def test_fp8_for_a_gpu_without_it_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, precision: str, kv_dtype: str, what: str, cure: str
) -> None:
    types = ["--precision", precision, "--kv-dtype", kv_dtype, "--arch", "sm_80,sm_90"]
    said = refused(capsys, "build", "--model", "tiny-llama", *types, "--out", tmp_path / "out")
    assert f"{what} needs sm_89 or later and sm_80 has no fp8; choose {cure}, or other architectures" in said


@pytest.mark.parametrize("precision", ["fp8_wo", "fp8_block", "nvfp4_wo"])
def test_weights_in_fp8_or_with_such_scales_need_no_gpu_that_has_the_type(precision: str) -> None:
    check_types(precision, arches=("sm_80",))


@pytest.mark.parametrize(
    ("arches", "cache"), [(("sm_80",), "bf16"), (("sm_80", "sm_90"), "bf16"), (("sm_89", "sm_90"), "fp8"), (("cpu",), "fp8")]
)
def test_the_automatic_cache_is_one_that_every_gpu_has(tmp_path: Path, arches: tuple[str, ...], cache: str) -> None:
    """int8_sq has an fp8 cache by default, and this checkpoint states one."""
    assert named_plan("int8_sq", arches=arches).kv.dtype == cache
    (tmp_path / "hf_quant_config.json").write_text(json.dumps({"quantization": {"kv_cache_quant_algo": "FP8"}}))
    assert plan_for(tmp_path, "bf16", arches=arches).kv.dtype == cache


def test_an_engine_without_an_fp8_cache_is_compiled_where_nobody_asked_for_one() -> None:
    source, profile = {"kind": "dummy", "seed": 0}, Profile(2, 64, 64)
    assert compile_model(preset_config("tiny-llama"), "int8_sq", profile, arches=("sm_80",), weights_source=source).plan.kv_dtype == "bf16"


@pytest.mark.parametrize(("capability", "state"), [("8.0", "limit"), ("8.9", "ok"), ("9.0", "ok")])
def test_doctor_knows_which_gpus_have_fp8(capability: str, state: str) -> None:
    check = next(machine._precisions([{"compute_capability": capability}]))
    assert check.state == state
    assert ("which has no fp8" in check.found) == (state == "limit")
    assert "fp8 on the CPU" in next(machine._precisions([])).found
