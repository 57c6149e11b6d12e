"""Weights drawn from a seed: element i of a tensor is a function of hash(seed, name) and i alone.

So a tensor is the same whichever machine draws it (CPU and CUDA bit for bit), in whatever chunks or merged layout, and an engine with
dummy weights stores none: they are drawn on the device at load. Everything is 32-bit integer arithmetic plus one multiplication, which
every device rounds alike; a Gaussian by logarithm and cosine would differ in the last bit. The bits are mixed by a multiply-xorshift hash
(the shape of Murmur3's finaliser, constants from Wellons' search), keyed before and between the rounds so that two names are not shifts
of one stream. The sum of its four bytes is bell-shaped with 1,021 levels, about what bf16 resolves, so that GEMM inputs toggle bits as
real ones do: a kernel's power draw, and so its clock, depends on that.

Scale: matrices have standard deviation 1 / sqrt(fan in), so that normalised inputs give outputs near 1 at any width; norms are 1 + 0.1 z;
biases 0.02 z. As int8 codes a matrix is the byte sums over four, so it need not be drawn wide and quantized.

A rank of several draws its part of a matrix alone (`DrawnPart`), where the bound of the whole, which scales are made of, is all it needs
to know of the rest.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trtllm_engines.errors import EngineError

if TYPE_CHECKING:
    from trtllm_engines.checkpoints.stored_codes import StoredCodes
    from trtllm_engines.quantization.scheme import Codes, WeightRecipe

_MULTIPLIERS = (0x7FEB352D, 0x846CA68B - (1 << 32))
_BYTE_SUM_MEAN = 510
_BYTE_SUM_STD = math.sqrt(4 * (256**2 - 1) / 12)
LARGEST_INT8 = _BYTE_SUM_MEAN / 4
"""What a matrix's bound is in its int8 codes, quarters of byte sums (the largest is rounded to 127)."""
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 22}
"""Elements at a time: temporaries stay in the last-level cache (50 MB on an H100)."""


@dataclass(frozen=True)
class DummyWeights:
    seed: int = 0

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "dummy", "seed": self.seed}

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
        from trtllm_engines.checkpoints.drawn_codes import drawn_codes

        rows, columns = shape
        return drawn_codes(self.seed, name, (rows, columns), kind, device)

    def largest(self, name: str, shape: tuple[int, ...]) -> float:
        return _moments(name, shape)[1] * _BYTE_SUM_MEAN / _BYTE_SUM_STD

    def input_scale(self, name: str) -> float:
        """Room for what drawn weights give: norms stay under 8, SwiGLU's product (the input of the last projection) under 24."""
        return (24.0 if name.endswith(("down_proj.input_scale", "fc_out.input_scale")) else 8.0) / 448.0

    def kv_scale(self, name: str) -> float:
        """Room likewise: keys and values stay under 8."""
        return 8.0 / 448.0


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
        drawn = _sums_of_columns(name, seed, out.device, whole[1], rows, columns)
    for start, sums in drawn:
        part = flat[start : start + len(sums)]
        if out.dtype == torch.int8:
            part.copy_(sums.add_(2).bitwise_right_shift_(2).clamp_(-127, 127))
        else:
            part.copy_(sums.float().mul_(std / _BYTE_SUM_STD).add_(mean))


def drawn_sums(count: int, name: str, seed: int, device: torch.device, first: int = 0) -> Iterator[tuple[int, Tensor]]:
    """The bell-shaped integers, -510 to 510, that `count` elements of `name` from `first` on are made of, in chunks: (index of a chunk's
    first among them, int32)."""
    keys = _keys(name, seed)
    chunk = _CHUNK.get(device.type, _CHUNK["cpu"])
    for start in range(0, count, chunk):
        end = min(start + chunk, count)
        yield start, _byte_sums(torch.arange(first + start, first + end, dtype=torch.int32, device=device), *keys)


def _sums_of_columns(name: str, seed: int, device: torch.device, width: int, rows: range, columns: range) -> Iterator[tuple[int, Tensor]]:
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


def _moments(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    if len(shape) == 1:
        return (0.0, 0.02) if name.endswith("bias") else (1.0, 0.1)
    return 0.0, 1.0 / math.sqrt(shape[1])


def _byte_sums(x: Tensor, before: int, between: int) -> Tensor:
    """int32 counters -> centred sum of the four bytes of their hash, in [-510, 510]. Works in place; wraps modulo 2^32."""
    x.bitwise_xor_(before)
    _xorshift(x, 16)
    x.mul_(_MULTIPLIERS[0]).add_(between)
    _xorshift(x, 15)
    x.mul_(_MULTIPLIERS[1])
    _xorshift(x, 16)
    pairs = (x & 0x00FF00FF).add_((x >> 8).bitwise_and_(0x00FF00FF))
    return (pairs & 0xFFFF).add_(pairs >> 16).sub_(_BYTE_SUM_MEAN)


def _xorshift(x: Tensor, bits: int) -> None:
    """x ^= x >> bits, unsigned."""
    x.bitwise_xor_((x >> bits).bitwise_and_((1 << (32 - bits)) - 1))
