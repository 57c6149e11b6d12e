"""`quantize` and `perplexity` on the command line: a model folder becomes an fp8 engine that answers, and mistakes are one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import refused, run
from safetensors.torch import save_file

from trtllm_engines.checkpoints.dummy import draw
from trtllm_engines.compiler.compile import trace
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.models.config import read_config

pytestmark = pytest.mark.usefixtures("own_cache")

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("command") / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    shapes = trace(read_config(folder), "fp32", Profile(1, 16, 16, 16)).checkpoint_shapes
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    for name, tensor in tensors.items():
        draw(tensor, name, 1)
    save_file(tensors, folder / "model.safetensors")
    (folder.parent / "text.jsonl").write_text(json.dumps({"input_ids": list(range(100))}) + "\n")
    return folder


def test_a_model_is_quantized_built_measured_and_answers(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    text, out = model.parent / "text.jsonl", tmp_path / "fp8"
    code, said, _ = run(capsys, "quantize", model, "--out", out, "--dataset", text, "--calib-seq-len", 50, "--device", "cpu")
    assert code == 0
    assert "calibrated on 50 tokens in 1 windows" in said
    assert "14 products in fp8" in said
    rows = {line.split()[-5]: line.split() for line in said.splitlines() if line.startswith(("input of", "cached"))}
    assert set(rows) == {*(f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")), "keys", "values"}
    assert all(row[-4] == "2" and float(row[-3]) <= float(row[-2]) <= float(row[-1]) for row in rows.values())
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line and "calibrated" not in line) <= 80
    code, said, _ = run(capsys, "build", "--model", out, "--arch", "cpu", "--max-seq-len", 64, "--out", tmp_path / "e")
    assert (code, "fp8 fp8, KV cache fp8" in said) == (0, True), "the precision is the checkpoint's where none is named"
    answer = ["generate", "--engine-dir", tmp_path / "e", "--token-ids", "1,2,3", "--max-tokens", 3, "--device", "cpu"]
    assert run(capsys, *answer)[0] == 0

    measure = ["--dataset", text, "--window-len", 64, "--device", "cpu", "--json"]
    wide = json.loads(run(capsys, "perplexity", model, *measure)[1])
    narrow = json.loads(run(capsys, "perplexity", out, *measure)[1])
    assert (wide["kv_dtype"], narrow["kv_dtype"], narrow["tokens"]) == ("fp32", "fp8", 63)
    assert narrow["perplexity"] == pytest.approx(wide["perplexity"], rel=0.05)
    assert narrow["perplexity"] != wide["perplexity"]
    said = run(capsys, "perplexity", out, "--against", model, *measure[:-1])[1]
    assert f"perplexity {narrow['perplexity']:.3f}\n" in said, "one window has no interval"
    assert f"against {model}: {wide['perplexity']:.3f}, a change of {100 * (narrow['perplexity'] / wide['perplexity'] - 1):+.2f}%\n" in said


def test_a_model_becomes_integers(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    text, out = model.parent / "text.jsonl", tmp_path / "int4"
    asked = ["--precision", "int4_awq", "--group-size", 32, "--dataset", text, "--calib-seq-len", 50, "--device", "cpu"]
    code, said, _ = run(capsys, "quantize", model, "--out", out, *asked)
    assert code == 0
    assert "calibrated on 50 tokens in 1 windows" in said
    assert "14 products in int4, one scale per group of 32, by awq" in said
    rows = {line.split()[0]: line.split() for line in said.splitlines() if "_proj" in line}
    assert set(rows) == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert all(row[1] == "2" and 0.02 < float(row[2]) < 0.2 and 0 < float(row[3]) < 0.2 for row in rows.values())
    assert max(len(line) for line in said.splitlines() if str(tmp_path) not in line and "calibrated" not in line) <= 80
    again = ["--precision", "int8_wo", "--out", tmp_path / "again", "--device", "cpu"]
    assert f"note: {out} is quantized already (int4), and its values are rounded a second time" in run(capsys, "quantize", out, *again)[2]
    assert run(capsys, "quantize", model, *again[:3], tmp_path / "first", "--device", "cpu")[2] == ""
    unread = run(capsys, "quantize", model, *again[:3], tmp_path / "unread", "--device", "cpu", "--dataset", text)[2]
    assert unread == f"note: rtn reads no text, so --dataset {text} is not used; give --method to calibrate\n"
    stated = json.loads((out / "config.json").read_text())["quantization_config"]
    assert (stated["format"], stated["config_groups"]["group_0"]["weights"]["group_size"]) == ("pack-quantized", 32)
    for flags, says in (
        (["--precision", "int4"], "groups of 128 do not divide"),
        (["--precision", "int4_awq", "--method", "gptq"], "--precision int4_awq is --method awq, not gptq"),
        (["--method", "awq"], "--method awq is for integers"),
        (["--group-size", "64"], "--group-size 64 is for integers, and --precision is fp8; leave it out"),
        (["--asymmetric"], "--asymmetric is for integers"),
        (["--damping", "0.1"], "--damping 0.1 is for integers"),
        (["--precision", "int8_wo", "--kv-dtype", "fp8"], "--kv-dtype fp8 is for fp8, and --precision is int8_wo"),
        (["--precision", "int4", "--group-size", "32", "--act-order", "group"], "--act-order group is for gptq, and the method is awq"),
        (["--precision", "int8_sq", "--method", "gptq", "--act-order", "static"], "--act-order static is for groups of columns"),
    ):
        assert says in refused(capsys, "quantize", model, "--out", tmp_path / "o", *flags, "--dataset", text, "--device", "cpu")


def test_mistakes_are_one_sentence(capsys: pytest.CaptureFixture[str], model: Path, tmp_path: Path) -> None:
    text = model.parent / "text.jsonl"
    assert "not a Hugging Face folder" in refused(capsys, "quantize", "tiny-llama", "--out", tmp_path / "o", "--device", "cpu")
    assert "is not empty" in refused(capsys, "quantize", model, "--out", model, "--dataset", text, "--device", "cpu")
    assert "--out" in refused(capsys, "quantize", model)
    assert "cannot be read" in refused(capsys, "quantize", model, "--out", tmp_path / "o", "--dataset", tmp_path / "no", "--device", "cpu")
    (tmp_path / "file").write_text("")
    below = tmp_path / "file" / "o"
    assert str(below) in refused(capsys, "quantize", model, "--out", below, "--dataset", text, "--device", "cpu")
    assert "trtllm-bench quantize" in refused(
        capsys, "build", "--model", model, "--precision", "fp8", "--max-seq-len", 64, "--out", tmp_path / "e"
    )
    assert "preset" in refused(capsys, "perplexity", "tiny-llama", "--dataset", text, "--device", "cpu")
    assert "unknown precision" in refused(capsys, "perplexity", model, "--dataset", text, "--precision", "fp5", "--device", "cpu")
    assert "has no activation scale" in refused(capsys, "perplexity", model, "--dataset", text, "--precision", "fp8", "--device", "cpu")
