"""Pointwise ops: activations and residual addition. Computed in fp32, rounded once."""

from __future__ import annotations

import torch
from torch.nn import functional

from trtllm_kernels.ops.registry import dialect_op, fake_like_first


@dialect_op("silu_mul(Tensor gate, Tensor up) -> Tensor", fake=fake_like_first)
def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """SwiGLU's product (Shazeer 2020): silu(gate) * up."""
    return (functional.silu(gate.float()) * up.float()).to(gate.dtype)


def _fake_packed(gate_up: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2)


@dialect_op("silu_mul_packed(Tensor gate_up) -> Tensor", fake=_fake_packed)
def silu_mul_packed(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return silu_mul(gate, up)


@dialect_op("gelu(Tensor x) -> Tensor", fake=fake_like_first)
def gelu(x: torch.Tensor) -> torch.Tensor:
    """The tanh approximation (`gelu_new`)."""
    return functional.gelu(x.float(), approximate="tanh").to(x.dtype)


@dialect_op("add(Tensor a, Tensor b) -> Tensor", fake=fake_like_first)
def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.float() + b.float()).to(a.dtype)
