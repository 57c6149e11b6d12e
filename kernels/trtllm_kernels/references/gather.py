"""Gathers of rows (the embedding, rows whose logits are needed) and of columns, and the step's bookkeeping, `prepare_step`."""

from __future__ import annotations

from typing import Any

import torch

from trtllm_kernels.dialect.registry import dialect_op
from trtllm_kernels.references.quantize import fake_finished, finish


@dialect_op("embedding", fake=lambda ids, weight: weight.new_empty(ids.shape[0], weight.shape[1]))
def embedding(ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return weight.index_select(0, ids)


@dialect_op("gather_rows", fake=lambda x, rows: x.new_empty(rows.shape[0], x.shape[1]))
def gather_rows(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    return x.index_select(0, rows)


@dialect_op("arrange_columns", fake=fake_finished)
def arrange_columns(
    x: torch.Tensor,
    index: torch.Tensor | None = None,
    factor: torch.Tensor | None = None,
    out_scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """y[:, k] = x[:, index[k]] * factor[k] for x [T, K], index int32 [K] and factor fp32 [K], rounded once."""
    y = (x if index is None else x.index_select(1, index)).float()
    return finish(y if factor is None else y * factor, x.dtype, out_scale)


def _fake_prepare(context_tokens: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
    return tuple(context_tokens.new_empty(context_tokens.shape) for _ in range(3))


@dialect_op("prepare_step", fake=_fake_prepare)
def prepare_step(
    context_tokens: torch.Tensor,
    seq_slots: torch.Tensor,
    query_start: torch.Tensor,
    kv_lens: torch.Tensor,
    last_tokens: torch.Tensor,
    block_table: torch.Tensor,
    page_size: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(token_ids, positions, kv_slots) of each token of the ragged batch.

    A context token of -1 stands for the last token sampled in its slot. Tokens from `query_start[R]` on are padding: their id, position and
    slot are 0 (page 0 is reserved for padding).
    """
    token = torch.arange(context_tokens.shape[0], dtype=torch.int32)
    owner = torch.searchsorted(query_start[1:].contiguous(), token, right=True)
    owned = token < query_start[-1]
    owner = owner.clamp_max(seq_slots.shape[0] - 1)
    position = kv_lens[owner] - (query_start[1:][owner] - token)
    slot = seq_slots[owner].long()
    ids = torch.where(context_tokens < 0, last_tokens[slot], context_tokens)
    position = torch.where(owned, position, 0)
    page = block_table[slot, (position // page_size).long()]
    kv_slots = torch.where(owned, page * page_size + position % page_size, 0)
    return torch.where(owned, ids, 0), position, kv_slots
