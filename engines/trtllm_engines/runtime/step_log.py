"""What each step did, one row per step: the evidence for batch composition, cache use and gaps. It is cheap enough to be always on."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

STEP_DTYPE = np.dtype(
    [
        ("launched_s", np.float64),
        ("done_s", np.float64),
        ("schedule_us", np.float32),
        ("decode_tokens", np.int32),
        ("context_tokens", np.int32),
        ("context_seqs", np.int32),
        ("running", np.int32),
        ("waiting", np.int32),
        ("kv_pages_used", np.int32),
        ("preemptions", np.int32),
    ]
)
"""`launched_s`, `done_s`: the loop's clock; `schedule_us`: host time to build the step; `preemptions`: total so far."""


class StepLog:
    def __init__(self) -> None:
        self._rows = np.zeros(1024, STEP_DTYPE)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def append(
        self,
        *,
        launched_s: float,
        schedule_us: float,
        decode_tokens: int,
        context_tokens: int,
        context_seqs: int,
        running: int,
        waiting: int,
        kv_pages_used: int,
        preemptions: int,
    ) -> int:
        """Returns the step's number, which is its row."""
        if self._count == len(self._rows):
            self._rows = np.concatenate((self._rows, np.zeros_like(self._rows)))
        counts = (decode_tokens, context_tokens, context_seqs, running, waiting, kv_pages_used, preemptions)
        self._rows[self._count] = (launched_s, 0.0, schedule_us, *counts)
        self._count += 1
        return self._count - 1

    def finish(self, step: int, done_s: float) -> None:
        self._rows["done_s"][step] = done_s

    def times_of(self, steps: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
        """When each of these steps was done."""
        return self._rows["done_s"][steps].astype(np.float64)

    def rows(self) -> npt.NDArray[Any]:
        """All steps so far, of `STEP_DTYPE` (a copy)."""
        return self._rows[: self._count].copy()
