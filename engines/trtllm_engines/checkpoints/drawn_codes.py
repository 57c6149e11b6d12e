"""Weights drawn as codes from a seed: what `dummy` draws for a scheme, without a wide weight in between.

A code is a function of the same bell-shaped integer (`drawn_sums.py`) that a wide weight is made of, by a table of 1,021 entries, so
that any device draws the same. Scales vary from group to group by a tenth, and zero points by a step, so that a kernel that reads the wrong
one shows. Their mean is such that decoded weights have the standard deviation of wide ones, 1 / sqrt(fan in).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from trtllm_engines.checkpoints.drawn_sums import drawn_sums
from trtllm_engines.checkpoints.stored_codes import SCALE_DTYPES, StoredCodes
from trtllm_engines.quantization.scheme import Codes
from trtllm_kernels import formats
from trtllm_kernels.references.codes import E8M0_BIAS
from trtllm_kernels.references.quantize import FP8_MAX, INT8_MAX

_WIDEST = {"int4": 8.6, "int8": INT8_MAX, "fp4": 6.4, "nf4": 1.0, "fp8": FP8_MAX}
"""What the largest integer becomes, before it is rounded to a code."""
_SPREAD = 0.1
_MIDDLE_FP8 = 112.0
"""Of scales that are E4M3 codes: what is left to the tensor's own scale keeps them in its normal range."""


def drawn_codes(seed: int, name: str, shape: tuple[int, int], kind: Codes, device: torch.device) -> StoredCodes:
    """Weight `name` [N, K] of codes of `kind`."""
    rows, columns = shape
    of_scales = kind.scale_shape(rows, columns)
    table, deviation = _codes_by_sum(kind.dtype)
    scale = 1.0 / (math.sqrt(columns) * deviation)
    return StoredCodes(
        name,
        kind,
        shape,
        codes=lambda: _by_table(table, f"{name}", seed, shape, device),
        scale=lambda: _scales(kind, scale, f"{name}.scale", seed, of_scales, device),
        zero=(lambda: _zeros(kind, f"{name}.zero", seed, of_scales, device)) if kind.zero_point else None,
        tensor_scale=(lambda: torch.full((1,), scale / _MIDDLE_FP8, device=device)) if kind.tensor_scale else None,
    )


@cache
def _codes_by_sum(dtype: str) -> tuple[Tensor, float]:
    """(code of each sum from -510 on, standard deviation of what the codes mean)."""
    sums = torch.arange(-510, 511, dtype=torch.float64)
    units = sums * (_WIDEST[dtype] / 510)
    if dtype == "fp8":
        codes = units.float().to(torch.float8_e4m3fn)
        values = codes.double()
    elif dtype in ("int4", "int8"):
        values = units.round().clamp(-8, 7) if dtype == "int4" else units.round()
        codes = (values + formats.ZERO.get(dtype, 0)).to(torch.uint8 if dtype == "int4" else torch.int8)
    else:
        from trtllm_engines.quantization.rounding import nearest_code

        codes = nearest_code(units.float(), dtype)
        values = formats.values(codes, dtype).double()
    byte = torch.full((256,), 1 / 256, dtype=torch.float64)
    pair = _convolved(byte, byte)
    chance = _convolved(pair, pair)
    mean = (chance * values).sum()
    return codes, float((chance * (values - mean).square()).sum().sqrt())


def _convolved(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.conv1d(a.view(1, 1, -1), b.flip(0).view(1, 1, -1), padding=len(b) - 1).view(-1)


def _by_table(table: Tensor, name: str, seed: int, shape: tuple[int, int], device: torch.device) -> Tensor:
    entries = table.to(device).view(torch.uint8)
    out = torch.empty(shape, dtype=torch.uint8, device=device)
    flat = out.view(-1)
    for start, sums in drawn_sums(flat.numel(), name, seed, device):
        flat[start : start + len(sums)] = entries[sums.add_(510)]
    return out.view(table.dtype)


def _of_sums(name: str, seed: int, shape: tuple[int, ...], device: torch.device, make: Callable[[Tensor], Tensor]) -> Tensor:
    out = torch.empty(shape, device=device)
    flat = out.view(-1)
    for start, sums in drawn_sums(flat.numel(), name, seed, device):
        flat[start : start + len(sums)] = make(sums.float())
    return out


def _scales(kind: Codes, scale: float, name: str, seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    dtype = SCALE_DTYPES[kind.scale_dtype]
    if kind.granularity == "block":
        rows, groups = shape
        blocks = _of_sums(name, seed, (-(-rows // kind.group_size), groups), device, lambda sums: sums * (_SPREAD / 147.8) + 1.0)
        return blocks.mul_(scale).repeat_interleave(kind.group_size, dim=0)[:rows].to(dtype)
    if kind.scale_dtype == "e8m0":  # of two neighbouring powers, so often each that the mean square is right
        exponent = math.floor(math.log2(scale))
        above = (scale**2 / 4.0**exponent - 1) / 3
        bound = _quantile(1 - above)
        return _of_sums(name, seed, shape, device, lambda sums: (sums >= bound).float() + (exponent + E8M0_BIAS)).to(dtype)
    middle = _MIDDLE_FP8 if kind.tensor_scale else scale
    return _of_sums(name, seed, shape, device, lambda sums: sums.mul_(_SPREAD / 147.8).add_(1.0).mul_(middle)).to(dtype)


def _quantile(chance: float) -> int:
    """The sum below which a drawn one lies with this chance."""
    byte = torch.full((256,), 1 / 256, dtype=torch.float64)
    pair = _convolved(byte, byte)
    below = _convolved(pair, pair).cumsum(0)
    return int((below < chance).sum()) - 509


def _zeros(kind: Codes, name: str, seed: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    middle = float(formats.ZERO.get(kind.dtype, 0))
    return _of_sums(name, seed, shape, device, lambda sums: (sums / 200).round().clamp(-1, 1) + middle)
