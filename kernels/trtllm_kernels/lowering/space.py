"""What tuning may try: for each op, which tunables are chosen together, which values they may take, and in which steps that matters.

Candidates are data, and optimistic. One that needs more shared memory than a block has, or spills registers, is found out by compiling it;
one that a shape does not admit lowers to the same launches as another. So neither is written down here as a rule. Lists are short, since
every entry costs a compilation and a measurement: values around the default, one decision at a time, and not a full product. Each lowering
states its space next to itself; here is what they share.

What matters only where kernels overlap is not shown by measurements of single ops: GEMV tiles, and tiles of decode attention of few
sequences, where a kernel begins before the one before it has ended. A lowering states those apart (`Lowering.step_space`), for tuning by
whole decode steps. Left out is decode attention concurrent with prefill.

A *threshold* is a number of tokens from which another routine takes over. It is judged at token counts of its own, after the tiles.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from trtllm_kernels.lowering.call import OpCall, next_power_of_2

Candidate = Mapping[str, int]

DECODE, PREFILL, CHUNK = "decode", "prefill", "chunk"
"""Kinds of steps: one token of each of many sequences; a whole prompt; a part of a prompt whose beginning is in the cache."""
NEVER = 1 << 29
"""A threshold that no step reaches."""
TOKENS = (32, 64, 128, 192, 256, 384, 512, 1024)
"""Token counts at which thresholds are judged."""


@dataclass(frozen=True)
class Choice:
    """Tunables that are decided together. `tokens`: where a threshold is judged, in place of the requested token counts."""

    name: str
    candidates: tuple[Candidate, ...]
    steps: tuple[str, ...] = (DECODE,)
    tokens: tuple[int, ...] = ()

    @property
    def tunables(self) -> frozenset[str]:
        return frozenset(name for candidate in self.candidates for name in candidate)


def of_decode_steps(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    """Those that matter in decode steps, thresholds left out."""
    return tuple(choice for choice in choices if DECODE in choice.steps and not choice.tokens)


def grid(**values: Iterable[int]) -> tuple[Candidate, ...]:
    """Every combination of the values of each tunable."""
    return tuple(dict(zip(values, combination, strict=True)) for combination in product(*values.values()))


def table(names: tuple[str, ...], *lines: tuple[int, ...]) -> tuple[Candidate, ...]:
    """One candidate per line of values."""
    return tuple(dict(zip(names, line, strict=True)) for line in lines)


def column_space(call: OpCall) -> tuple[Choice, ...]:
    """For kernels over blocks of columns, with at least four elements per thread."""
    widest = next_power_of_2(max(call.outputs[0].size(1), 128))
    blocks = [block for block in (256, 512, 1024, 2048, 4096) if block <= widest] or [widest]
    return (Choice("columns", tuple(c for c in grid(block=blocks, warps=(1, 2, 4, 8)) if c["block"] >= 128 * c["warps"])),)


def row_space(call: OpCall) -> tuple[Choice, ...]:
    """For kernels with one program per row."""
    return (Choice("rows", grid(warps=(1, 2, 4, 8, 16))),)


def head_space(call: OpCall) -> tuple[Choice, ...]:
    """For kernels over blocks of heads."""
    return (Choice("heads", grid(block_h=(2, 4, 8, 16, 32), warps=(1, 2, 4))),)
