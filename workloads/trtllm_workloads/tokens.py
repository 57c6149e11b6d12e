"""Prompt tokens without storing them: a prompt is a list of segments, a segment is a stretch of a token stream.

Token i of stream s is `mix(s + i * golden)` mapped to the vocabulary: random access, no state, so two prompts share a prefix
exactly when their first segments name the same stream, a million-request trace costs a few integers a request until it is sent,
and the bytes are the same on every machine. Rejected: NumPy's `Generator.integers` (its stream may change between NumPy versions,
and it has no random access) and storing tokens (Mooncake's trace alone is 145 million).

The mixer is the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trtllm_workloads.errors import WorkloadError, shown

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
UInt64Array = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHUNK_TOKENS = 1 << 21


def mix(values: UInt64Array) -> UInt64Array:
    """SplitMix64's finaliser, elementwise; a bijection on 64-bit integers."""
    with np.errstate(over="ignore"):
        z = values.astype(np.uint64, copy=True)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return z


def stream_keys(seed: int, domain: str, ids: npt.ArrayLike) -> UInt64Array:
    """Stream of each id under a seed; `domain` keeps ids of different meaning (a request, a shared prefix) apart."""
    base = np.uint64(int.from_bytes(f"{domain:\0<8.8}".encode("ascii"), "little") ^ (seed & 0xFFFFFFFFFFFFFFFF))
    with np.errstate(over="ignore"):
        return mix(mix(np.asarray([base], dtype=np.uint64)) + np.asarray(ids).astype(np.uint64) * _GOLDEN)


@dataclass(frozen=True)
class Vocabulary:
    """Ids drawn: `[low, size)`. `low` keeps clear of the special tokens most tokenizers place first."""

    size: int = 32_000
    low: int = -1

    def __post_init__(self) -> None:
        if not 2 <= self.size < 2**31:
            raise WorkloadError(f"vocabulary size {shown(self.size)}: prompts are drawn from 2 to {2**31 - 1:,} token ids")
        if self.low < 0:
            object.__setattr__(self, "low", min(100, self.size // 8))
        if self.low >= self.size:
            raise WorkloadError(f"lowest token id {self.low} is not below the vocabulary size {self.size}")


class Prompts(Protocol):
    """Prompts of a workload, by request number."""

    def __len__(self) -> int: ...

    def tokens(self, index: int) -> Int32Array | None:
        """Token ids, or None where the prompt is text only."""

    def text(self, index: int) -> str | None:
        """The text, or None where the prompt is token ids only."""

    def chunks(self) -> Iterator[bytes]:
        """The whole content in a canonical form, for hashing: equal bytes exactly when the prompts are equal."""


@dataclass(frozen=True)
class SegmentPrompts:
    """Prompt i is segments `[offsets[i], offsets[i + 1])`; segment j is tokens `[start[j], start[j] + length[j])` of `stream[j]`."""

    offsets: Int64Array
    stream: UInt64Array
    start: Int64Array
    length: Int64Array
    vocabulary: Vocabulary

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def lengths(self) -> Int64Array:
        """[n] tokens of each prompt."""
        ends = np.concatenate([[0], np.cumsum(self.length)])
        return np.asarray(ends[self.offsets[1:]] - ends[self.offsets[:-1]], dtype=np.int64)

    def reseeded(self, salt: int) -> SegmentPrompts:
        """Other tokens of the same lengths; prompts share with each other what they shared, and nothing with those of another salt."""
        return replace(self, stream=mix(self.stream ^ mix(np.asarray([salt], dtype=np.uint64))))

    @property
    def shared(self) -> bool:
        """Whether two prompts begin with the same tokens."""
        first = self.stream[self.offsets[:-1][np.diff(self.offsets) > 0]]
        return len(np.unique(first)) < len(first)

    def tokens(self, index: int) -> Int32Array:
        return self._draw(int(self.offsets[index]), int(self.offsets[index + 1]))

    def text(self, index: int) -> None:
        return None

    def _draw(self, first: int, last: int) -> Int32Array:
        """Tokens of segments [first, last), concatenated."""
        length = self.length[first:last]
        total = int(length.sum())
        begin = np.cumsum(length) - length
        within = np.arange(total, dtype=np.int64) + np.repeat(self.start[first:last] - begin, length)
        with np.errstate(over="ignore"):
            z = mix(np.repeat(self.stream[first:last], length) + within.astype(np.uint64) * _GOLDEN)
        span = np.uint64(self.vocabulary.size - self.vocabulary.low)
        return (((z >> np.uint64(32)) * span) >> np.uint64(32)).astype(np.int32) + np.int32(self.vocabulary.low)

    def blocks(self) -> Iterator[tuple[int, Int32Array, Int64Array]]:
        """All prompts, a bounded number of tokens at a time: (first prompt, flat tokens, offsets of the prompts within)."""
        lengths = self.lengths()
        begin = 0
        while begin < len(self):
            end = begin + max(1, int(np.searchsorted(np.cumsum(lengths[begin : begin + (1 << 16)]), _CHUNK_TOKENS, side="right")))
            end = min(end, len(self))
            flat = self._draw(int(self.offsets[begin]), int(self.offsets[end]))
            yield begin, flat, np.concatenate([[0], np.cumsum(lengths[begin:end])])
            begin = end

    def materialise(self) -> TokenPrompts:
        """The same prompts with their tokens in memory (4 bytes a token), so that sending one costs a slice."""
        flat = [block for _, block, _ in self.blocks()]
        return TokenPrompts(
            np.concatenate(flat) if flat else np.zeros(0, np.int32), np.concatenate([[0], np.cumsum(self.lengths())]).astype(np.int64)
        )

    def chunks(self) -> Iterator[bytes]:
        yield b"ids"
        yield self.lengths().astype("<i8").tobytes()
        for _, flat, _ in self.blocks():
            yield flat.astype("<i4").tobytes()


@dataclass(frozen=True)
class TokenPrompts:
    """Token ids in memory: prompt i is `flat[offsets[i]:offsets[i + 1]]`."""

    flat: Int32Array
    offsets: Int64Array

    @classmethod
    def of(cls, prompts: Sequence[npt.ArrayLike]) -> TokenPrompts:
        arrays = [np.asarray(prompt, dtype=np.int32) for prompt in prompts]
        offsets = np.concatenate([[0], np.cumsum([len(a) for a in arrays])]).astype(np.int64)
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, np.int32), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def highest(self) -> int:
        """The highest token id; -1 without tokens."""
        return int(self.flat.max(initial=-1))

    def tokens(self, index: int) -> Int32Array:
        return self.flat[self.offsets[index] : self.offsets[index + 1]]

    def text(self, index: int) -> None:
        return None

    def chunks(self) -> Iterator[bytes]:
        yield b"ids"
        yield np.diff(self.offsets).astype("<i8").tobytes()
        for begin in range(0, len(self.flat), _CHUNK_TOKENS):
            yield self.flat[begin : begin + _CHUNK_TOKENS].astype("<i4").tobytes()


@dataclass(frozen=True)
class TextPrompts:
    """Prompts known only as text; the target tokenizes them."""

    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def tokens(self, index: int) -> None:
        return None

    def text(self, index: int) -> str:
        return self.texts[index]

    def chunks(self) -> Iterator[bytes]:
        yield b"text"
        for text in self.texts:
            raw = text.encode()
            yield len(raw).to_bytes(8, "little") + raw
