"""Weights drawn from a seed, for engines with dummy weights: such an engine stores none, since they are drawn on the device at load.

Element i of a tensor is an integer that seed, name and i determine (`drawn_sums.py`), scaled by one multiplication, which every device
rounds alike; a Gaussian by logarithm and cosine would differ in the last bit.

Scale: matrices have standard deviation 1 / sqrt(fan in), so that normalised inputs give outputs near 1 at any width; norms are 1 + 0.1 z;
biases 0.02 z. As int8 codes a matrix is the byte sums over four, so it need not be drawn wide and quantized.

A rank of several draws its part of a matrix alone (`DrawnPart`), where the bound of the whole, which scales are made of, is all it needs
to know of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from trtllm_engines.checkpoints.drawn_codes import drawn_codes
from trtllm_engines.checkpoints.drawn_sums import BYTE_SUM_MEAN, BYTE_SUM_STD, drawn_sums, drawn_sums_of_columns
from trtllm_engines.checkpoints.stored_codes import StoredCodes
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.scheme import Codes, WeightRecipe
from trtllm_kernels.references.quantize import FP8_MAX

LARGEST_INT8 = BYTE_SUM_MEAN / 4
"""What a matrix's bound is in its int8 codes, quarters of byte sums (the largest is rounded to 127)."""


@dataclass(frozen=True)
class DummyWeights:
    seed: int = 0

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "dummy", "seed": self.seed}

    @property
    def config(self) -> None:
        return None

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        out = torch.empty(shape, dtype=dtype, device=device)
        self.fill(out, name)
        return out

    def fill(self, out: Tensor, name: str) -> None:
        """Draws `name` into contiguous `out`."""
        draw(out, name, self.seed)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        pass

    def unread(self, read: Collection[str]) -> tuple[str, ...]:
        return ()

    def codes(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Of int8, drawn as such; other codes are made of wide numbers."""
        if dtype != torch.int8:
            return None
        scale = torch.full((1, 1), self.largest(name, shape) / LARGEST_INT8, device=device)
        return self.read(name, shape, dtype, device), scale

    def stored(self, name: str, shape: tuple[int, ...], kind: Codes, device: torch.device) -> StoredCodes:
        rows, columns = shape
        return drawn_codes(self.seed, name, (rows, columns), kind, device)

    def largest(self, name: str, shape: tuple[int, ...]) -> float:
        return _moments(name, shape)[1] * BYTE_SUM_MEAN / BYTE_SUM_STD

    def input_scale(self, name: str) -> float:
        """Room for what drawn weights give: norms stay under 8, SwiGLU's product (the input of the last projection) under 24."""
        return (24.0 if name.endswith(("down_proj.input_scale", "fc_out.input_scale")) else 8.0) / FP8_MAX

    def kv_scale(self, name: str) -> float:
        """Room likewise: keys and values stay under 8."""
        return 8.0 / FP8_MAX


@dataclass(frozen=True)
class DrawnPart(DummyWeights):
    """Those parts of drawn matrices that one rank has. `parts` by name: the whole's shape, and the rank's rows and columns of it."""

    parts: Mapping[str, tuple[tuple[int, ...], range, range]] = field(default_factory=dict)

    def fill(self, out: Tensor, name: str) -> None:
        draw(out, name, self.seed, *self.parts[name])

    def largest(self, name: str, shape: tuple[int, ...]) -> float:
        return super().largest(name, self.parts[name][0])


def part_of(source: DummyWeights, recipe: WeightRecipe, rank: int) -> tuple[DrawnPart, WeightRecipe]:
    """What makes the part that `rank` has of a matrix, as `recipe` and `take` make it of the whole: a source and a recipe of the part."""
    parts = {}
    for (name, shape), shard in zip(recipe.inputs, recipe.shards, strict=True):
        rows, columns = (range(count) if shard is None else shard.along(dim, count, rank) for dim, count in enumerate(shape))
        parts[name] = shape, rows, columns
    return DrawnPart(source.seed, parts), replace(recipe, inputs=recipe.local_inputs, shards=())


def draw(
    out: Tensor, name: str, seed: int, whole: tuple[int, ...] | None = None, rows: range | None = None, columns: range | None = None
) -> None:
    """Fills contiguous `out` in place; int8 with codes. `rows` and `columns`: which of a matrix of shape `whole` it holds."""
    whole = whole or tuple(out.shape)
    if math.prod(whole) >= 1 << 31:
        raise EngineError(f"weight {name} has {math.prod(whole)} elements; the generator counts to 2^31")
    mean, std = _moments(name, whole)
    flat = out.view(-1)
    if rows is None or columns is None or len(columns) == whole[1]:
        first = 0 if rows is None else rows.start * whole[1]
        drawn = drawn_sums(flat.numel(), name, seed, out.device, first)
    else:
        drawn = drawn_sums_of_columns(name, seed, out.device, whole[1], rows, columns)
    for start, sums in drawn:
        part = flat[start : start + len(sums)]
        if out.dtype == torch.int8:
            part.copy_(sums.add_(2).bitwise_right_shift_(2).clamp_(-127, 127))
        else:
            part.copy_(sums.float().mul_(std / BYTE_SUM_STD).add_(mean))


def _moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if len(shape) == 1:
        return (0.0, 0.02) if name.endswith("bias") else (1.0, 0.1)
    return 0.0, 1.0 / math.sqrt(shape[1])
