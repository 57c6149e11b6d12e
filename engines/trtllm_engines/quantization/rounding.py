"""Codes of a wide weight, each value rounded to the nearest: what a scheme makes of a checkpoint that nobody quantized.

Scales map the largest magnitude of what shares them to the codes' largest, and are rounded to their own dtype before codes are made, so
that codes are nearest to what they will be read back as. int4's range is not symmetric: as compressed-tensors has it, the largest
magnitude is 7.5 steps, so that one side is clipped by half a step and all others have steps a fifteenth finer. With zero points a group's
range is its smallest to its largest value, zero included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from trtllm_engines.checkpoints.stored_codes import SCALE_DTYPES, StoredCodes
from trtllm_engines.quantization.scheme import Codes
from trtllm_kernels import formats
from trtllm_kernels.references.codes import E8M0_BIAS, scale_values
from trtllm_kernels.references.quantize import FP8, FP8_MAX, INT8_MAX, SMALLEST_SCALE

LARGEST = {"int4": 7.5, "int8": INT8_MAX, "fp4": 6.0, "nf4": 1.0, "fp8": FP8_MAX}
"""What a scale's largest magnitude becomes, by the codes' dtype."""
_FP8_SMALLEST = 2.0**-9


def rounded(name: str, shape: tuple[int, int], kind: Codes, read: Callable[[], Tensor]) -> StoredCodes:
    """The weight `name` of fp32 values [N, K] that `read` returns, as codes of `kind`."""

    @cache
    def made() -> _Rounded:
        return _Rounded(read(), kind)

    return StoredCodes(
        name,
        kind,
        shape,
        codes=lambda: made().codes(),
        scale=lambda: made().scale,
        zero=(lambda: made().zero) if kind.zero_point else None,
        tensor_scale=(lambda: made().tensor_scale) if kind.tensor_scale else None,
    )


class _Rounded:
    def __init__(self, values: Tensor, kind: Codes) -> None:
        self.kind, self.shape = kind, values.shape
        rows, columns = values.shape
        self.groups = columns // kind.group_size if kind.in_groups else 1
        self.values = values.view(rows, self.groups, -1)
        low, high = self.values.amin(2), self.values.amax(2)
        largest = torch.maximum(-low, high)
        if kind.granularity == "block":
            largest = _of_blocks(largest, kind.group_size)
        if kind.granularity == "tensor":
            largest = largest.amax().view(1)
        scale = largest / LARGEST[kind.dtype]
        self.zero = torch.zeros(())
        if kind.zero_point:
            steps = 2.0 ** (4 if kind.dtype == "int4" else 8) - 1
            low, high = low.clamp_max(0.0), high.clamp_min(0.0)
            scale = (high - low) / steps
        self.tensor_scale = torch.ones(1, device=values.device)
        if kind.tensor_scale:
            self.tensor_scale = (scale.amax() / FP8_MAX).clamp_min(SMALLEST_SCALE).view(1)
            scale = scale / self.tensor_scale
        self.scale = _stored_scale(scale, largest, kind)
        if kind.zero_point:
            lowest = 0 if kind.dtype == "int4" else -128
            self.zero = (lowest - low / self.scale.float()).round().clamp(lowest, lowest + steps)

    def codes(self) -> Tensor:
        scale = scale_values(self.scale)
        units = self.values / (scale if scale.dim() == 1 else scale[:, :, None])
        if self.kind.tensor_scale:
            units = units / self.tensor_scale
        return self._nearest(units).reshape(self.shape)

    def _nearest(self, units: Tensor) -> Tensor:
        dtype = self.kind.dtype
        if dtype == "fp8":
            return units.clamp(-FP8_MAX, FP8_MAX).to(FP8)
        if dtype in ("int4", "int8"):
            zero = self.zero[:, :, None] if self.kind.zero_point else formats.ZERO.get(dtype, 0)
            lowest, highest = (0, 15) if dtype == "int4" else (-128 if self.kind.zero_point else -127, 127)
            return (units + zero).round().clamp(lowest, highest).to(torch.uint8 if dtype == "int4" else torch.int8)
        return nearest_code(units, dtype)


def nearest_code(units: Tensor, dtype: str) -> Tensor:
    """uint8: the code of `dtype` (fp4 or nf4) whose value is nearest to each of `units`; of two, that of the even code."""
    values, codes = _table(dtype)
    values = values.to(units.device)
    middles = (values[1:] + values[:-1]) / 2
    place = torch.bucketize(units, middles)
    taken = codes.to(units.device)[place]
    tied = (place < len(middles)) & (units == middles[place.clamp_max(len(middles) - 1)]) & (taken % 2 == 1)
    return torch.where(tied, codes.to(units.device)[(place + 1).clamp_max(len(codes) - 1)], taken)


@cache
def _table(dtype: str) -> tuple[Tensor, Tensor]:
    """(values in ascending order, their codes); a negative zero is left out."""
    values = formats.values(torch.arange(16, dtype=torch.uint8), dtype)
    pairs = sorted({float(value): code for code, value in reversed(list(enumerate(values.tolist())))}.items())
    return torch.tensor([value for value, _ in pairs]), torch.tensor([code for _, code in pairs], dtype=torch.uint8)


def _of_blocks(largest: Tensor, side: int) -> Tensor:
    """The largest of each `side` rows, for each of them."""
    rows = largest.shape[0]
    blocks = torch.stack([largest[first : first + side].amax(0) for first in range(0, largest.shape[0], side)])
    return blocks.repeat_interleave(side, dim=0)[:rows]


def _stored_scale(scale: Tensor, largest: Tensor, kind: Codes) -> Tensor:
    dtype = SCALE_DTYPES[kind.scale_dtype]
    if kind.scale_dtype == "e8m0":  # the largest value keeps its exponent: OCP Microscaling Formats 1.0, section 6.3
        exponent = torch.where(largest > 0, torch.frexp(largest).exponent - 1 - 2, -E8M0_BIAS)
        return (exponent + E8M0_BIAS).clamp(0, 254).to(dtype)
    if kind.scale_dtype == "fp8":
        return scale.clamp(_FP8_SMALLEST, FP8_MAX).to(dtype)
    return scale.clamp_min(torch.finfo(dtype).tiny if dtype != torch.float32 else SMALLEST_SCALE).to(dtype)
