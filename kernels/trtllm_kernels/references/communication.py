"""What the ranks of a group compute together: each a function of all ranks' arguments, in rank order, so that all have the same bits; and
what passes from stage to stage of a pipeline.

A communicator gathers tensors; here that is all it has to do. The first word of `group` is its number (`communicate`), and that of `pipe`
the number of a link (`connect`).
"""

from __future__ import annotations

import itertools
from typing import Protocol

import torch
from torch.nn import functional

from trtllm_kernels.dialect.group import PIPE_WORDS, group_words
from trtllm_kernels.dialect.registry import dialect_op, fake_like_first
from trtllm_kernels.references.norm import fake_add_norm, rms_norm
from trtllm_kernels.references.sampling import chosen_value_and_column, fake_sample, store_tokens


class Communicator(Protocol):
    """One rank's end of a group."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        """`x` of every rank, in rank order. Every rank calls it with the same shape and dtype."""


class Link(Protocol):
    """One rank's ends of a pipeline: to the same rank of the stage before, and of the next."""

    def receive(self, hidden: torch.Tensor) -> None:
        """Fills `hidden` with what the stage before sent of its next step."""

    def send(self, hidden: torch.Tensor) -> None: ...


_LINKS: dict[int, Link] = {}
_COMMUNICATORS: dict[int, Communicator] = {}
_numbers = itertools.count(1)


def communicate(communicator: Communicator) -> torch.Tensor:
    """The `group` argument of ops on a CPU whose ranks `communicator` joins."""
    number = next(_numbers)
    _COMMUNICATORS[number] = communicator
    group = torch.zeros(group_words(communicator.size), dtype=torch.int64)
    group[0] = number
    return group


def connect(link: Link) -> torch.Tensor:
    """The `pipe` argument of ops on a CPU whose ends `link` has."""
    number = next(_numbers)
    _LINKS[number] = link
    pipe = torch.zeros(PIPE_WORDS, dtype=torch.int64)
    pipe[0] = number
    return pipe


@dialect_op("send", fake=fake_like_first)
def send(x: torch.Tensor, pipe: torch.Tensor) -> torch.Tensor:
    """x [T, H], sent to the next stage."""
    _LINKS[int(pipe[0])].send(x)
    return x.clone()


@dialect_op("receive", fake=fake_like_first)
def receive(hidden: torch.Tensor, pipe: torch.Tensor) -> torch.Tensor:
    """[T, H] of the stage before. `hidden` says how much: what it holds is not read."""
    received = torch.empty_like(hidden)
    _LINKS[int(pipe[0])].receive(received)
    return received


def communicator_of(group: torch.Tensor) -> Communicator:
    return _COMMUNICATORS[int(group[0])]


@dialect_op("all_reduce", fake=fake_like_first)
def all_reduce(x: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """x [T, H] summed over the ranks in fp32, in rank order, and rounded once."""
    total = torch.zeros_like(x, dtype=torch.float32)
    for part in communicator_of(group).all_gather(x):
        total += part.float()
    return total.to(x.dtype)


@dialect_op("all_reduce_add", fake=fake_like_first)
def all_reduce_add(x: torch.Tensor, residual: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """residual + `all_reduce(x)`, rounded twice. Of the residual a rank may have its own rows only (`all_reduce_add_rms_norm`)."""
    return residual + all_reduce(x, group)


@dialect_op("all_reduce_add_rms_norm", fake=fake_add_norm)
def all_reduce_add_rms_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    group: torch.Tensor,
    eps: float,
    out_scale: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(RMS norm of the sum, the sum): of x [T, H] over the ranks, rounded, plus the residual, rounded.

    On GPUs, in steps of more than `ONE_SHOT_ROWS` tokens, a rank's second result holds only the rows it owns (an equal share, in rank
    order): the reduction after it, which owns the same, is what reads it.
    """
    total = residual + all_reduce(x, group)
    return rms_norm(total, weight, eps, out_scale), total


@dialect_op("sharded_linear_sample", fake=fake_sample)
def sharded_linear_sample(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    sampling_words: torch.Tensor,
    sample_slots: torch.Tensor,
    ring_slot: torch.Tensor,
    argmax_scratch: torch.Tensor,
    last_tokens: torch.Tensor,
    token_ring: torch.Tensor,
    group: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`linear_sample` of which each rank has V / ranks rows of the weight, in rank order: (logits [S, V / ranks], tokens int32 [S]).

    Ranks exchange the best (value, column) of each row, not logits. Noise is that of the column in the whole vocabulary, so a token is the
    same however many ranks there are.
    """
    communicator = communicator_of(group)
    logits = functional.linear(x, weight, bias)
    columns = weight.shape[0]
    value, column = chosen_value_and_column(logits, sampling_words, communicator.rank * columns, communicator.size * columns)
    values = torch.stack(communicator.all_gather(value))
    firsts = torch.stack(communicator.all_gather(column))
    best = values.max(dim=0).values
    first = torch.where(values == best, firsts, torch.iinfo(torch.int32).max).min(dim=0).values
    return logits, store_tokens(best, first, last_tokens, sample_slots, token_ring[int(ring_slot)])
