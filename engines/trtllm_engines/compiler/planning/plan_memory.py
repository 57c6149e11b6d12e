"""Where each value lives: offsets in one arena, sized for the profile's largest step.

Liveness is read off the op order; a value occupies its bytes from the op that writes it to the last that reads it, or whose launches do on
any architecture, both included (a kernel must never write over what it is still reading), but for a result that takes the place of an
input (`Op.reuses`). Placement is greedy by size: the largest value first, each at the lowest offset where it meets no value alive with it
(Pisarchyk and Lee 2020, "greedy by size for offset calculation"). On a decoder the peak is one feed-forward, whatever the depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from trtllm_engines.compiler.plan import Buffer, Op, Profile
from trtllm_kernels.dialect.dtypes import nbytes
from trtllm_kernels.dialect.types import SKINNY_TOKENS, SYMBOLS, TensorSpec

ALIGNMENT = 256
"""Bytes. TMA wants 128; a cache line pair costs nothing."""


@dataclass(frozen=True)
class Lifetime:
    """`name` needs `nbytes` from op `first` to op `last`, inclusive."""

    name: str
    nbytes: int
    first: int
    last: int

    def meets(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


def place(lifetimes: Iterable[Lifetime]) -> tuple[dict[str, Buffer], int]:
    """Buffers such that no two values alive together overlap, and the arena's size in bytes."""
    placed: list[tuple[Lifetime, Buffer]] = []
    for value in sorted(lifetimes, key=lambda v: (-v.nbytes, v.first, v.name)):
        size = -(-value.nbytes // ALIGNMENT) * ALIGNMENT
        offset = 0
        for buffer in sorted((b for other, b in placed if value.meets(other)), key=lambda b: b.offset):
            if buffer.offset >= offset + size:
                break
            offset = max(offset, -(-(buffer.offset + buffer.nbytes) // ALIGNMENT) * ALIGNMENT)
        placed.append((value, Buffer(offset, value.nbytes)))
    end = max((buffer.offset + buffer.nbytes for _, buffer in placed), default=0)
    return {value.name: buffer for value, buffer in placed}, -(-end // ALIGNMENT) * ALIGNMENT


def plan_memory(
    ops: Sequence[Op], values: Mapping[str, TensorSpec], outputs: Sequence[str], profile: Profile
) -> tuple[dict[str, Buffer], int]:
    """The buffer of every value and workspace, and the arena's size in bytes."""
    buffers, arena_bytes = place(lifetimes(ops, values, outputs, profile))
    return {**buffers, **{name: buffers[owner] for name, owner in owners(ops).items()}}, arena_bytes


def owners(ops: Sequence[Op]) -> dict[str, str]:
    """Value that has no memory of its own -> the value whose memory it takes."""
    owner_of: dict[str, str] = {}
    for op in ops:
        if op.reuses:
            owner_of[op.outputs[0]] = owner_of.get(op.reuses, op.reuses)
    return owner_of


def largest_bytes(spec: TensorSpec, profile: Profile) -> int:
    """Size of a value in the largest step the profile allows, and in one of `SKINNY_TOKENS`: kernels that pad tokens to whole tiles then
    read what lies there, and no edge of the buffer, at which TMA is slower."""
    symbols = {**dict.fromkeys(SYMBOLS, max(profile.max_batch_size, SKINNY_TOKENS)), "T": max(profile.max_num_tokens, SKINNY_TOKENS)}
    return nbytes(spec, symbols)


def lifetimes(ops: Sequence[Op], values: Mapping[str, TensorSpec], outputs: Sequence[str], profile: Profile) -> list[Lifetime]:
    """Of every value with memory of its own (outputs live to the end, and each lives as long as what takes its memory over) and of every
    workspace of the ops' tactics (alive during its op alone)."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    scratch: dict[str, Lifetime] = {}
    for index, op in enumerate(ops):
        for name in op.outputs:
            first[name] = last[name] = index
        for name in op.inputs:
            if name in first:
                last[name] = index
        for lowered in op.tactics.values():
            for name, spec in lowered.workspaces.items():
                largest = max(largest_bytes(spec, profile), scratch[name].nbytes if name in scratch else 0)
                scratch[name] = Lifetime(name, largest, index, index)
            for name in (str(arg.value) for launch in lowered.launches for arg in launch.args if arg.kind in ("tensor", "tma")):
                if name in first:
                    last[name] = index
    for name in outputs:
        last[name] = len(ops)
    for name, owner in owners(ops).items():
        last[owner] = max(last[owner], last[name])
        del first[name]
    return [Lifetime(name, largest_bytes(values[name], profile), first[name], last[name]) for name in first] + list(scratch.values())
