"""Presets of the Llama family, as the `config.json` their authors published.

`tiny-llama` is ours, small enough for a sweep on a laptop's CPU and shaped so that every feature of the family (grouped heads, several
layers) is exercised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
    "tiny-llama": _llama(128, 384, 4, 4, 2, 512, 131072, 10000.0, bos_token_id=1, eos_token_id=2),
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
}
