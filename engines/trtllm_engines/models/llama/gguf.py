"""The Llama family in GGUF, as llama.cpp's converter writes it.

Two things differ from Hugging Face besides names. For architecture `llama` the rows of q and k are stored interleaved, for a rotation of
adjacent pairs; that is undone here, since our table rotates halves. Llama 3.1's frequency scaling arrives as a tensor of divisors,
`rope_freqs.weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from trtllm_engines.documents import shown
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig, RopeConfig
from trtllm_engines.models.families import FloatArray, GgufFormat, GgufTensors
from trtllm_engines.models.fields import Fields

NAMES: Mapping[str, str] = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers.{n}.input_layernorm": "blk.{n}.attn_norm",
    "model.layers.{n}.post_attention_layernorm": "blk.{n}.ffn_norm",
    "model.layers.{n}.self_attn.q_proj": "blk.{n}.attn_q",
    "model.layers.{n}.self_attn.k_proj": "blk.{n}.attn_k",
    "model.layers.{n}.self_attn.v_proj": "blk.{n}.attn_v",
    "model.layers.{n}.self_attn.o_proj": "blk.{n}.attn_output",
    "model.layers.{n}.self_attn.q_norm": "blk.{n}.attn_q_norm",
    "model.layers.{n}.self_attn.k_norm": "blk.{n}.attn_k_norm",
    "model.layers.{n}.mlp.gate_proj": "blk.{n}.ffn_gate",
    "model.layers.{n}.mlp.up_proj": "blk.{n}.ffn_up",
    "model.layers.{n}.mlp.down_proj": "blk.{n}.ffn_down",
}


def _parser(architecture: str) -> Callable[[Fields, GgufTensors, str], ModelConfig]:
    def parse(fields: Fields, tensors: GgufTensors, name: str) -> ModelConfig:
        heads = fields.integer("attention.head_count", least=1)
        hidden = fields.integer("embedding_length")
        head_dim = fields.integer("attention.key_length", 0) or hidden // heads
        if fields.integer("attention.value_length", head_dim) != head_dim:
            raise EngineError(
                f"{fields.source}: attention.value_length is {fields['attention.value_length']} and keys have {head_dim} dimensions; "
                f"both must have the same number"
            )
        embedding = tensors.shape("token_embd.weight")
        if embedding is None:
            raise EngineError(f"{fields.source}: tensor token_embd.weight is missing")
        return ModelConfig(
            name=name,
            architecture=architecture,
            hidden_size=hidden,
            num_layers=fields.integer("block_count"),
            num_heads=heads,
            num_kv_heads=fields.integer("attention.head_count_kv", 0) or heads,
            head_dim=head_dim,
            intermediate_size=fields.integer("feed_forward_length"),
            vocab_size=embedding[0],
            max_position_embeddings=fields.integer("context_length"),
            norm_eps=float(np.float32(fields.number("attention.layer_norm_rms_epsilon")).astype(str)),
            rope=_rope(fields, tensors, head_dim),
            qkv_bias=tensors.shape("blk.0.attn_q.bias") is not None,
            output_bias=tensors.shape("blk.0.attn_output.bias") is not None,
            mlp_bias=tensors.shape("blk.0.ffn_gate.bias") is not None,
            qk_norm=tensors.shape("blk.0.attn_q_norm.weight") is not None,
            tie_embeddings=tensors.shape("output.weight") is None,
            sliding_window=fields.integer("attention.sliding_window", 0) or None,
        )

    return parse


def _rope(fields: Fields, tensors: GgufTensors, head_dim: int) -> RopeConfig:
    rotary_dim = fields.integer("rope.dimension_count", head_dim)
    if rotary_dim != head_dim:
        raise EngineError(
            f"{fields.source}: rope.dimension_count is {rotary_dim} and heads have {head_dim} dimensions; whole heads are rotated"
        )
    rope = RopeConfig(theta=fields.number("rope.freq_base", 10000.0), rotary_dim=rotary_dim)
    factors = tensors.tensor("rope_freqs.weight")
    scaling = fields.text("rope.scaling.type") or "none"
    factor = fields.number("rope.scaling.factor", 1.0) if scaling == "none" else fields.number("rope.scaling.factor")
    if scaling not in ("none", "linear"):
        raise EngineError(f"{fields.source}: rope scaling {shown(scaling)} is not supported; supported are none and linear")
    if factors is not None:
        if scaling == "linear":
            raise EngineError(f"{fields.source}: rope frequencies are scaled twice, by rope.scaling and by rope_freqs.weight")
        return replace(rope, scaling="factors", freq_factors=tuple(float(divisor) for divisor in factors))
    if scaling == "linear":
        return replace(rope, scaling="linear", factor=factor)
    return rope


def _unpermuted(name: str, values: FloatArray, config: ModelConfig) -> FloatArray:
    if ".q_proj." in name:
        return unpermute(values, config.num_heads)
    return unpermute(values, config.num_kv_heads) if ".k_proj." in name else values


def unpermute(values: FloatArray, num_heads: int) -> FloatArray:
    """Rows of each head from interleaved pairs (0, h, 1, h + 1, ...) to halves (0, 1, ..., h, h + 1, ...)."""
    rows = values.shape[0]
    return values.reshape(num_heads, rows // num_heads // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


FORMATS: Mapping[str, GgufFormat] = {
    "llama": GgufFormat(_parser("LlamaForCausalLM"), NAMES, _unpermuted),
    "qwen2": GgufFormat(_parser("Qwen2ForCausalLM"), NAMES),
    "qwen3": GgufFormat(_parser("Qwen3ForCausalLM"), NAMES),
}
"""By `general.architecture`."""
