"""The grids that weights are rounded to: integers of a few bits, one scale (perhaps a zero point) for each row or group of columns.

    value[n, k] = scale[n, g] * (code[n, k] - zero[n, g]),  g the group of column k,  code and zero in -2^(bits - 1) .. 2^(bits - 1) - 1

Scales are rounded to bf16 before codes are chosen, since that is what a checkpoint stores and every reader multiplies by. A symmetric
scale is the largest magnitude over 2^(bits - 1) - 1/2, as compressed-tensors has it: the largest code is half a step short.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trtllm_engines.errors import EngineError

_SMALLEST = 2.0**-100
"""Scale of a group of zeros."""


@dataclass(frozen=True)
class Scales:
    """`scale` fp32 [N, G] in bf16's values, `zero` fp32 [N, G] in whole numbers; None where the grid is symmetric."""

    scale: Tensor
    zero: Tensor | None

    def split(self, rows: Sequence[int]) -> list[Scales]:
        scales: Sequence[Tensor] = torch.split(self.scale, list(rows))
        zeros: Sequence[Tensor | None] = [None] * len(scales)
        if self.zero is not None:
            zeros = torch.split(self.zero, list(rows))
        return [Scales(scale, zero) for scale, zero in zip(scales, zeros, strict=True)]


@dataclass(frozen=True)
class Rounded:
    """A weight [N, K] on a grid: codes int8 [N, K], and the group of each column (int64 [K]) where it is not k // group."""

    codes: Tensor
    scales: Scales
    group_of: Tensor | None = None

    def values(self) -> Tensor:
        """What the codes mean, fp32 [N, K]."""
        columns, groups = self.codes.shape[1], self.scales.scale.shape[1]
        of = torch.arange(columns, device=self.codes.device) // (columns // groups) if self.group_of is None else self.group_of
        codes = self.codes.float()
        if self.scales.zero is not None:
            codes = codes - self.scales.zero[:, of]
        return codes * self.scales.scale[:, of]

    def split(self, rows: Sequence[int]) -> list[Rounded]:
        """Of weights that were rounded as one, each with so many rows."""
        codes: Sequence[Tensor] = torch.split(self.codes, list(rows))
        parts = zip(codes, self.scales.split(rows), strict=True)
        return [Rounded(part, scales, self.group_of) for part, scales in parts]


@dataclass(frozen=True)
class Grid:
    bits: int
    group: int = 0
    """Columns that share a scale; 0 for a whole row."""
    symmetric: bool = True

    @property
    def lowest(self) -> int:
        return -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        return (1 << (self.bits - 1)) - 1

    def check(self, name: str, columns: int) -> None:
        """Raises `EngineError` for a weight whose columns the group does not divide."""
        if self.group and columns % self.group:
            fits = [size for size in (128, 64, 32, 16) if columns % size == 0]
            cure = f"choose --group-size {' or '.join(map(str, fits))}" if fits else "choose int8_wo, with one scale per row"
            raise EngineError(f"weight {name} has {columns} columns, which groups of {self.group} do not divide; {cure}")

    def size(self, columns: int) -> int:
        """Columns of a group."""
        return self.group or columns

    def fit(self, weight: Tensor, shrink: Tensor | float = 1.0) -> Scales:
        """Scales of `weight` fp32 [N, K] from the extremes of each group, times `shrink` (a number, or [N, G])."""
        groups = weight.view(len(weight), -1, self.size(weight.shape[1]))
        if self.symmetric:
            return Scales(_stored(groups.abs().amax(2) * shrink / (self.highest + 0.5)), None)
        low, high = groups.amin(2).clamp_max(0) * shrink, groups.amax(2).clamp_min(0) * shrink
        scale = _stored((high - low) / (self.highest - self.lowest))
        return Scales(scale, (self.lowest - low / scale).round().clamp(self.lowest, self.highest))

    def codes(self, columns: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        """The nearest codes, as fp32; `scale` and `zero` are of a shape that broadcasts to that of `columns`."""
        codes = (columns / scale).round()
        return (codes if zero is None else codes + zero).clamp(self.lowest, self.highest)

    def nearest(self, weight: Tensor, scales: Scales | None = None) -> Rounded:
        """Round to nearest (RTN), with the scales given or those of the extremes."""
        scales = self.fit(weight) if scales is None else scales
        groups = weight.view(len(weight), -1, self.size(weight.shape[1]))
        codes = self.codes(groups, scales.scale[:, :, None], None if scales.zero is None else scales.zero[:, :, None])
        return Rounded(codes.flatten(1).to(torch.int8), scales)

    def rounded(self, weight: Tensor) -> Tensor:
        """`weight` as the grid has it, fp32."""
        return self.nearest(weight).values()


def _stored(scale: Tensor) -> Tensor:
    return scale.clamp_min(_SMALLEST).bfloat16().float()
