"""Pointwise ops: activations and residual addition. Computed in fp32, rounded once."""

from __future__ import annotations

import torch
from torch.nn import functional

from trtllm_kernels.dialect.registry import dialect_op, fake_like_first
from trtllm_kernels.references.quantize import codes_by_row, fake_finished, fake_rows, finish


@dialect_op("silu_mul", fake=fake_like_first)
def silu_mul(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """SwiGLU's activation (Shazeer 2020): silu(gate) * up."""
    return (functional.silu(gate.float()) * up.float()).to(gate.dtype)


@dialect_op("silu_mul_packed", fake=lambda gate_up, out_scale: fake_finished(_half(gate_up), out_scale))
def silu_mul_packed(gate_up: torch.Tensor, out_scale: torch.Tensor | None = None) -> torch.Tensor:
    return finish(_gated(gate_up), gate_up.dtype, out_scale)


def _half(gate_up: torch.Tensor) -> torch.Tensor:
    return gate_up[:, : gate_up.shape[1] // 2]


def _gated(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return functional.silu(gate) * up


@dialect_op("silu_mul_packed_quantize_rows", fake=lambda gate_up, dtype: fake_rows(_half(gate_up), dtype))
def silu_mul_packed_quantize_rows(gate_up: torch.Tensor, dtype: str = "fp8") -> tuple[torch.Tensor, torch.Tensor]:
    return codes_by_row(_gated(gate_up), dtype)


@dialect_op("gelu", fake=fake_finished)
def gelu(x: torch.Tensor, out_scale: torch.Tensor | None = None) -> torch.Tensor:
    """The tanh approximation (`gelu_new`)."""
    return finish(functional.gelu(x.float(), approximate="tanh"), x.dtype, out_scale)


@dialect_op("gelu_quantize_rows", fake=fake_rows)
def gelu_quantize_rows(x: torch.Tensor, dtype: str = "fp8") -> tuple[torch.Tensor, torch.Tensor]:
    return codes_by_row(functional.gelu(x.float(), approximate="tanh"), dtype)


@dialect_op("add", fake=fake_like_first)
def add(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.float() + b.float()).to(a.dtype)
