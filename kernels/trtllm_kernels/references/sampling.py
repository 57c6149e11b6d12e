"""The last GEMM of a step and what it decides: a token for each row whose logits are needed, greedy or sampled at a temperature."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from trtllm_kernels.dialect.registry import dialect_op
from trtllm_kernels.dialect.types import EMPTY_WORD, NO_TOKEN
from trtllm_kernels.references.philox import gumbel_noise

EMPTY = EMPTY_WORD
"""Value of `argmax_scratch` between steps: no candidate yet."""


def fake_sample(x: torch.Tensor, weight: torch.Tensor, sample_slots: torch.Tensor, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The fake of ops that return logits of x and weight, and tokens."""
    return x.new_empty(x.shape[0], weight.shape[0]), sample_slots.new_empty(sample_slots.shape)


@dialect_op("linear_sample", fake=fake_sample)
def linear_sample(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    sampling_words: torch.Tensor,
    sample_slots: torch.Tensor,
    ring_slot: torch.Tensor,
    argmax_scratch: torch.Tensor,
    last_tokens: torch.Tensor,
    token_ring: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(logits [S, V], tokens int32 [S]) of x [S, K] and weight [V, K].

    sampling_words is int32 [S, 4] (`types.SAMPLING_WORDS`), sample_slots int32 [S]. The token is the arg-max of the row's rounded logits,
    the first of equals; with a temperature t > 0 it is the arg-max of logits / t + Gumbel noise, which samples from their softmax. It is
    stored in `last_tokens` of its slot and in `token_ring` [ring slots, most rows] at [ring_slot, row], where the host reads it.
    A row whose best is NaN or infinite has token 0, and `NO_TOKEN` in `token_ring`.
    `argmax_scratch` int64 [most rows] is scratch memory of the kernels, `EMPTY` before and after.
    """
    logits = functional.linear(x, weight, bias)
    value, column = chosen_value_and_column(logits, sampling_words, 0, weight.shape[0])
    return logits, store_tokens(value, column, last_tokens, sample_slots, token_ring[int(ring_slot)])


def store_tokens(
    value: torch.Tensor, column: torch.Tensor, last_tokens: torch.Tensor, sample_slots: torch.Tensor, ring_row: torch.Tensor
) -> torch.Tensor:
    """Tokens int32 [S] of the best values and their columns, stored where the next step and the host read them."""
    finite, column = value.isfinite(), column.to(torch.int32)
    tokens = torch.where(finite, column, 0)
    last_tokens[sample_slots.long()] = tokens
    ring_row[: len(tokens)] = torch.where(finite, column, NO_TOKEN)
    return tokens


def chosen_value_and_column(
    logits: torch.Tensor, sampling_words: torch.Tensor, first_column: int, num_columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(value fp32 [S], column int64 [S]) that each row of `logits` chooses, which are columns from `first_column` of `num_columns`."""
    z = logits.float()
    temperature = sampling_words[:, :1].contiguous().view(torch.float32)
    sampled = temperature > 0
    if bool(sampled.any()):
        seeds = (sampling_words[:, 1].long() & 0xFFFFFFFF) | (sampling_words[:, 2].long() << 32)
        noise = gumbel_noise(seeds, sampling_words[:, 3].long(), num_columns)[:, first_column : first_column + z.shape[1]]
        z = torch.where(sampled, z / torch.where(sampled, temperature, 1.0) + noise, z)
    column = z.argmax(dim=-1)
    return z.gather(1, column[:, None])[:, 0], column + first_column
