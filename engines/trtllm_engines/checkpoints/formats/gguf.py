"""GGUF's block formats as codes: 4-bit ones as int4, those of 5, 6 and 8 bits as int8, a group to each of ggml's blocks of 16 or 32.

A block stands for `scale * code - minimum`. The minimum, which is a number of its own, becomes a zero point that is not a whole number;
that is kept in bf16, an error of 1/500 of it, and where a scale is 0 the minimum takes its place. The layouts are ggml's (`ggml-common.h`,
`ggml-quants.c`), unpacked a whole tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from trtllm_engines.quantization.scheme import Codes

Bytes = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]
_TYPE = gguf.GGMLQuantizationType


@dataclass(frozen=True)
class Blocks:
    """`scale * code - minimum` for codes [N, K]; scales and minima are fp32 [N, K / group]."""

    codes: Array
    """uint8 of int4, int8 of int8."""
    scale: Array
    minimum: Array | None = None

    def values(self) -> npt.NDArray[np.float32]:
        rows, groups = self.scale.shape
        offset = 8 if self.codes.dtype == np.uint8 and self.minimum is None else 0
        codes: npt.NDArray[np.float32] = self.codes.reshape(rows, groups, -1).astype(np.float32)
        if offset:
            codes -= offset
        codes *= self.scale[:, :, None]
        if self.minimum is not None:
            codes -= self.minimum[:, :, None]
        return codes.reshape(rows, -1)

    def zero_and_scale(self) -> tuple[Array, Array]:
        """(zero points, scales) such that `scale * (code - zero)` is the same. Where the scale is 0, codes count for nothing (`flat`)."""
        assert self.minimum is not None
        flat = self.scale == 0
        scale = np.where(flat, np.where(self.minimum == 0, 1, self.minimum), self.scale)
        return np.where(flat, np.sign(np.abs(self.minimum)), self.minimum / scale), scale

    def kept_codes(self) -> Array:
        """Codes, 0 where the scale is 0."""
        if self.minimum is None or self.scale.all():
            return self.codes
        counted = (self.scale != 0).astype(self.codes.dtype)
        kept: Array = self.codes.reshape(*self.scale.shape, -1) * counted[:, :, None]
        return _flat(kept)


def _halves(data: Bytes) -> Array:
    """fp32 of fp16 pairs of bytes in the last dimension."""
    halves: Array = np.ascontiguousarray(data).view(np.float16).astype(np.float32)
    return halves


def _nibbles(packed: Bytes) -> Bytes:
    """[..., 2 n] of bytes [..., n]: all low halves, then all high ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _q4_0(blocks: Bytes) -> Blocks:
    return Blocks(_flat(_nibbles(blocks[..., 2:18])), _halves(blocks[..., :2])[..., 0])


def _q4_1(blocks: Bytes) -> Blocks:
    return Blocks(_flat(_nibbles(blocks[..., 4:20])), _halves(blocks[..., :2])[..., 0], -_halves(blocks[..., 2:4])[..., 0])


def _fifth_bits(words: Bytes) -> Array:
    """[..., 32] of bits of 4 bytes, moved to where a fifth bit is."""
    return np.unpackbits(words, axis=-1, bitorder="little") << 4


def _q5_0(blocks: Bytes) -> Blocks:
    codes = (_nibbles(blocks[..., 6:22]) | _fifth_bits(blocks[..., 2:6])).astype(np.int8) - 16
    return Blocks(_flat(codes), _halves(blocks[..., :2])[..., 0])


def _q5_1(blocks: Bytes) -> Blocks:
    codes = (_nibbles(blocks[..., 8:24]) | _fifth_bits(blocks[..., 4:8])).astype(np.int8)
    return Blocks(_flat(codes), _halves(blocks[..., :2])[..., 0], -_halves(blocks[..., 2:4])[..., 0])


def _q8_0(blocks: Bytes) -> Blocks:
    return Blocks(_flat(blocks[..., 2:34].view(np.int8)), _halves(blocks[..., :2])[..., 0])


def _scales_of_k(blocks: Bytes) -> tuple[Array, Array]:
    """(scales, minima) [N, blocks * 8] of Q4_K and Q5_K: 6-bit numbers times two fp16 of a block of 256."""
    packed = blocks[..., 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate((first & 63, third & 15 | first >> 6 << 4), axis=-1)
    minima = np.concatenate((second & 63, third >> 4 | second >> 6 << 4), axis=-1)
    both = _halves(blocks[..., :4])
    return _flat(scales * both[..., :1]), _flat(minima * both[..., 1:])


def _q4_k(blocks: Bytes) -> Blocks:
    chunks = blocks[..., 16:144].reshape(*blocks.shape[:-1], 4, 32)
    return Blocks(_flat(_nibbles(chunks)), *_scales_of_k(blocks))


def _q5_k(blocks: Bytes) -> Blocks:
    chunks = blocks[..., 48:176].reshape(*blocks.shape[:-1], 4, 32)
    fifth = blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    codes = _nibbles(chunks).reshape(*blocks.shape[:-1], 8, 32) | fifth << 4
    return Blocks(_flat(codes.astype(np.int8)), *_scales_of_k(blocks))


def _q6_k(blocks: Bytes) -> Blocks:
    low = blocks[..., :128].reshape(*blocks.shape[:-1], 2, 64)
    high = blocks[..., 128:192].reshape(*blocks.shape[:-1], 2, 1, 32) >> np.array([[0], [2], [4], [6]], dtype=np.uint8) & 3
    codes = _nibbles(low).reshape(*blocks.shape[:-1], 2, 4, 32) | high << 4
    scales = blocks[..., 192:208].view(np.int8) * _halves(blocks[..., 208:210])
    return Blocks(_flat(codes.astype(np.int8) - 32), _flat(scales))


def _flat(parts: Array) -> Array:
    """[N, all of a row]."""
    return parts.reshape(parts.shape[0], -1)


@dataclass(frozen=True)
class _Layout:
    kind: Codes
    block_bytes: int
    unpack: Callable[[Bytes], Blocks]


_LAYOUTS: Mapping[gguf.GGMLQuantizationType, _Layout] = {
    _TYPE.Q4_0: _Layout(Codes("int4", "group", 32, scale_dtype="fp16"), 18, _q4_0),
    _TYPE.Q4_1: _Layout(Codes("int4", "group", 32, True, "fp16"), 20, _q4_1),
    _TYPE.Q5_0: _Layout(Codes("int8", "group", 32, scale_dtype="fp16"), 22, _q5_0),
    _TYPE.Q5_1: _Layout(Codes("int8", "group", 32, True, "fp16"), 24, _q5_1),
    _TYPE.Q8_0: _Layout(Codes("int8", "group", 32, scale_dtype="fp16"), 34, _q8_0),
    _TYPE.Q4_K: _Layout(Codes("int4", "group", 32, True, "fp32"), 144, _q4_k),
    _TYPE.Q5_K: _Layout(Codes("int8", "group", 32, True, "fp32"), 176, _q5_k),
    _TYPE.Q6_K: _Layout(Codes("int8", "group", 16, scale_dtype="fp32"), 210, _q6_k),
}


def kind_of(stored_as: gguf.GGMLQuantizationType) -> Codes | None:
    """What codes of this type are here; None for a type that is read as wide numbers only."""
    layout = _LAYOUTS.get(stored_as)
    return None if layout is None else layout.kind


def unpacked(data: Bytes, stored_as: gguf.GGMLQuantizationType) -> Blocks:
    """The codes of a matrix of `data` [N, bytes]."""
    layout = _LAYOUTS[stored_as]
    return layout.unpack(data.reshape(data.shape[0], -1, layout.block_bytes))


def common(kinds: list[Codes]) -> Codes:
    """Codes that those of each kind are exactly: for products that are merged into one."""
    if len(set(kinds)) == 1:
        return kinds[0]
    return Codes("int8", "group", min(kind.group_size for kind in kinds), any(kind.zero_point for kind in kinds), "fp32")
