"""StableLM as a family outside the package: all that one needs is in this folder.

It differs from Llama in its layer norms with biases and in rotating a quarter of each head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_engines.models.config import ModelConfig, partial_rotary_factor, rope_from_hf, token_ids
from trtllm_engines.models.families import Family, register
from trtllm_engines.models.fields import Fields

if TYPE_CHECKING:
    from torch import nn

ARCHITECTURE = "StableLmForCausalLM"
PRESET = {
    "architectures": [ARCHITECTURE],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}


def parse(fields: Fields, architecture: str, name: str) -> ModelConfig:
    fields.only("hidden_act", "silu")
    heads, hidden = fields.integer("num_attention_heads"), fields.integer("hidden_size")
    head_dim = hidden // heads
    return ModelConfig(
        name=name,
        architecture=architecture,
        hidden_size=hidden,
        num_layers=fields.integer("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads"),
        head_dim=head_dim,
        intermediate_size=fields.integer("intermediate_size"),
        vocab_size=fields.integer("vocab_size"),
        max_position_embeddings=fields.integer("max_position_embeddings"),
        norm_eps=fields.number("layer_norm_eps", 1e-5),
        rope=rope_from_hf(fields, int(head_dim * partial_rotary_factor(fields, 0.25))),
        eos_token_ids=token_ids(fields, "eos_token_id"),
        options={"attention_biases": fields.flag("use_qkv_bias")},
    )


def _module(config: ModelConfig) -> nn.Module:
    from stablelm_family.module import StableLmForCausalLM

    return StableLmForCausalLM(config)


FAMILY = register(
    Family(name="stablelm", architectures={ARCHITECTURE: "stablelm"}, parse=parse, module=_module, presets={"tiny-stablelm": PRESET})
)
