"""GPT-J (Wang and Komatsuzaki 2021): one layer norm feeds attention and feed-forward in parallel, and both join the residual at once.

Rotary positions turn the first `rotary_dim` dimensions of each head, in interleaved pairs. Projections have no bias; feed-forward and
output head do.
"""

from __future__ import annotations

from torch import Tensor, nn

from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.layers import CausalAttention, Embedding, LayerNorm, Linear, Rotary, ops


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, rope: Rotary) -> None:
        super().__init__()
        self.q_proj = Linear(config.hidden_size, config.q_size, split="outputs")
        self.k_proj = Linear(config.hidden_size, config.kv_size, split="outputs")
        self.v_proj = Linear(config.hidden_size, config.kv_size, split="outputs")
        self.out_proj = Linear(config.q_size, config.hidden_size, split="inputs")
        self.attn = CausalAttention(config, rope)

    def forward(self, x: Tensor, positions: Tensor, query_start: Tensor) -> Tensor:
        out: Tensor = self.out_proj(self.attn(self.q_proj(x), self.k_proj(x), self.v_proj(x), positions, query_start))
        return out


class FeedForward(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.fc_in = Linear(config.hidden_size, config.intermediate_size, bias=True, split="outputs")
        self.fc_out = Linear(config.intermediate_size, config.hidden_size, bias=True, split="inputs")

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc_out(ops.gelu.default(self.fc_in(x)))
        return out


class Block(nn.Module):
    def __init__(self, config: ModelConfig, rope: Rotary) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config, rope)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, positions: Tensor, query_start: Tensor) -> Tensor:
        normed = self.ln_1(x)
        both = ops.add.default(self.attn(normed, positions, query_start), self.mlp(normed))
        out: Tensor = ops.add.default(both, x)
        return out


class Decoder(nn.Module):
    def __init__(self, config: ModelConfig, rope: Rotary) -> None:
        super().__init__()
        self.wte = Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(Block(config, rope) for _ in range(config.num_layers))
        self.ln_f = LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, ids: Tensor, positions: Tensor, query_start: Tensor) -> Tensor:
        x = self.wte(ids)
        for block in self.h:
            x = block(x, positions, query_start)
        out: Tensor = self.ln_f(x)
        return out


class GPTJForCausalLM(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rope = Rotary(config)
        self.transformer = Decoder(config, self.rope)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=True, split="outputs")
        if config.tie_embeddings:
            self.lm_head.weight = self.transformer.wte.weight

    def forward(self, token_ids: Tensor, positions: Tensor, query_start: Tensor, logit_rows: Tensor) -> Tensor:
        """token_ids, positions int32 [T]; query_start int32 [R + 1]; logit_rows int32 [S] -> logits [S, vocab]."""
        hidden = self.transformer(token_ids, positions, query_start)
        out: Tensor = self.lm_head(ops.gather_rows.default(hidden, logit_rows))
        return out
