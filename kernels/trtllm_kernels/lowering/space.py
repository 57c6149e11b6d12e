"""What tuning may try: for each op, which tunables are chosen together, which values they may take, and in which steps that shows.

Candidates are data and optimistic: one that needs more shared memory than a block has, or spills registers, is found out by compiling it
and one that a shape does not admit lowers to the same launches as another, so neither is written down here as a rule. Lists are short,
since every entry costs a compilation and a measurement: values around the default, one decision at a time, and not a full product.

Left out is what shows only where kernels run at once, which races of single ops do not: decode attention beside prompts and, where a kernel
begins before the one before it has ended, tiles of one-token products and how much of a weight is asked for ahead.

A *threshold* is a number of tokens from which another routine takes over. It is judged at token counts of its own, after the tiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from trtllm_kernels.lowering.call import OpCall, next_power_of_2

Candidate = Mapping[str, int]

DECODE, PREFILL, CHUNK = "decode", "prefill", "chunk"
"""Steps: one token of each of many sequences; a whole prompt; a part of a prompt whose beginning is in the cache."""
NEVER = 1 << 29
"""A threshold no step reaches."""
TOKENS = (32, 64, 128, 192, 256, 384, 512, 1024)
"""Where thresholds are judged."""


@dataclass(frozen=True)
class Choice:
    """Tunables decided together. `tokens`: where a threshold is judged, in place of the token counts asked for."""

    name: str
    candidates: tuple[Candidate, ...]
    steps: tuple[str, ...] = (DECODE,)
    tokens: tuple[int, ...] = ()

    @property
    def tunables(self) -> frozenset[str]:
        return frozenset(name for candidate in self.candidates for name in candidate)


def grid(**values: Iterable[int]) -> tuple[Candidate, ...]:
    return tuple(dict(zip(values, combination, strict=True)) for combination in product(*values.values()))


def table(names: tuple[str, ...], *lines: tuple[int, ...]) -> tuple[Candidate, ...]:
    return tuple(dict(zip(names, line, strict=True)) for line in lines)


def column_space(call: OpCall) -> tuple[Choice, ...]:
    """Kernels over blocks of columns; no more warps than leave a thread four elements."""
    widest = next_power_of_2(max(call.outputs[0].size(1), 128))
    blocks = [block for block in (256, 512, 1024, 2048, 4096) if block <= widest] or [widest]
    return (Choice("columns", tuple(c for c in grid(block=blocks, warps=(1, 2, 4, 8)) if c["block"] >= 128 * c["warps"])),)


def row_space(call: OpCall) -> tuple[Choice, ...]:
    return (Choice("rows", grid(warps=(1, 2, 4, 8, 16))),)


def head_space(call: OpCall) -> tuple[Choice, ...]:
    return (Choice("heads", grid(block_h=(2, 4, 8, 16, 32), warps=(1, 2, 4))),)
