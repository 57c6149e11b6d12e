"""The checkpoint tensors of a weight, stacked: what every weight recipe begins with."""

from __future__ import annotations

import torch
from torch import Tensor

from trtllm_engines.checkpoints import WeightSource
from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.quantization.scheme import WeightRecipe


def stack(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The recipe's inputs as wide numbers in one tensor [rows of all, ...], one at a time in memory. Drawn weights are drawn in place."""
    rows = sum(shape[0] for _, shape in recipe.inputs)
    out = torch.empty((rows, *recipe.inputs[0][1][1:]), dtype=dtype, device=device)
    first = 0
    for index, (name, shape) in enumerate(recipe.inputs):
        part = out[index :: len(recipe.inputs)] if recipe.interleave else out[first : first + shape[0]]
        if isinstance(source, DummyWeights) and not recipe.interleave:
            source.fill(part, name)
        else:
            part.copy_(source.read(name, shape, dtype, device))
        first += shape[0]
    return out


def stack_codes(recipe: WeightRecipe, source: WeightSource, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor] | None:
    """(codes [N, K], fp32 scales [N, 1]) as the checkpoint has them, or None unless all inputs are stored as codes of `dtype`."""
    stored = [source.codes(name, shape, dtype, device) for name, shape in recipe.inputs]
    known = [one for one in stored if one is not None]
    if len(known) < len(stored):
        return None
    codes = [one[0].view(torch.uint8) for one in known]
    scales = [scale.expand(len(part), 1) for part, scale in known]
    both = (
        (torch.stack(codes, 1).flatten(0, 1), torch.stack(scales, 1).flatten(0, 1))
        if recipe.interleave
        else (torch.cat(codes), torch.cat(scales))
    )
    return both[0].view(dtype), both[1]
