"""Matrix product, and the column split that follows a merged one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from trtllm_kernels.ops.registry import dialect_op


def _fake_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@dialect_op("linear(Tensor x, Tensor weight, Tensor? bias=None) -> Tensor", fake=_fake_linear)
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [T, K] times weight [N, K] transposed, accumulated in fp32, plus bias [N]."""
    return functional.linear(x, weight, bias)


def _fake_split(x: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    return [x.new_empty(x.shape[0], size) for size in sizes]


@dialect_op("split(Tensor x, int[] sizes) -> Tensor[]", fake=_fake_split)
def split(x: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """Columns of x as separate contiguous tensors (copies: an op's result never aliases its argument)."""
    return [part.contiguous() if part.shape[1] != x.shape[1] else part.clone() for part in torch.split_with_sizes(x, list(sizes), dim=-1)]
