"""Bell-shaped integers drawn from a seed: integer i of a tensor is a function of hash(seed, name) and i alone.

So a tensor is the same whichever machine draws it (CPU and CUDA bit for bit), in whatever chunks or merged layout. Everything is 32-bit
integer arithmetic, which every device does alike. The bits are mixed by a multiply-xorshift hash (the shape of Murmur3's finaliser,
constants from Wellons' search), keyed before and between the rounds so that two names are not shifts of one stream. The sum of its four
bytes is bell-shaped with 1,021 levels, about what bf16 resolves, so that GEMM inputs toggle bits as real ones do: a kernel's power draw,
and so its clock, depends on that.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor

_MULTIPLIERS = (0x7FEB352D, 0x846CA68B - (1 << 32))
BYTE_SUM_MEAN = 510
BYTE_SUM_STD = math.sqrt(4 * (256**2 - 1) / 12)
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Elements at a time: temporaries stay in the last-level cache (50 MB on an H100)."""


def drawn_sums(count: int, name: str, seed: int, device: torch.device, first: int = 0) -> Iterator[tuple[int, Tensor]]:
    """The bell-shaped integers, -510 to 510, that `count` elements of `name` from `first` on are made of, in chunks: (index of a chunk's
    first among them, int32)."""
    keys = _keys(name, seed)
    chunk = _CHUNK.get(device.type, _CHUNK["cpu"])
    for start in range(0, count, chunk):
        end = min(start + chunk, count)
        yield start, _byte_sums(torch.arange(first + start, first + end, dtype=torch.int32, device=device), *keys)


def drawn_sums_of_columns(
    name: str, seed: int, device: torch.device, width: int, rows: range, columns: range
) -> Iterator[tuple[int, Tensor]]:
    """`drawn_sums` of some rows and columns of a matrix `width` wide, row by row."""
    keys = _keys(name, seed)
    at_once = max(1, _CHUNK.get(device.type, _CHUNK["cpu"]) // len(columns))
    across = torch.arange(columns.start, columns.stop, dtype=torch.int32, device=device)
    for start in range(0, len(rows), at_once):
        some = rows[start : start + at_once]
        down = torch.arange(some.start, some.stop, dtype=torch.int32, device=device).mul_(width)
        yield start * len(columns), _byte_sums((down[:, None] + across).view(-1), *keys)


def _keys(name: str, seed: int) -> tuple[int, int]:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    before, between = (int.from_bytes(digest[i : i + 4], "little", signed=True) for i in (0, 4))
    return before, between


def _byte_sums(x: Tensor, before: int, between: int) -> Tensor:
    """int32 counters -> centred sum of the four bytes of their hash, in [-510, 510]. Works in place; wraps modulo 2^32."""
    x.bitwise_xor_(before)
    _xorshift(x, 16)
    x.mul_(_MULTIPLIERS[0]).add_(between)
    _xorshift(x, 15)
    x.mul_(_MULTIPLIERS[1])
    _xorshift(x, 16)
    pairs = (x & 0x00FF00FF).add_((x >> 8).bitwise_and_(0x00FF00FF))
    return (pairs & 0xFFFF).add_(pairs >> 16).sub_(BYTE_SUM_MEAN)


def _xorshift(x: Tensor, bits: int) -> None:
    """x ^= x >> bits, unsigned."""
    x.bitwise_xor_((x >> bits).bitwise_and_((1 << (32 - bits)) - 1))
