"""The few layers both families share, each one dialect op around meta parameters under Hugging Face's names."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

import trtllm_kernels.references  # noqa: F401  (registers torch.ops.trtllm)
from trtllm_engines.models.config import ModelConfig

ops = torch.ops.trtllm
Split = Literal["outputs", "inputs"] | None


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, device="meta"), requires_grad=False)


class Embedding(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = parameter(rows, columns)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = ops.embedding.default(ids, self.weight)
        return out


class Linear(nn.Module):
    """`split` hints how a tensor-parallel group divides it (`passes.shard`): by its outputs (Megatron's column-parallel) or its inputs
    (row-parallel)."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False, split: Split = None) -> None:
        super().__init__()
        self.split = split
        self.weight = parameter(outputs, inputs)
        self.bias = parameter(outputs) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = ops.linear.default(x, self.weight, self.bias)
        return out


class RMSNorm(nn.Module):
    """Over groups of `size` (a whole row, or one head)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(size)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = ops.rms_norm.default(x, self.weight, self.eps)
        return out


class LayerNorm(nn.Module):
    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(size)
        self.bias = parameter(size)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = ops.layer_norm.default(x, self.weight, self.bias, self.eps)
        return out


class Rotary(nn.Module):
    """Holds the table's place; its numbers come from `models.rope.cos_sin_table`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.cos_sin = parameter(config.max_position_embeddings, config.rope.rotary_dim)
        self.head_dim = config.head_dim
        self.interleaved = config.rope.interleaved

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        out: Tensor = ops.rope.default(x, positions, self.cos_sin, self.head_dim, self.interleaved)
        return out


class CausalAttention(nn.Module):
    """Rotate queries and keys, attend causally within each sequence. Grouped-query when there are fewer key-value heads."""

    def __init__(self, config: ModelConfig, rope: Rotary) -> None:
        super().__init__()
        self.rope = rope
        self.num_heads = config.num_heads
        self.num_kv_heads = config.num_kv_heads
        self.scale = config.head_dim**-0.5

    def forward(self, q: Tensor, k: Tensor, v: Tensor, positions: Tensor, query_start: Tensor) -> Tensor:
        q, k = self.rope(q, positions), self.rope(k, positions)
        out: Tensor = ops.attention.default(q, k, v, query_start, self.num_heads, self.num_kv_heads, self.scale)
        return out
