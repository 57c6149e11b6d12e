"""One step of work, as the batcher hands it to a runner: NumPy arrays on the host, nothing per token in Python.

Order of sequences in a step: decode sequences first (one token each, taken on the device from the slot's last sampled token), then
context chunks. `StepRunner` is the seam between scheduling and execution: the engine's executors implement it, and so does the fake
model the scheduler is tested with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class StepBatch:
    """R sequences, T tokens, D of the sequences decoding (rows [0, D)), S rows sampled."""

    slots: IntArray
    """[R] slot of each sequence."""
    query_lens: IntArray
    """[R] tokens of each sequence in this step (1 for decode)."""
    kv_lens: IntArray
    """[R] tokens in the cache after this step."""
    num_decodes: int
    context_tokens: IntArray
    """[T - D] prompt token ids of the context chunks, in order."""
    sampled: npt.NDArray[np.bool_]
    """[R] whether this sequence's last token yields a sample (decode, or the last chunk of a prompt)."""
    page_updates: IntArray
    """[U, 3] (slot, index in the slot's block table, page) entries that became valid since the last step."""

    @property
    def num_tokens(self) -> int:
        return int(self.query_lens.sum())

    @property
    def num_seqs(self) -> int:
        return len(self.slots)


@dataclass(frozen=True)
class StepOutput:
    """Result of one step: sampled tokens in the order of the batch's sampled rows, and their log-probabilities where asked for."""

    tokens: IntArray
    """[S]"""
    logprobs: Sequence[dict[int, float] | None] | None = None


class StepHandle(Protocol):
    """A step in flight."""

    def done(self) -> bool: ...

    def result(self) -> StepOutput:
        """Blocks until the step's tokens are on the host."""


class StepRunner(Protocol):
    """Executes steps in the order launched. `launch` must not wait for the device."""

    def launch(self, batch: StepBatch) -> StepHandle: ...
