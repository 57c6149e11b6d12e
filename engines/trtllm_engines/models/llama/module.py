"""The Llama family: pre-norm blocks of grouped-query attention with rotary positions and a SwiGLU feed-forward (Touvron et al. 2023).

One definition serves Llama 2, 3 and 3.1, SmolLM2 and Mistral as they are, Qwen2.5 (bias on q, k, v) and Qwen3 (RMS norm on each head of
q and k): they differ only in numbers and in three optional parts.
"""

from __future__ import annotations

from torch import Tensor, nn

from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.layers import CausalAttention, Embedding, Linear, RMSNorm, Rotary, ops


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, rope: Rotary) -> None:
        super().__init__()
        self.q_proj = Linear(config.hidden_size, config.q_size, bias=config.qkv_bias, split="outputs")
        self.k_proj = Linear(config.hidden_size, config.kv_size, bias=config.qkv_bias, split="outputs")
        self.v_proj = Linear(config.hidden_size, config.kv_size, bias=config.qkv_bias, split="outputs")
        self.o_proj = Linear(config.q_size, config.hidden_size, bias=config.output_bias, split="inputs")
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.attn = CausalAttention(config, rope)

    def forward(self, x: Tensor, positions: Tensor, query_start: Tensor) -> Tensor:
        q, k, v = self.q_norm(self.q_proj(x)), self.k_norm(self.k_proj(x)), self.v_proj(x)
        out: Tensor = self.o_proj(self.attn(q, k, v, positions, query_start))
        return out


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias, split="outputs")
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias, split="outputs")
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias, split="inputs")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(ops.silu_mul.default(self.gate_proj(x), self.up_proj(x)))
        return out


class Block(nn.Module):
    def __init__(self, config: ModelConfig, rope: Rotary) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, rope)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, positions: Tensor, query_start: Tensor) -> Tensor:
        x = ops.add.default(self.self_attn(self.input_layernorm(x), positions, query_start), x)
        out: Tensor = ops.add.default(self.mlp(self.post_attention_layernorm(x)), x)
        return out


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig, rope: Rotary) -> None:
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, rope) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, ids: Tensor, positions: Tensor, query_start: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, positions, query_start)
        out: Tensor = self.norm(x)
        return out


class LlamaForCausalLM(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rope = Rotary(config)
        self.model = Decoder(config, self.rope)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, split="outputs")
        if config.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, token_ids: Tensor, positions: Tensor, query_start: Tensor, logit_rows: Tensor) -> Tensor:
        """token_ids, positions int32 [T]; query_start int32 [R + 1]; logit_rows int32 [S] -> logits [S, vocab]."""
        hidden = self.model(token_ids, positions, query_start)
        out: Tensor = self.lm_head(ops.gather_rows.default(hidden, logit_rows))
        return out
