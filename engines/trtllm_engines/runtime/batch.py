"""One step of work, as the batcher hands it to a runner: NumPy arrays on the host, nothing per token in Python.

Order of sequences in a step: decode sequences first (one token each, taken on the device from the slot's last sampled token), then
context chunks. `StepRunner` is the seam between scheduling and execution: the engine's executors implement it, and so does the fake
model the scheduler is tested with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from trtllm_engines.runtime.sampling_params import SamplingParams

if TYPE_CHECKING:
    from trtllm_engines.runtime.observer import StepObserver

IntArray = npt.NDArray[np.int32]


@dataclass(frozen=True)
class SlotStart:
    """A sequence takes a slot in this step: what the sampler must know of it. `output` is not empty when it resumes after preemption."""

    slot: int
    prompt: IntArray
    output: IntArray
    sampling: SamplingParams
    seed: int
    stop_ids: tuple[int, ...]
    """Tokens that end it, forbidden before `sampling.min_tokens`."""


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
    starts: tuple[SlotStart, ...] = ()
    """Sequences that take their slot in this step; applied before it runs."""
    decode_tokens: IntArray | None = None
    """[D] token that each decode sequence goes on from; None where the device has it from the step before, as outside pipelines."""

    @property
    def num_tokens(self) -> int:
        return self.num_decodes + len(self.context_tokens)

    @property
    def num_seqs(self) -> int:
        return len(self.slots)


@dataclass(frozen=True)
class TokenLogprobs:
    """Of the raw distribution (before penalties, temperature and filters): the chosen token's, and the most likely tokens', best first."""

    chosen: float
    top: dict[int, float]


@dataclass(frozen=True)
class StepOutput:
    """Result of one step: sampled tokens in the order of the batch's sampled rows, and their log-probabilities where asked for."""

    tokens: IntArray
    """[S]"""
    logprobs: Sequence[TokenLogprobs | None] | None = None


class StepHandle(Protocol):
    """A step in flight."""

    def done(self) -> bool: ...

    def result(self) -> StepOutput:
        """Blocks until the step's tokens are on the host."""


class StepRunner(Protocol):
    """Executes steps in the order launched. `launch` must not wait for the device.

    It may be one rank or stand for several: all that a step needs is in its `StepBatch`, which `wire.py` turns into bytes.
    """

    def launch(self, batch: StepBatch) -> StepHandle: ...


@runtime_checkable
class ObservedRunner(StepRunner, Protocol):
    """A runner that tells an observer what happens within a launch."""

    def observe(self, observer: StepObserver) -> None:
        """`observer` replaces the one before."""
