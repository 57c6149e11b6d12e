"""The op that ends a step, by its definition: which token, where it goes, and that equals fall to the first."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trtllm_kernels.dialect.types import NO_TOKEN
from trtllm_kernels.references.philox import gumbel_noise
from trtllm_kernels.references.sampling import EMPTY

SLOTS = 9


def arguments(weight: torch.Tensor, x: torch.Tensor, temperature: float = 0.0, seed: int = 0) -> dict[str, Any]:
    rows = x.shape[0]
    bits = torch.tensor([temperature]).view(torch.int32).expand(rows)
    halves = torch.tensor([seed]).view(torch.int32).expand(rows, 2)
    return {
        "x": x,
        "weight": weight,
        "bias": None,
        "sampling_words": torch.cat((bits[:, None], halves, torch.arange(rows).int()[:, None]), 1).contiguous(),
        "sample_slots": torch.arange(SLOTS - 1, SLOTS - 1 - rows, -1).int(),
        "ring_slot": torch.tensor([1], dtype=torch.int32),
        "argmax_scratch": torch.full((SLOTS,), EMPTY),
        "last_tokens": torch.full((SLOTS,), -1, dtype=torch.int32),
        "token_ring": torch.full((4, SLOTS), -1, dtype=torch.int32),
    }


@given(rows=st.integers(0, 8), columns=st.integers(1, 40), seed=st.integers(0, 99))
def test_greedy_takes_the_first_of_the_largest_and_leaves_it_in_three_places(rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, weight = torch.eye(8)[:rows], torch.randint(-2, 3, (columns, 8), generator=generator).float()
    named = arguments(weight, x)
    logits, tokens = torch.ops.trtllm.linear_sample(**named)
    expected = [row.index(max(row)) for row in weight.T[:rows].tolist()]
    assert torch.equal(logits, weight.T[:rows])
    assert tokens.tolist() == expected
    assert named["token_ring"][1].tolist() == expected + [-1] * (SLOTS - rows)
    assert (named["token_ring"][[0, 2, 3]] == -1).all()
    assert named["last_tokens"].flip(0)[:rows].tolist() == expected
    assert (named["last_tokens"].flip(0)[rows:] == -1).all()
    assert (named["argmax_scratch"] == EMPTY).all()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_without_a_finite_best_has_no_token(value: float) -> None:
    """The next step reads token 0, a row of the embedding; the host is told. Other rows are as ever."""
    named = arguments(torch.eye(8), torch.stack((torch.eye(8)[3], torch.full((8,), value))))
    assert torch.ops.trtllm.linear_sample(**named)[1].tolist() == [3, 0]
    assert named["token_ring"][1, :2].tolist() == [3, NO_TOKEN]
    assert named["last_tokens"].flip(0)[:2].tolist() == [3, 0]


def test_a_draw_depends_on_seed_and_position_and_follows_the_softmax() -> None:
    weight = torch.tensor([[1.0], [0.0], [-1.0], [2.0]])
    temperature, seed, count = 0.8, (7 << 32) | 3, 4096
    named = arguments(weight, torch.ones(SLOTS, 1), temperature, seed)
    frequency = torch.zeros(4)
    for first in range(0, count, SLOTS):
        named["sampling_words"][:, 3] = torch.arange(first, first + SLOTS)
        tokens = torch.ops.trtllm.linear_sample(**named)[1]
        seeds = torch.full((SLOTS,), seed)
        noise = gumbel_noise(seeds, torch.arange(first, first + SLOTS), 4)
        assert torch.equal(tokens, (weight.T / temperature + noise).argmax(1).int())
        frequency += torch.bincount(tokens, minlength=4)
    assert (frequency / frequency.sum() - torch.softmax(weight[:, 0] / temperature, 0)).abs().max() < 0.03
