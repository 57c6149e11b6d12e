"""A rank's part of a weight that was made whole."""

from __future__ import annotations

import torch
from torch import Tensor

from trtllm_engines.quantization.scheme import WeightRecipe


def take(recipe: WeightRecipe, whole: Tensor, rank: int) -> Tensor:
    """The part that `rank` of a tensor-parallel group has of `whole`, made by `recipe`: a copy unless it is all of it.

    A scale of a whole tensor, or of rows of which each rank has a part, belongs to every rank as it is.
    """
    shards = recipe.shards
    if any(shard is not None and shard.dim is None for shard in shards) and rank > 0:
        return torch.zeros_like(whole)
    columns = next((shard for shard in shards if shard is not None and shard.dim == 1), None)
    if columns is not None:
        if whole.dim() == 1 or whole.shape[1] == 1:
            return whole
        size = whole.shape[1] // columns.pieces
        return whole[:, (rank // columns.copies) * size :][:, :size].contiguous()
    if whole.shape[0] != sum(full[0] for _, full in recipe.inputs):
        return whole
    rows: list[int] = []
    first, count = 0, len(recipe.inputs)
    for index, ((_, full), shard) in enumerate(zip(recipe.inputs, shards, strict=True)):
        own = range(full[0]) if shard is None else shard.along(0, full[0], rank)
        rows += [row * count + index for row in own] if recipe.interleave else [first + row for row in own]
        first += full[0]
    if recipe.interleave:
        rows.sort()
    return whole[torch.tensor(rows, device=whole.device)] if whole.element_size() > 1 else _rows_of_codes(whole, rows)


def _rows_of_codes(codes: Tensor, rows: list[int]) -> Tensor:
    """Rows of a tensor whose dtype torch does not index, such as fp8."""
    taken = codes.view(torch.uint8)[torch.tensor(rows, device=codes.device)]
    return taken.view(codes.dtype)
