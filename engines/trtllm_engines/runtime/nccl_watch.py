"""The thread that sees, in a rank's process, that NCCL cannot go on, and ends the process.

A rank that waits for one that is gone waits in a kernel, maybe of a CUDA graph, or inside a call, and raises nothing. What NCCL knows of it
it tells whoever asks. The process says what it was told and ends, and its CUDA context with it, whatever runs there; the process that
schedules tells it on. Rejected: `ncclCommAbort` and going on, since a graph that was cut short leaves nothing that a next step could use.
A rank that hangs without NCCL knowing is noticed by its step (`rank_processes.STEP_S`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from trtllm_kernels.launch.nccl import communicators

EVERY_S = 0.25


class NcclWatch:
    """From its making to `stop`."""

    def __init__(self, fail: Callable[[str], None], end: Callable[[int], object] = os._exit) -> None:
        """`fail` is told the reason before `end` is called, which ends the process."""
        self._fail, self._end = fail, end
        self._stopped = threading.Event()
        threading.Thread(target=self._watch, name="nccl-watch", daemon=True).start()

    def _watch(self) -> None:
        while not self._stopped.wait(EVERY_S):
            trouble = next((said for one in communicators() if (said := one.trouble())), "")
            if trouble and not self._stopped.is_set():
                self._fail(trouble)
                self._end(1)
                return

    def stop(self) -> None:
        """Nobody is watched any more: at the end, when other ranks may be gone."""
        self._stopped.set()
