"""Files from outside: read as bounded JSON and typed models, refused in one sentence that names file, field and value."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from compiler_models import LLAMA, PROFILE, checkpoint
from gguf_files import write_gguf
from hf_folders import hf_folder

from trtllm_engines.checkpoints import open_weights
from trtllm_engines.checkpoints.checkpoint_precision import checkpoint_precision
from trtllm_engines.compiler.graph import trace
from trtllm_engines.documents import read_object
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import read_config
from trtllm_engines.models.gguf_file import GgufFile
from trtllm_engines.models.presets import resolve_model

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return checkpoint(trace(LLAMA, "fp32", PROFILE))


def refused(call: Any, *arguments: Any) -> str:
    with pytest.raises(EngineError) as caught:
        call(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as JSON"),
        (b"[]", "should hold a JSON object but holds a list"),
        (b"\xff\xfe", "is not UTF-8 text (byte 0)"),
        (b"\xef\xbb\xbf{}", "cannot be read as JSON"),
        (b"[" * 100_000, "is nested too deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "is nested too deep; it may have 64 levels"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "cannot be read as JSON"),
    ],
)
def test_a_file_that_is_no_json_object(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    text = refused(read_object, tmp_path / "config.json")
    assert str(tmp_path / "config.json") in text
    assert said in text


def test_pipes_folders_and_large_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "fifo is a pipe; it must be a regular file" in refused(read_object, tmp_path / "fifo")
    assert "is a folder; it must be a regular file" in refused(read_object, tmp_path)
    assert "/dev/zero is a device" in refused(read_object, Path("/dev/zero"))
    with (tmp_path / "large").open("wb") as file:
        file.truncate(65 << 20)
    assert "has 65 MiB; it must have at most 64" in refused(read_object, tmp_path / "large")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"hidden_size": "64"}, "m: config.json: hidden_size is '64'; it must be a whole number"),
        ({"hidden_size": 64.7}, "hidden_size is 64.7; it must be a whole number"),
        ({"hidden_size": True}, "hidden_size is True; it must be a whole number"),
        ({"hidden_size": None}, "hidden_size is None; it must be a whole number"),
        ({"hidden_size": float("inf")}, "hidden_size is inf; it must be a whole number"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000 but must be at most 1048576"),
        ({"vocab_size": 10**15}, "vocab_size is 1000000000000000; it must be at most 1099511627776"),
        ({"vocab_size": 10**400}, "vocab_size is a whole number of 1329 bits; it must be at most"),
        ({"num_hidden_layers": 10**6}, "num_layers is 1000000 but must be at most 4096"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; it must be at least 1"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4; it must be at least 1"),
        ({"architectures": {"a": 1}}, "architectures is {'a': 1}; it must be a list of names"),
        ({"architectures": [5]}, "architectures is [5]; it must be a list of names"),
        ({"rope_scaling": "llama3"}, "rope_scaling is 'llama3'; it must be an object"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling: factor is 0; it must be more than 0"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, "rope_scaling: factor is 'x'; it must be a finite number"),
        ({"rope_theta": -10000}, "rope_theta is -10000; it must be more than 0"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan; it must be a finite number"),
        ({"eos_token_id": "x"}, "eos_token_id is 'x'; it must be a token id or a list of them"),
        ({"eos_token_id": {}}, "eos_token_id is {}; it must be a token id or a list of them"),
        ({"eos_token_id": 99999}, "eos_token_id is 99999; it must be a token of the vocabulary, 0 to 96"),
        ({"bos_token_id": "x"}, "bos_token_id is 'x'; it must be a token id or a list of them"),
        ({"hidden_act": ["silu"]}, "hidden_act ['silu'] is not supported; only 'silu' is"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'; it must be true or false"),
        ({"layer_types": 5}, "layer_types is 5; it must be a list of names"),
        ({"max_position_embeddings": -5}, "max_position_embeddings is -5; it must be at least 0"),
        ({"head_dim": 63}, "rotary dimension 63 must be even and at most head_dim 63"),
    ],
)
def test_a_field_of_config_json_is_named_with_its_value(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({**BASE, **fields}))
    assert said in refused(read_config, folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"eos_token_id": "x"}, "generation_config.json: eos_token_id is 'x'; it must be a token id or a list of them"),
        ({"eos_token_id": [-1]}, "eos_token_id"),
        ({"eos_token_id": 97}, "eos_token_id is 97; it must be a token of the vocabulary, 0 to 96"),
    ],
)
def test_generation_config(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    (tmp_path / "generation_config.json").write_text(json.dumps(content))
    assert said in refused(read_config, tmp_path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("fp8", "config.json: quantization_config is 'fp8'; it must be an object"),
        ({"quant_method": "modelopt", "quant_algo": ["FP8"]}, "quant_algo is ['FP8']; it must be text"),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": 5}}, "config_groups.g is 5; it must be an object"),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": "8"}}}},
            "num_bits is '8'; it must be a whole",
        ),
        ({"quant_method": "fp8", "modules_to_not_convert": "lm_head"}, "modules_to_not_convert is 'lm_head'; it must be a list"),
    ],
)
def test_quantization_configurations(config: Any, said: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**BASE, "quantization_config": config}))
    assert said in refused(checkpoint_precision, tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "is not a safetensors index: weight_map is missing"),
        ({"weight_map": ["a"]}, "weight_map is ['a']; it must be an object"),
        ({"weight_map": {"a": 5}}, "weight_map.a is 5; it must be text"),
        (
            {"weight_map": {"a": "../base/model.safetensors"}},
            "weight_map.a is '../base/model.safetensors'; it must be the name of a file in the same folder",
        ),
        ({"weight_map": {"a": "/etc/passwd"}}, "weight_map.a is '/etc/passwd'; it must be the name"),
        ({"weight_map": {"a": "a\0b"}}, r"weight_map.a is 'a\x00b'; it must be the name"),
        ({"weight_map": {"a": "a" * 5000}}, "it must be the name of a file"),
    ],
)
def test_an_index_names_files_of_its_folder(content: dict[str, Any], said: str, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    folder = hf_folder(tmp_path / "m", tensors)
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    assert said in refused(open_weights, folder)


def test_a_pipe_among_the_weights(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    assert "is a pipe; it must be a regular file" in refused(open_weights, tmp_path)


def test_gguf_counts_beyond_the_file_are_refused_at_once(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_gguf(tmp_path / "ok.gguf", tensors, quantized=False)
    raw = (tmp_path / "ok.gguf").read_bytes()
    assert GgufFile(tmp_path / "ok.gguf").config.num_layers == LLAMA.num_layers
    huge = (2**60).to_bytes(8, "little")
    for name, content in {
        "tensors": raw[:8] + huge + raw[16:],
        "keys": raw[:16] + huge + raw[24:],
        "length": raw[:24] + (2**62).to_bytes(8, "little") + raw[32:],
        "version": raw[:4] + (99).to_bytes(4, "little") + raw[8:],
        "magic": b"GGML" + raw[4:],
        "cut": raw[:-64],
        "header": raw[:500],
        "empty": b"",
    }.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
        assert f"{name}.gguf is not a whole GGUF file (" in refused(resolve_model, tmp_path / f"{name}.gguf")


def test_gguf_values_of_another_type(tmp_path: Path) -> None:
    def write(name: str, **values: Any) -> Path:
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", "llama")
        numbers = {"embedding_length": 64, "block_count": 2, "feed_forward_length": 128, "context_length": 512}
        numbers |= {"attention.head_count": 4, "attention.head_count_kv": 2}
        for key, value in numbers.items():
            if f"llama.{key}" not in values:
                writer.add_uint32(f"llama.{key}", value)
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        for key, value in values.items():
            if value is not None:
                {str: writer.add_string, int: writer.add_uint32, list: writer.add_array}[type(value)](key, value)
        writer.add_tensor("token_embd.weight", np.zeros((97, 64), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / f"{name}.gguf"

    for name, values, said in (
        ("heads", {"llama.attention.head_count": "x"}, "attention.head_count is 'x'; it must be a whole number"),
        ("zero", {"llama.attention.head_count": 0}, "attention.head_count is 0; it must be at least 1"),
        ("array", {"llama.attention.head_count": [4, 4]}, "attention.head_count is [4, 4]; it must be a whole number"),
        ("context", {"llama.context_length": None}, "metadata llama.context_length is missing"),
        ("eos", {"tokenizer.ggml.eos_token_id": "x"}, "tokenizer.ggml: eos_token_id is 'x'; it must be a token id"),
        ("yarn", {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4}, "rope scaling 'yarn' is not supported"),
    ):
        assert said in refused(resolve_model, write(name, **values)), name


def test_a_split_gguf_is_its_parts(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_gguf(tmp_path / "ok.gguf", tensors, quantized=False)
    names = list(tensors)
    for part, some in enumerate((names[:5], names[5:])):
        write_gguf(
            tmp_path / f"m-0000{part + 1}-of-00002.gguf",
            {name: tensors[name] for name in some},
            quantized=False,
            metadata={"split.no": part, "split.count": 2},
        )
    whole = open_weights(tmp_path / "ok.gguf")
    for part in (1, 2):
        split = open_weights(tmp_path / f"m-0000{part}-of-00002.gguf")
        for name, tensor in tensors.items():
            ours = split.read(name, tuple(tensor.shape), torch.float32, torch.device("cpu"))
            assert torch.equal(ours, whole.read(name, tuple(tensor.shape), torch.float32, torch.device("cpu")))
    (tmp_path / "m-00002-of-00002.gguf").rename(tmp_path / "other.gguf")
    text = refused(open_weights, tmp_path / "m-00001-of-00002.gguf")
    assert "is one of 2 parts and m-00002-of-00002.gguf is not beside it" in text
    assert "part of a split GGUF file of 2 parts" in refused(open_weights, tmp_path / "other.gguf")


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
def test_pytorch_files_are_read_where_there_are_no_safetensors(
    tensors: dict[str, torch.Tensor], sharded: bool, zipped: bool, tmp_path: Path
) -> None:
    hf_folder(tmp_path / "m", tensors)
    (tmp_path / "m" / "model.safetensors").unlink()
    names = list(tensors)
    if sharded:
        halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        where = {name: file for file, some in halves.items() for name in some}
        (tmp_path / "m" / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    else:
        halves = {"pytorch_model.bin": names}
    for file, some in halves.items():
        torch.save({name: tensors[name] for name in some}, tmp_path / "m" / file, _use_new_zipfile_serialization=zipped)
    source = open_weights(tmp_path / "m")
    assert source.description["kind"] == "pytorch"
    for name, tensor in tensors.items():
        assert torch.equal(source.read(name, tuple(tensor.shape), torch.float32, torch.device("cpu")), tensor)
    with pytest.raises(EngineError, match=r"weight a\.weight is missing from"):
        source.check("a.weight", (1,))
    (tmp_path / "m" / next(iter(halves))).write_bytes(b"PK\3\4 no zip")
    assert "is not a whole file of PyTorch weights" in refused(open_weights, tmp_path / "m")


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"a": Evil()}, tmp_path / "pytorch_model.bin")
    assert "pytorch_model.bin is not a whole file of PyTorch weights" in refused(open_weights, tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.save([1], tmp_path / "pytorch_model.bin")
    assert "holds a list; it must be a dictionary of tensors by name" in refused(open_weights, tmp_path)


def test_a_pickle_of_another_protocol_is_refused_without_a_warning(tmp_path: Path) -> None:
    """A damaged byte says protocol 113, of which PyTorch warns before it fails."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x71}q\x00.")
    with warnings.catch_warnings(record=True) as heard:
        assert "pytorch_model.bin is not a whole file of PyTorch weights" in refused(open_weights, tmp_path)
    assert not heard


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (float("nan"), torch.float32, "weight model.norm.weight in .* is not finite: it holds a NaN; download the checkpoint again"),
        (float("inf"), torch.float32, "weight model.norm.weight in .* is not finite: it holds an infinite value"),
        (1e30, torch.float16, "weight model.norm.weight in .* has a value of 1e\\+30, beyond the largest of float16; use bf16 or fp32"),
    ],
)
def test_a_weight_is_a_number(value: float, dtype: torch.dtype, said: str, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    norm = tensors["model.norm.weight"].clone()
    norm[7] = value
    changed = {**tensors, "model.norm.weight": norm}
    hf_folder(tmp_path / "m", changed)
    write_gguf(tmp_path / "x.gguf", changed, quantized=False)
    for path in (tmp_path / "m", tmp_path / "x.gguf"):
        with pytest.raises(EngineError, match=said):
            open_weights(path).read("model.norm.weight", tuple(norm.shape), dtype, torch.device("cpu"))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_integers_are_no_weights(dtype: torch.dtype, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    changed = {**tensors, "model.norm.weight": torch.ones(64, dtype=dtype)}
    folder = hf_folder(tmp_path / "m", changed)
    assert "weight model.norm.weight: its" in refused(open_weights(folder).check, "model.norm.weight", (64,))
    (folder / "model.safetensors").unlink()
    torch.save(changed, folder / "pytorch_model.bin")
    assert "weight model.norm.weight: its" in refused(open_weights(folder).check, "model.norm.weight", (64,))


def test_integers_in_gguf_are_no_weights(tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", {**tensors, "model.norm.weight": torch.ones(64, dtype=torch.int32)}, quantized=False)
    source = open_weights(tmp_path / "x.gguf")
    assert "weight output_norm.weight in" in (text := refused(source.check, "model.norm.weight", (64,)))
    assert "is stored as I32, which is read neither as numbers nor as their codes" in text


@pytest.mark.parametrize("value", [float("nan"), 0.0, -1.0, float("inf")])
def test_a_scale_is_a_positive_number(value: float, tensors: dict[str, torch.Tensor], tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    codes = (tensors[name] / tensors[name].abs().max() * 448).to(torch.float8_e4m3fn)
    folder = hf_folder(tmp_path / "m", {**tensors, name: codes, f"{name}_scale": torch.tensor(value)})
    source = open_weights(folder)
    text = refused(source.codes, name, tuple(codes.shape), torch.float8_e4m3fn, torch.device("cpu"))
    assert f"scale {name}_scale in" in text
    assert "it must be a positive number" in text


def test_whatever_an_error_quotes_it_is_one_printable_line() -> None:
    text = str(EngineError("a\nb\tc \ud800 \u202e \x1b[31m " + "x" * 5000 + "; choose another"))
    assert text.isprintable()
    assert len(text) < 1000
    assert text.startswith(r"a b\tc \ud800 \u202e \x1b[31m xxx")
    assert text.endswith("xxx; choose another")
    assert str(EngineError("weights of 模型 ü are missing")) == "weights of 模型 ü are missing"
