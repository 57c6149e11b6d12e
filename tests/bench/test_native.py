"""The commands on our own engine: build, inspect, refit, generate and the measurements, and every mistake a user can make with them."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from command_line import refused, run

from trtllm_bench.__main__ import main
from trtllm_engines.engine import verified
from trtllm_results.store.table import Store

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("native") / "tiny.engine"
    ranges = ["--max-batch-size", "4", "--max-num-tokens", "64", "--max-seq-len", "64"]
    assert main(["build", "--model", "tiny-llama", "--precision", "fp32", "--arch", "cpu", *ranges, "--out", str(folder)]) == 0
    return folder


def test_an_engine_measures_and_reports_its_steps(capsys: pytest.CaptureFixture[str], engine: Path, tmp_path: Path) -> None:
    shape = ["--isl", 16, "--osl", 8, "--num-requests", 12, "--device", "cpu", "--max-lag-ms", 1000]
    arguments = ["--report-json", tmp_path / "r.json", "--out", tmp_path / "store"]
    code, out, _ = run(capsys, "throughput", "--engine-dir", engine, *shape, "--concurrency", 4, *arguments)
    assert code == 0
    assert "tiny-llama fp32 b4 16/8" in out
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["engine"] | {"version": ""} == {
        "model": "tiny-llama",
        "model_path": None,
        "engine_dir": str(engine),
        "version": "",
        "backend": "native",
        "dtype": "fp32",
        "kv_cache_dtype": "fp32",
        "quantization": None,
        "max_sequence_length": 64,
    }
    assert report["world_info"]["max_num_tokens"] == 64
    row = Store(tmp_path / "store").rows()[0]
    assert row.figures["output_tokens"] == 12 * 8
    assert row.figures["output_length_ratio"] == 1
    assert 1 < row.figures["batch_mean"] <= 4
    assert 0 < row.figures["kv_used_peak_ratio"] <= 1
    assert row.cell.weights_hash == "dummy-0"
    steps = Store(tmp_path / "store").read_side("steps", row)
    assert steps is not None
    assert sum(steps.column("context_tokens").to_pylist()) == 12 * 16
    assert sum(steps.column("decode_tokens").to_pylist()) == 12 * 7
    assert steps.num_rows == row.figures["steps"]


def test_a_dataset_beyond_the_vocabulary_is_refused(capsys: pytest.CaptureFixture[str], engine: Path, tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"input_ids":[1,511],"output_tokens":2}\n{"input_ids":[3,512],"output_tokens":2}\n')
    code, _, err = run(capsys, "throughput", "--engine-dir", engine, "--device", "cpu", "--dataset", tmp_path / "d.jsonl")
    assert code == 3
    assert "the workload has token id 512 and tiny-llama knows 0 to 511; make the dataset with prepare-dataset --vocab-size 512" in err


def test_verify_finds_a_change_that_left_size_and_time(
    capsys: pytest.CaptureFixture[str], engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verified, "_CLOCK_TICK_NS", 0)
    copy = Path(shutil.copytree(engine, tmp_path / "copy.engine"))
    arguments = ["latency", "--engine-dir", copy, "--isl", 4, "--osl", 2, "--num-requests", 1, "--device", "cpu", "--max-lag-ms", 1000]
    assert run(capsys, *arguments)[0] == 0
    file = copy / "constants.safetensors"
    before, content = file.stat(), bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert run(capsys, *arguments)[0] == 0
    code, _, err = run(capsys, *arguments, "--verify")
    assert code == 3
    assert "constants.safetensors was altered" in err


def test_the_fingerprint_tells_engines_apart_and_not_runs(capsys: pytest.CaptureFixture[str], engine: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.engine"
    run(capsys, "build", "--model", "tiny-llama", "--precision", "bf16", "--arch", "cpu", "--max-seq-len", 64, "--out", other)
    for folder in (engine, engine, other):
        shape = ["--isl", 4, "--osl", 2, "--num-requests", 1, "--device", "cpu", "--max-lag-ms", 1000]
        assert run(capsys, "latency", "--engine-dir", folder, *shape, "--out", tmp_path / "store")[0] == 0
    first, second, third = (row.cell for row in Store(tmp_path / "store").rows())
    assert first.engine_fingerprint == second.engine_fingerprint != third.engine_fingerprint
    assert (first.precision, third.precision, third.kv_dtype) == ("fp32", "bf16", "bf16")


def test_generate_prints_tokens_and_json(capsys: pytest.CaptureFixture[str], engine: Path) -> None:
    arguments = ["generate", "--engine-dir", engine, "--token-ids", "1,2,3", "--max-tokens", 5, "--ignore-eos", "--device", "cpu"]
    code, out, err = run(capsys, *arguments)
    assert code == 0
    assert "5 tokens (length)" in err
    code, text, _ = run(capsys, *arguments, "--json")
    answer = json.loads(text)
    assert code == 0
    assert answer["token_ids"] == [int(token) for token in out.split()]
    assert answer["token_times_s"] == sorted(answer["token_times_s"])
    sampled = [run(capsys, *arguments, "--temperature", 1.0, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_refit_changes_the_answers_and_nothing_else(capsys: pytest.CaptureFixture[str], engine: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(engine, tmp_path / "copy.engine")
    arguments = ["generate", "--engine-dir", copy, "--token-ids", "1,2,3", "--max-tokens", 5, "--ignore-eos", "--device", "cpu"]
    before = run(capsys, *arguments)[1]
    assert run(capsys, "refit", copy, "--weights", "dummy", "--seed", 7)[0] == 0
    after = run(capsys, *arguments)[1]
    assert run(capsys, "refit", copy, "--weights", "dummy", "--seed", 0)[0] == 0
    assert run(capsys, *arguments)[1] == before != after


# --- bad input ---


@pytest.mark.parametrize("command", [["build"], ["sweep"], ["throughput"], ["latency"], ["generate", "hello"]])
def test_an_unknown_model_lists_the_known_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: list[str]) -> None:
    out = ["--out", tmp_path / "out"] if command[0] != "generate" else []
    said = refused(capsys, *command, "--model", "tiny-lama", *out)
    assert "unknown model 'tiny-lama' (did you mean tiny-llama?)" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["build", "sweep", "throughput", "latency"])
def test_an_unknown_precision_lists_the_known_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str) -> None:
    said = refused(capsys, command, "--model", "tiny-llama", "--precision", "fp5", "--out", tmp_path / "out")
    assert "fp5" in said
    assert "fp32, fp16, bf16" in said
    assert not (tmp_path / "out").exists()


def model_folder(folder: Path, **config: object) -> Path:
    """A Hugging Face folder with a configuration and no weights."""
    folder.mkdir()
    content = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 128,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def test_folders_that_are_no_models_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(capsys, "throughput", "--model", tmp_path / "empty", "--device", "cpu")
    bare = model_folder(tmp_path / "bare")
    said = refused(capsys, "throughput", "--model", bare, "--device", "cpu", "--isl", 4, "--osl", 2)
    assert str(bare) in said
    assert "safetensors" in said
    gpt = model_folder(tmp_path / "gpt", architectures=["GPT2LMHeadModel"])
    said = refused(capsys, "throughput", "--model", gpt, "--device", "cpu")
    assert "GPT2LMHeadModel" in said
    assert "LlamaForCausalLM" in said


def test_a_missing_or_misshapen_weight_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    folder = model_folder(tmp_path / "model")
    build = ["build", "--model", folder, "--precision", "fp32", "--arch", "cpu", "--max-seq-len", 64, "--out", tmp_path / "e"]
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": (128, 64), "lm_head.weight": (128, 64), "model.norm.weight": (64,)}
    shapes |= {f"{layer}{name}.weight": (64,) for name in ("input_layernorm", "post_attention_layernorm")}
    shapes |= {f"{layer}self_attn.{name}_proj.weight": (rows, 64) for name, rows in (("q", 64), ("k", 32), ("v", 32), ("o", 64))}
    shapes |= {f"{layer}mlp.{name}_proj.weight": (128, 64) for name in ("gate", "up")} | {f"{layer}mlp.down_proj.weight": (64, 128)}
    weights = {name: torch.ones(shape) for name, shape in shapes.items()}
    save_file({name: tensor for name, tensor in weights.items() if "k_proj" not in name}, folder / "model.safetensors")
    said = refused(capsys, *build)
    assert f"{layer}self_attn.k_proj.weight is missing from {folder}" in said
    save_file({**weights, f"{layer}mlp.up_proj.weight": torch.ones(128, 65)}, folder / "model.safetensors")
    said = refused(capsys, *build)
    assert all(part in said for part in (f"{layer}mlp.up_proj.weight", "[128, 65]", "[128, 64]"))
    assert not (tmp_path / "e").exists()
    save_file(weights, folder / "model.safetensors")
    assert run(capsys, *build)[0] == 0


def test_a_prompt_longer_than_the_profile_says_both_lengths(capsys: pytest.CaptureFixture[str], engine: Path) -> None:
    long = ",".join(["1"] * 60)
    said = refused(capsys, "generate", "--engine-dir", engine, "--token-ids", long, "--max-tokens", 9, "--device", "cpu")
    assert "60 tokens" in said
    assert "64" in said
    said = refused(capsys, "throughput", "--engine-dir", engine, "--isl", 60, "--osl", 9, "--device", "cpu")
    assert "69 tokens" in said
    assert "takes 64" in said


def test_a_batch_over_the_profile_says_both_sizes(capsys: pytest.CaptureFixture[str], engine: Path) -> None:
    said = refused(capsys, "throughput", "--engine-dir", engine, "--isl", 4, "--osl", 2, "--concurrency", 8, "--device", "cpu")
    assert "max_batch_size 8 is more than the 4" in said


@pytest.mark.parametrize("arguments", [["--isl", "0"], ["--osl", "-1"], ["--num-requests", "0"], ["--max-batch-size", "0"]])
def test_zero_and_negative_sizes_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    assert arguments[0] in refused(capsys, "throughput", "--model", "tiny-llama", *arguments)


def test_a_corrupt_engine_names_the_file(capsys: pytest.CaptureFixture[str], engine: Path, tmp_path: Path) -> None:
    assert "no engine at" in refused(capsys, "inspect", tmp_path / "nowhere")
    for ask in (("throughput",), ("generate", "--token-ids", "1")):
        assert "is not an engine" in refused(capsys, *ask, "--engine-dir", tmp_path)
    for name, change in (("engine.json", lambda data: data[:-20]), ("constants.safetensors", lambda data: data[:-1] + b"x")):
        copy = shutil.copytree(engine, tmp_path / name)
        (copy / name).write_bytes(change((copy / name).read_bytes()))
        said = refused(capsys, "throughput", "--engine-dir", copy, "--device", "cpu")
        assert str(copy / name) in said


def test_a_gpu_asked_for_and_absent_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for command in ("throughput", "latency", "sweep"):
        said = refused(capsys, command, "--model", "tiny-llama", "--device", "cuda", "--out", tmp_path / "o")
        assert "--device cpu" in said
    assert "--device cpu" in refused(capsys, "generate", "--model", "tiny-llama", "--token-ids", "1", "--device", "cuda")


def test_an_unwritable_output_folder_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "below"
    assert str(below) in refused(capsys, "sweep", "--target", "null", "--out", below)
    assert str(below) in refused(capsys, "build", "--model", "tiny-llama", "--arch", "cpu", "--max-seq-len", 64, "--out", below)


def test_a_full_disk_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = refused(capsys, "sweep", "--target", "null", "--batch-size", 1, "--out", tmp_path / "o", code=1)
    assert "No space left on device; free some space" in said


def test_text_for_an_engine_without_a_tokenizer(capsys: pytest.CaptureFixture[str], engine: Path) -> None:
    assert "token ids" in refused(capsys, "generate", "--engine-dir", engine, "hello", "--device", "cpu")
    assert "no prompt" in refused(capsys, "generate", "--engine-dir", engine)
    assert "temperature" in refused(capsys, "generate", "--engine-dir", engine, "--token-ids", 1, "--temperature", -1)
    assert "whole numbers" in refused(capsys, "generate", "--engine-dir", engine, "--token-ids", "a")


def test_a_recipe_says_what_to_build_and_flags_win(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'model = "tiny-llama"\nprecision = "bf16"\narches = ["cpu"]\nmax_batch_size = 2\nmax_num_tokens = 16\nmax_seq_len = 32\n'
    )
    assert run(capsys, "build", "--recipe", recipe, "--max-seq-len", 64, "--out", tmp_path / "e")[0] == 0
    code, out, _ = run(capsys, "inspect", tmp_path / "e", "--json", "--verify")
    found = json.loads(out)
    assert code == 0
    assert found["precision"] == "bf16"
    assert found["profile"] == {"max_batch_size": 2, "max_num_tokens": 16, "max_seq_len": 64, "page_size": 32}
    assert "no recipe" in refused(capsys, "build", "--recipe", "nonsense")
    assert "no model named" in refused(capsys, "build")
    assert "max_num_tokens 4" in refused(capsys, "build", "--recipe", recipe, "--max-num-tokens", 4, "--max-batch-size", 8)
