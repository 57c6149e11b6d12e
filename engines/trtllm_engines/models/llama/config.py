"""`config.json` of the Llama family, read as transformers' configuration class of each architecture reads it.

The architectures differ in which biases and norms they have, in what an absent field means, and in which fields they heed at all.
"""

from __future__ import annotations

from dataclasses import dataclass

from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig, RopeConfig, partial_rotary_factor, rope_from_hf, token_id, token_ids
from trtllm_engines.models.fields import Fields


@dataclass(frozen=True)
class Architecture:
    """Facts of a transformers class (5.x): `num_kv_heads`, `head_dim` and `sliding_window` where config.json has none (None: derived, off).

    `attention_bias` and `mlp_bias`: whether config.json's fields of these names are heeded. `window_switch`: `use_sliding_window` turns the
    window on. `qkv_bias` and `qk_norm`: always there.
    """

    model_type: str
    num_kv_heads: int | None = None
    head_dim: int | None = None
    sliding_window: int | None = None
    window_switch: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", attention_bias=True, mlp_bias=True),
    "MistralForCausalLM": Architecture("mistral", num_kv_heads=8, sliding_window=4096),
    "Qwen2ForCausalLM": Architecture("qwen2", num_kv_heads=32, sliding_window=4096, window_switch=True, qkv_bias=True),
    "Qwen3ForCausalLM": Architecture(
        "qwen3", num_kv_heads=32, head_dim=128, sliding_window=4096, window_switch=True, attention_bias=True, qk_norm=True
    ),
}


def parse(fields: Fields, architecture: str, name: str) -> ModelConfig:
    facts = ARCHITECTURES[architecture]
    fields.only("hidden_act", "silu")
    heads = fields.integer("num_attention_heads", least=1)
    hidden = fields.integer("hidden_size")
    head_dim = _head_dim(fields, facts, hidden, heads)
    attention_bias = facts.attention_bias and fields.flag("attention_bias")
    if facts.qkv_bias:
        fields.passed_over("attention_bias")
    return ModelConfig(
        name=name,
        architecture=architecture,
        hidden_size=hidden,
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=_num_kv_heads(fields, facts, heads),
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        rope=_rope(fields, head_dim, architecture),
        qkv_bias=facts.qkv_bias or attention_bias,
        output_bias=attention_bias,
        mlp_bias=facts.mlp_bias and fields.flag("mlp_bias"),
        qk_norm=facts.qk_norm,
        tie_embeddings=fields.flag("tie_word_embeddings"),
        sliding_window=_sliding_window(fields, facts),
        bos_token_id=token_id(fields, "bos_token_id"),
        eos_token_ids=token_ids(fields, "eos_token_id"),
    )


def _num_kv_heads(fields: Fields, facts: Architecture, heads: int) -> int:
    if "num_key_value_heads" not in fields and facts.num_kv_heads is not None:
        return facts.num_kv_heads
    return fields.integer("num_key_value_heads", 0) or heads


def _head_dim(fields: Fields, facts: Architecture, hidden: int, heads: int) -> int:
    if "head_dim" not in fields and facts.head_dim is not None:
        return facts.head_dim
    return fields.integer("head_dim", 0) or hidden // heads


def _rope(fields: Fields, head_dim: int, architecture: str) -> RopeConfig:
    """transformers rotates whole heads here, whatever `partial_rotary_factor` says; with scaled frequencies it cannot run such a model."""
    rope = rope_from_hf(fields, head_dim)
    factor = partial_rotary_factor(fields)
    if factor != 1 and rope.scaling != "default":
        raise EngineError(
            f"{fields.source}: partial_rotary_factor is {factor:g} with rope scaling {rope.scaling!r}; {architecture} rotates whole heads"
        )
    return rope


def _sliding_window(fields: Fields, facts: Architecture) -> int | None:
    """Tokens that a layer attends to, where some layer attends to so many only."""
    layer_types = set(fields.strings("layer_types"))
    if layer_types - {"full_attention", "sliding_attention"}:
        listed = ", ".join(sorted(layer_types))[:60]
        raise EngineError(f"{fields.source}: layer_types has {listed}; only full_attention and sliding_attention are supported")
    switched_on = fields.flag("use_sliding_window")
    if facts.window_switch and not switched_on:
        fields.passed_over("sliding_window")
        return None
    default = facts.sliding_window if "sliding_window" not in fields else 0
    return fields.integer("sliding_window", default or 0) or None
