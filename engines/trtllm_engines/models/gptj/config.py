"""`config.json` of GPT-J, read as transformers' `GPTJConfig` reads it, and the preset with the values its authors published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig, RopeConfig, token_id, token_ids
from trtllm_engines.models.fields import Fields

ARCHITECTURE = "GPTJForCausalLM"
ROPE_THETA = 10000.0
"""Not in config.json: transformers' code has this number."""
ROTARY_DIM = 64
"""Of a config.json without `rotary_dim`."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "gptj-6b": {
        "architectures": [ARCHITECTURE],
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


def parse(fields: Fields, architecture: str, name: str) -> ModelConfig:
    fields.only("activation_function", "gelu_new")
    hidden, heads = fields.integer("n_embd"), fields.integer("n_head", least=1)
    head_dim = hidden // heads
    return ModelConfig(
        name=name,
        architecture=architecture,
        hidden_size=hidden,
        num_layers=fields.integer("n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=fields.integer("n_inner", 0) or 4 * hidden,
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=fields.integer("n_positions"),
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        rope=RopeConfig(theta=ROPE_THETA, rotary_dim=_rotary_dim(fields), interleaved=True),
        mlp_bias=True,
        tie_embeddings=fields.flag("tie_word_embeddings"),
        bos_token_id=token_id(fields, "bos_token_id"),
        eos_token_ids=token_ids(fields, "eos_token_id"),
    )


def _rotary_dim(fields: Fields) -> int:
    rotary_dim = fields.get("rotary_dim", ROTARY_DIM)
    if not rotary_dim:
        raise EngineError(f"{fields.source}: rotary_dim is {rotary_dim!r}; it must be the number of dimensions of a head that are rotated")
    return fields.integer("rotary_dim", ROTARY_DIM)
