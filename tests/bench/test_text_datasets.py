"""NVIDIA's datasets with a `prompt` run, by the model's tokenizer or the one named; adapters they ask for are said to be ignored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import refused, run
from tokenizers import Tokenizer, models, pre_tokenizers

from trtllm_results.store.table import Store

WORDS = ("[UNK]", "the", "cat", "sat", "on", "a", "mat")
TEXTS = ("the cat sat", "a cat", "the cat sat on a mat")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A Llama of two layers without weights, whose tokenizer makes a token of each word."""
    folder = tmp_path / "model"
    folder.mkdir()
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {"architectures": ["LlamaForCausalLM"], "vocab_size": 97, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    lora = {"lora_request": {"lora_name": "a", "lora_int_id": 1, "lora_path": "a"}}
    lines = [{"task_id": n, "prompt": text, "output_tokens": 2 + n, **(lora if n == 1 else {})} for n, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.usefixtures("own_cache")
def test_texts_run_by_the_models_tokenizer_and_an_adapter_is_said_to_be_ignored(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, dataset: Path
) -> None:
    flags = ["--model", model, "--weights", "dummy", "--device", "cpu", "--dataset", dataset]
    code, out, err = run(capsys, "throughput", *flags, "--out", tmp_path / "one")
    assert code == 0, err
    (row,) = Store(tmp_path / "one").rows()
    assert (row.cell.isl, row.cell.osl, row.cell.num_requests) == (round(11 / 3), 3, 3)
    assert row.figures["input_tokens"] == sum(len(text.split()) for text in TEXTS)
    assert out.count("lora_request of 1 request") == 1
    code, out, err = run(capsys, "sweep", *flags, "--batch-size", "1,2", "--out", tmp_path / "grid")
    assert code == 0, err
    assert out.count("lora_request of 1 request of") == 1, "said once, and not for every cell"
    rows = Store(tmp_path / "grid").rows()
    assert {one.cell.workload_hash for one in rows} == {row.cell.workload_hash}


def test_texts_without_a_tokenizer_say_which_flag_names_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, dataset: Path
) -> None:
    (model / "tokenizer.json").unlink()
    flags = ["throughput", "--model", model, "--weights", "dummy", "--device", "cpu", "--dataset", dataset]
    said = refused(capsys, *flags)
    assert "texts.jsonl holds texts" in said
    assert "give --tokenizer a folder with tokenizer.json" in said
    assert "there is no tokenizer.json" in refused(capsys, *flags, "--tokenizer", tmp_path)


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("file", [False, True])
def test_a_tokenizer_may_be_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, dataset: Path, file: bool) -> None:
    (model / "tokenizer.json").unlink()
    write_tokenizer(tmp_path)
    named = tmp_path / "tokenizer.json" if file else tmp_path
    flags = ["--model", model, "--weights", "dummy", "--device", "cpu", "--dataset", dataset, "--tokenizer", named]
    code, _, err = run(capsys, "throughput", *flags, "--out", tmp_path / "out")
    assert code == 0, err
    assert Store(tmp_path / "out").rows()[0].figures["input_tokens"] == 11
