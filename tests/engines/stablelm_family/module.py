"""StableLM (Bellagente et al. 2024) without its parallel residual and its norms of q and k."""

from __future__ import annotations

from torch import Tensor, nn

from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.layers import CausalAttention, Embedding, LayerNorm, Linear, Rotary, ops


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, rope: Rotary) -> None:
        super().__init__()
        bias = bool(config.options["attention_biases"])
        self.q_proj = Linear(config.hidden_size, config.q_size, bias)
        self.k_proj = Linear(config.hidden_size, config.kv_size, bias)
        self.v_proj = Linear(config.hidden_size, config.kv_size, bias)
        self.o_proj = Linear(config.q_size, config.hidden_size)
        self.attn = CausalAttention(config, rope)

    def forward(self, x: Tensor, positions: Tensor, query_start: Tensor) -> Tensor:
        out: Tensor = self.o_proj(self.attn(self.q_proj(x), self.k_proj(x), self.v_proj(x), positions, query_start))
        return out


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(ops.silu_mul.default(self.gate_proj(x), self.up_proj(x)))
        return out


class Block(nn.Module):
    def __init__(self, config: ModelConfig, rope: Rotary) -> None:
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, rope)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.norm_eps)
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
        self.norm = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, ids: Tensor, positions: Tensor, query_start: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, positions, query_start)
        out: Tensor = self.norm(x)
        return out


class StableLmForCausalLM(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rope = Rotary(config)
        self.model = Decoder(config, self.rope)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)

    def forward(self, token_ids: Tensor, positions: Tensor, query_start: Tensor, logit_rows: Tensor) -> Tensor:
        """token_ids, positions int32 [T]; query_start int32 [R + 1]; logit_rows int32 [S] -> logits [S, vocab]."""
        hidden = self.model(token_ids, positions, query_start)
        out: Tensor = self.lm_head(ops.gather_rows.default(hidden, logit_rows))
        return out
