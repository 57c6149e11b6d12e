"""Models, tokenizers, weights and engines as kinds of files that are damaged."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import torch
from damage import of_bytes, of_json, of_toml
from kinds import Prepared, command, file_kind
from safetensors.torch import save_file
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import decoders, models, pre_tokenizers

from trtllm_engines.checkpoints import open_weights
from trtllm_engines.checkpoints.checkpoint_precision import checkpoint_plan, default_precision, stated_method
from trtllm_engines.checkpoints.gguf_tokenizer import write_tokenizer
from trtllm_engines.checkpoints.tokenizer import Tokenizer
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.engine.build import build
from trtllm_engines.engine.checksums import write_checksums
from trtllm_engines.engine.folder import load_engine
from trtllm_engines.engine.inspect import describe, render
from trtllm_engines.engine.recipes import load_recipe
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import read_config
from trtllm_engines.models.gguf_file import GgufFile
from trtllm_engines.models.presets import resolve_model

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 260,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 256,
    "eos_token_id": [257],
    "torch_dtype": "float32",
}
GPTJ = {
    "architectures": ["GPTJForCausalLM"],
    "n_embd": 64,
    "n_head": 1,
    "n_layer": 1,
    "n_positions": 64,
    "rotary_dim": 32,
    "vocab_size": 97,
}
TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | tojson }}\n{% endfor %}{{ strftime_now('%Y') }}"
PROFILE = Profile(max_batch_size=2, max_num_tokens=16, max_seq_len=32)
CPU = torch.device("cpu")


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "self_attn.q_proj": (32, 32),
        "self_attn.k_proj": (16, 32),
        "self_attn.v_proj": (16, 32),
        "self_attn.o_proj": (32, 32),
        "mlp.gate_proj": (48, 32),
        "mlp.up_proj": (48, 32),
        "mlp.down_proj": (32, 48),
        "input_layernorm": (32,),
        "post_attention_layernorm": (32,),
    }
    named = {f"model.layers.0.{name}.weight": shape for name, shape in shapes.items()}
    named |= {"model.embed_tokens.weight": (260, 32), "model.norm.weight": (32,), "lm_head.weight": (260, 32)}
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in named.items()}


def model(folder: Path, config: dict[str, Any] | None = None, **more: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**(config or CONFIG), **more}))
    save_file(tensors(), folder / "model.safetensors")
    return folder


def tokenizer(folder: Path) -> Path:
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = HfTokenizer(models.BPE(vocab={**vocabulary, "ab": 256}, merges=[("a", "b")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    made.save(str(folder / "tokenizer.json"))
    stated = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "{{ tools | tojson }}"}]
    (folder / "tokenizer_config.json").write_text(json.dumps({**stated, "chat_template": named}))
    return folder


def read_all(path: Path) -> None:
    """Every tensor that the model of `path` needs, as a build reads them."""
    source = open_weights(path)
    for name, tensor in tensors().items():
        source.check(name, tuple(tensor.shape))
        source.read(name, tuple(tensor.shape), torch.bfloat16, CPU)
        source.largest(name, tuple(tensor.shape))


def chat(folder: Path) -> None:
    made = Tokenizer(folder)
    made.decode(made.encode("ab\u00e9"))
    made.encode_chat([{"role": "user", "content": "hi"}], tools=[{"type": "function"}])
    made.encode_chat([{"role": "user", "content": [{"type": "text", "text": "hi"}]}])


@file_kind("config.json", of_json, EngineError)
def _config(folder: Path) -> Prepared:
    model(folder)
    return folder / "config.json", lambda: (resolve_model(folder), default_precision(folder, gpu=False))


@file_kind("config.json of GPT-J", of_json, EngineError)
def _gptj(folder: Path) -> Prepared:
    model(folder, GPTJ)
    return folder / "config.json", lambda: resolve_model(folder)


@file_kind("config.json, quantized", of_json, EngineError)
def _quantized(folder: Path) -> Prepared:
    codes = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True, "dynamic": False, "group_size": None}
    inputs = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear", "re:.*down_proj"], "weights": codes, "input_activations": inputs}
    stated = {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    model(folder, quantization_config=stated)
    return folder / "config.json", lambda: (checkpoint_plan(folder), stated_method(folder), read_config(folder))


@file_kind("config.json, fp8 of transformers", of_json, EngineError)
def _fp8(folder: Path) -> Prepared:
    model(folder, quantization_config={"quant_method": "fp8", "activation_scheme": "static", "modules_to_not_convert": ["lm_head", "norm"]})
    return folder / "config.json", lambda: (checkpoint_plan(folder), stated_method(folder))


@file_kind("hf_quant_config.json", of_json, EngineError)
def _modelopt(folder: Path) -> Prepared:
    model(folder)
    stated = {
        "producer": {"name": "modelopt"},
        "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm*"]},
    }
    (folder / "hf_quant_config.json").write_text(json.dumps(stated))
    return folder / "hf_quant_config.json", lambda: (checkpoint_plan(folder), stated_method(folder))


@file_kind("generation_config.json", of_json, EngineError)
def _generation(folder: Path) -> Prepared:
    model(folder)
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 256, "eos_token_id": [257, 258], "temperature": 0.6}))
    return folder / "generation_config.json", lambda: read_config(folder)


@file_kind("tokenizer_config.json", of_json, EngineError)
def _tokenizer_config(folder: Path) -> Prepared:
    return tokenizer(folder) / "tokenizer_config.json", lambda: chat(folder)


@file_kind("tokenizer.json", of_json, EngineError)
def _tokenizer(folder: Path) -> Prepared:
    return tokenizer(folder) / "tokenizer.json", lambda: chat(folder)


def of_template(chance: Random, content: bytes) -> bytes:
    """Pieces of jinja in other places, or damaged bytes."""
    if chance.random() < 0.5:
        return of_bytes(chance, content)
    pieces = ("{{", "}}", "{%", "%}", "{% for x in range(9999) %}", "{% endfor %}", "{{ messages[9].a.b }}", "{{ 'a' * 10000000 }}", "{#")
    pieces += (
        "{{ ''.__class__.__mro__ }}",
        "{% break %}",
        "{% generation %}",
        "{{ raise_exception('[/x]\\n') }}",
        "{{ '%9999999d' % 1 }}",
        "\u202e",
    )
    text = content.decode()
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(text) + 1)
        text = text[:at] + chance.choice(pieces) + text[at:]
    return text.encode()


@file_kind("chat_template.jinja", of_template, EngineError)
def _template(folder: Path) -> Prepared:
    (tokenizer(folder) / "chat_template.jinja").write_text(TEMPLATE)
    return folder / "chat_template.jinja", lambda: chat(folder)


@file_kind("model.safetensors.index.json", of_json, EngineError)
def _index(folder: Path) -> Prepared:
    model(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    where = dict.fromkeys(tensors(), "model-00001-of-00001.safetensors")
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": where}))
    return path, lambda: read_all(folder)


def of_safetensors(chance: Random, content: bytes) -> bytes:
    """The JSON header damaged, its length still right; or any bytes."""
    if chance.random() < 0.4:
        return of_bytes(chance, content)
    (length,) = struct.unpack("<Q", content[:8])
    header = of_json(chance, content[8 : 8 + length])
    stated = len(header) if chance.random() < 0.8 else chance.choice([0, 1, 2**31, 2**60, 2**63, 2**64 - 1])
    return struct.pack("<Q", stated) + header + content[8 + length :]


@file_kind("model.safetensors", of_safetensors, EngineError)
def _safetensors(folder: Path) -> Prepared:
    return model(folder) / "model.safetensors", lambda: read_all(folder)


@file_kind("pytorch_model.bin", of_bytes, EngineError)
def _pytorch(folder: Path) -> Prepared:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    torch.save(tensors(), folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin", lambda: read_all(folder)


@file_kind("pytorch_model.bin before 1.6", of_bytes, EngineError)
def _old_pytorch(folder: Path) -> Prepared:
    torch.save(tensors(), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder / "pytorch_model.bin", lambda: read_all(folder)


def of_gguf(chance: Random, content: bytes) -> bytes:
    """Counts, lengths, types and values in the header; or any bytes."""
    if chance.random() < 0.3:
        return of_bytes(chance, content)
    damaged = bytearray(content)
    header = content.find(b"blk.0.") + 200
    for _ in range(chance.choice([1, 1, 2, 4])):
        at = chance.choice([4, 8, 16, 24, chance.randrange(header)])
        number = chance.choice([0, 1, 2, 7, 255, 2**31, 2**32 - 1, 2**40, 2**60, 2**63, 2**64 - 1])
        form = chance.choice(["<Q", "<I", "<B"])
        packed = struct.pack(form, number % 2 ** (8 * struct.calcsize(form)))
        damaged[at : at + len(packed)] = packed
    return bytes(damaged)


@file_kind("model.gguf", of_gguf, EngineError)
def _gguf(folder: Path) -> Prepared:
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {
        "embedding_length": 32,
        "block_count": 1,
        "feed_forward_length": 48,
        "context_length": 64,
        "vocab_size": 260,
    }.items():
        writer.add_uint32(f"llama.{key}", value)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(8)
    writer.add_value_length(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "<s>", "</s>", "x"])
    writer.add_token_types([1] * 257 + [3, 3, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_chat_template(TEMPLATE)
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.o_proj": "attn_output"}
    names |= {f"self_attn.{one}_proj": f"attn_{one}" for one in "qkv"} | {f"mlp.{one}_proj": f"ffn_{one}" for one in ("gate", "up", "down")}
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, tensor in tensors().items():
        module = name.removesuffix(".weight")
        stored = outer.get(module) or f"blk.0.{names[module.removeprefix('model.layers.0.')]}"
        values = np.ascontiguousarray(tensor.numpy())
        kind = gguf.GGMLQuantizationType.Q8_0
        if module.endswith("gate_proj"):
            writer.add_tensor(f"{stored}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{stored}.weight", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    def read() -> None:
        resolve_model(path)
        write_tokenizer(GgufFile(path), folder)
        read_all(path)

    return path, read


def engine(folder: Path) -> Path:
    (folder / "model").mkdir()
    tokenizer(model(folder / "model"))
    return build(folder / "model", "fp32", out=folder / "engine", profile=PROFILE)


def look(path: Path) -> None:
    loaded = load_engine(path)
    loaded.tensors("cpu")
    render(describe(path))
    assert loaded.tokenizer is not None


def resummed(path: Path) -> Callable[[], None]:
    """Reads an engine whose checksums are right for what its files hold now."""

    def read() -> None:
        write_checksums(path)
        look(path)

    return read


@file_kind("engine.json", of_json, EngineError)
def _engine(folder: Path) -> Prepared:
    path = engine(folder)
    return path / "engine.json", resummed(path)


@file_kind("engine.json as it was copied", of_json, EngineError)
def _copied(folder: Path) -> Prepared:
    path = engine(folder)
    return path / "engine.json", lambda: look(path)


@file_kind("checksums.json", of_json, EngineError)
def _checksums(folder: Path) -> Prepared:
    path = engine(folder)
    return path / "checksums.json", lambda: look(path)


@file_kind("rank0.safetensors", of_safetensors, EngineError)
def _rank(folder: Path) -> Prepared:
    path = engine(folder)
    return path / "rank0.safetensors", resummed(path)


@file_kind("constants.safetensors", of_safetensors, EngineError)
def _constants(folder: Path) -> Prepared:
    path = engine(folder)
    return path / "constants.safetensors", resummed(path)


@file_kind("engine.json by inspect", of_json)
def _inspected(folder: Path) -> Prepared:
    path = engine(folder)

    def read() -> None:
        write_checksums(path)
        command("inspect", path)

    return path / "engine.json", read


@file_kind("recipe.toml", of_toml, EngineError)
def _recipe(folder: Path) -> Prepared:
    path = folder / "recipe.toml"
    path.write_text(
        'model = "tiny-llama"\nprecision = "fp32"\narches = ["cpu"]\nmax_batch_size = 2\nmax_num_tokens = 16\nmax_seq_len = 32\n'
    )
    return path, lambda: load_recipe(path).profile
