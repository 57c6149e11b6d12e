"""A trace: the arrival, prompt length and output length of each row, and sessions and prefix blocks where the publisher recorded them.

It is held as columns, since traces have a million rows. Prefix blocks (`hash_ids`) say which stretches of prompts were equal without
saying what they were; `to_workload` gives each block id a token stream, so that replayed prompts share exactly what the recorded ones
shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from trtllm_workloads.errors import WorkloadError
from trtllm_workloads.request import Workload
from trtllm_workloads.structure import unshared
from trtllm_workloads.tokens import Int32Array, Int64Array, SegmentPrompts, Vocabulary, stream_keys

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Trace:
    """n rows. `arrival_s` is in seconds from any origin, and empty where the publisher gave lengths only."""

    name: str
    input_tokens: Int32Array
    output_tokens: Int32Array
    arrival_s: Float64Array
    session: Int64Array | None = None
    turn: Int32Array | None = None
    block_offsets: Int64Array | None = None
    """[n + 1]; row i's prefix blocks are `block_ids[block_offsets[i]:block_offsets[i + 1]]`."""
    block_ids: Int64Array | None = None
    block_tokens: int = 0
    skipped: int = 0
    """Bad rows left out."""
    delay_s: Float64Array | None = None
    """[n] seconds that a turn waits after the answer to the turn before it in its session; NaN where the row has a time of its own. The
    `arrival_s` of a turn that waits is the earliest possible, as if every answer came at once: for order, windows and rates only."""

    def __len__(self) -> int:
        return len(self.input_tokens)

    @property
    def timed(self) -> bool:
        return len(self.arrival_s) > 0

    def take(self, rows: npt.NDArray[np.generic]) -> Trace:
        """Some rows, by number or by mask, in that order."""
        index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
        changes: dict[str, object] = {"input_tokens": self.input_tokens[index], "output_tokens": self.output_tokens[index]}
        if self.timed:
            changes["arrival_s"] = self.arrival_s[index]
        for name in ("session", "turn", "delay_s"):
            column = getattr(self, name)
            if column is not None:
                changes[name] = column[index]
        if self.block_offsets is not None and self.block_ids is not None:
            counts = np.diff(self.block_offsets)[index]
            offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
            within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
            changes["block_ids"] = self.block_ids[np.repeat(self.block_offsets[index], counts) + within]
            changes["block_offsets"] = offsets
        return replace(self, **changes)  # type: ignore[arg-type]

    def in_order(self) -> Trace:
        """Rows by arrival (rows of equal time keep their order), the first at 0."""
        if not self.timed:
            return self
        ordered = self if (np.diff(self.arrival_s) >= 0).all() else self.take(np.argsort(self.arrival_s, kind="stable"))
        return replace(ordered, arrival_s=ordered.arrival_s - ordered.arrival_s[0]) if len(ordered) else ordered

    def prompts(self, vocabulary: Vocabulary, seed: int) -> SegmentPrompts:
        """Prompts of the recorded lengths that share the recorded blocks; what blocks do not cover is each prompt's own."""
        if self.block_offsets is None or self.block_ids is None:
            return unshared(self.input_tokens, vocabulary, seed)
        n = len(self)
        counts = np.diff(self.block_offsets)
        within = np.arange(len(self.block_ids)) - np.repeat(self.block_offsets[:-1], counts)
        room = np.repeat(self.input_tokens.astype(np.int64), counts) - within * self.block_tokens
        shared = np.clip(room, 0, self.block_tokens)
        own = np.maximum(self.input_tokens - counts * self.block_tokens, 0)
        row = np.concatenate([np.repeat(np.arange(n), counts), np.arange(n)])
        stream = np.concatenate([stream_keys(seed, "block", self.block_ids), stream_keys(seed, "request", np.arange(n))])
        length = np.concatenate([shared, own])
        order = np.argsort(row, kind="stable")
        kept = order[length[order] > 0]
        offsets = np.concatenate([[0], np.cumsum(np.bincount(row[kept], minlength=n))]).astype(np.int64)
        return SegmentPrompts(offsets, stream[kept], np.zeros(len(kept), np.int64), length[kept].astype(np.int64), vocabulary)

    def to_workload(self, vocabulary: Vocabulary | None = None, seed: int = 0) -> Workload:
        """The trace as requests, first arrival at 0. A turn keeps its recorded time, where it has one, and then waits for no other."""
        if len(self) == 0:
            raise WorkloadError(f"trace {self.name}: no row is left to replay")
        ordered = self.in_order()
        after, think_s = ordered._followers()
        return Workload(
            name=self.name,
            prompts=ordered.prompts(vocabulary or Vocabulary(), seed),
            input_tokens=ordered.input_tokens,
            output_tokens=ordered.output_tokens,
            arrival_s=ordered.arrival_s if after is None or not self.timed else np.where(after >= 0, np.nan, ordered.arrival_s),
            session=ordered.session,
            turn=ordered.turn,
            after=after,
            think_s=think_s,
            skipped=self.skipped,
        )

    def _followers(self) -> tuple[Int64Array | None, Float64Array | None]:
        """(row each row waits for or -1, seconds it waits then); None where none waits. Without its predecessor a row waits for none."""
        if self.delay_s is None or self.session is None or np.isnan(self.delay_s).all():
            return None, None
        after = np.full(len(self), -1, np.int64)
        last: dict[int, int] = {}
        for row, session in enumerate(self.session.tolist()):
            if session >= 0:
                after[row] = last.get(session, -1)
                last[session] = row
        after[np.isnan(self.delay_s)] = -1
        return after, np.where(after >= 0, self.delay_s, 0.0)


def concatenate(parts: Sequence[Trace]) -> Trace:
    """One trace of its pieces, in order."""
    if len(parts) == 1:
        return parts[0]

    def joined(name: str) -> npt.NDArray[np.generic] | None:
        columns = [getattr(part, name) for part in parts]
        return None if columns[0] is None else np.concatenate(columns)

    changes: dict[str, object] = {
        name: joined(name) for name in ("input_tokens", "output_tokens", "arrival_s", "session", "turn", "block_ids", "delay_s")
    }
    if parts[0].block_offsets is not None:
        counts = np.concatenate([np.diff(part.block_offsets) for part in parts if part.block_offsets is not None])
        changes["block_offsets"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return replace(parts[0], skipped=sum(part.skipped for part in parts), **changes)  # type: ignore[arg-type]
