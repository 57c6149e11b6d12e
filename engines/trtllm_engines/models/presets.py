"""Models known by name, as the `config.json` their authors published, so that presets and folders take one path through the parser.

A preset carries no weights: they are drawn (`--weights dummy`) or come from a folder of the same shape. `tiny-llama` is ours, small
enough for a sweep on a laptop's CPU and shaped so that every feature of the family (grouped heads, several layers) is exercised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig, config_from_hf, read_config


def _llama(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int, vocab: int, positions: int, theta: float, **more: Any
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "rope_theta": theta,
        "rms_norm_eps": 1e-5,
        **more,
    }


_LLAMA_31 = {
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "tiny-llama": _llama(128, 384, 4, 4, 2, 512, 4096, 10000.0, bos_token_id=1, eos_token_id=2),
    "smollm2-135m": _llama(576, 1536, 30, 9, 3, 49152, 8192, 100000.0, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2),
    "llama-2-7b": _llama(4096, 11008, 32, 32, 32, 32000, 4096, 10000.0, bos_token_id=1, eos_token_id=2),
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, 8, 128256, 131072, 500000.0, **_LLAMA_31),
    "llama-3.1-70b": _llama(8192, 28672, 80, 64, 8, 128256, 131072, 500000.0, **_LLAMA_31),
    "mistral-7b": _llama(
        4096, 14336, 32, 32, 8, 32768, 32768, 1e6, architectures=["MistralForCausalLM"], sliding_window=None, bos_token_id=1, eos_token_id=2
    ),
    "qwen2.5-7b": _llama(
        3584, 18944, 28, 28, 4, 152064, 32768, 1e6, architectures=["Qwen2ForCausalLM"], rms_norm_eps=1e-6, eos_token_id=[151645, 151643]
    ),
    "qwen3-8b": _llama(
        4096,
        12288,
        36,
        32,
        8,
        151936,
        40960,
        1e6,
        architectures=["Qwen3ForCausalLM"],
        head_dim=128,
        rms_norm_eps=1e-6,
        eos_token_id=[151645, 151643],
    ),
    "gptj-6b": {
        "architectures": ["GPTJForCausalLM"],
        "n_embd": 4096,
        "n_head": 16,
        "n_layer": 28,
        "n_positions": 2048,
        "rotary_dim": 64,
        "vocab_size": 50400,
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
    },
}


@dataclass(frozen=True)
class ModelSource:
    """A model and where it came from: `path` is its folder or GGUF file, `None` for a preset."""

    config: ModelConfig
    path: Path | None


def preset_config(name: str) -> ModelConfig:
    return config_from_hf(PRESETS[name], name)


def resolve_model(name_or_path: str | Path) -> ModelSource:
    """A preset's name, a Hugging Face folder or a `.gguf` file; raises `EngineError` naming the presets otherwise."""
    name = str(name_or_path)
    if name in PRESETS:
        return ModelSource(preset_config(name), None)
    path = Path(name_or_path)
    if path.is_dir():
        return ModelSource(read_config(path), path)
    if path.is_file() and path.suffix == ".gguf":
        from trtllm_engines.checkpoints.gguf_file import GgufFile

        return ModelSource(GgufFile(path).config, path)
    if path.is_file():
        raise EngineError(f"{name} is a file but not a .gguf one; give a preset, a Hugging Face folder or a .gguf file")
    near = get_close_matches(name, PRESETS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise EngineError(f"unknown model {name!r}{hint}: neither a preset ({', '.join(PRESETS)}) nor an existing folder or .gguf file")
