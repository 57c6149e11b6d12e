"""The ranks of a tensor-parallel engine as threads of one process on the CPU: what tests and dry runs of a layout use.

Every rank runs the same plan over its own weights, KV cache and state, and meets the others in the ops that communicate. A step's batch
goes to all; the tokens of the first rank are the step's, as all have the same. Rejected for this: processes (seconds to start, ports,
pickled arrays), which is how GPUs are driven.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from trtllm_engines.compiler.plan import Plan
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.batch import StepBatch, StepOutput
from trtllm_engines.runtime.cpu import CpuHandle, CpuRunner
from trtllm_kernels.references.communication import communicate

MEETING_S = 60.0
"""How long a rank waits for the others in one exchange before it gives them up."""


class _Meeting:
    """Where the threads of one group gather tensors: every rank leaves its own, and takes all once the last has come."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.slots: list[torch.Tensor | None] = [None] * size
        self.barrier = threading.Barrier(size, timeout=MEETING_S)

    def all_gather(self, rank: int, x: torch.Tensor) -> list[torch.Tensor]:
        self.slots[rank] = x
        self.barrier.wait()
        gathered = [tensor for tensor in self.slots if tensor is not None]
        self.barrier.wait()  # until all have taken them, none may leave the next
        return gathered


@dataclass(frozen=True)
class ThreadGroup:
    """One thread's membership in a group, for ops (as a `Communicator`) and for the runtime (as a `RankGroup`)."""

    meeting: _Meeting
    rank: int

    @property
    def size(self) -> int:
        return self.meeting.size

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        return self.meeting.all_gather(self.rank, x)

    def arena(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def join(self, plan: Plan) -> torch.Tensor:
        return communicate(self)

    def least(self, count: int) -> int:
        """Threads of one machine have the same memory."""
        return count

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.all_gather(x), dim=1)


class ThreadRanks:
    """A `StepRunner` of several CPU ranks. `tensors(rank)` gives a rank's weights and constants."""

    def __init__(self, plan: Plan, tensors: Callable[[int], Mapping[str, torch.Tensor]], num_pages: int) -> None:
        self.plan, self.num_pages = plan, num_pages
        self._meeting = _Meeting(plan.parallel.tp)
        groups = [ThreadGroup(self._meeting, rank) for rank in range(plan.parallel.tp)]
        self.ranks = [CpuRunner(plan, tensors(group.rank), num_pages, group=group) for group in groups]
        self._inboxes: list[queue.SimpleQueue[tuple[StepBatch, Future[StepOutput]] | None]] = [queue.SimpleQueue() for _ in self.ranks]
        self._threads = [
            threading.Thread(target=self._serve, args=(rank,), name=f"rank-{rank}", daemon=True) for rank in range(len(self.ranks))
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self, rank: int) -> None:
        while (work := self._inboxes[rank].get()) is not None:
            batch, future = work
            try:
                future.set_result(self.ranks[rank].launch(batch).result())
            except Exception as error:
                self._meeting.barrier.abort()
                future.set_exception(error)

    def launch(self, batch: StepBatch) -> CpuHandle:
        """Runs the step on every rank. Raises `EngineError` naming the rank that failed."""
        futures: list[Future[StepOutput]] = [Future() for _ in self.ranks]
        for inbox, future in zip(self._inboxes, futures, strict=True):
            inbox.put((batch, future))
        outputs = []
        failures = []
        for rank, future in enumerate(futures):
            error = future.exception()
            if error is None:
                outputs.append(future.result())
            elif not isinstance(error, threading.BrokenBarrierError):
                failures.append(f"rank {rank} failed: {type(error).__name__}: {error}")
        if len(outputs) < len(futures):
            raise EngineError("; ".join(failures) or f"a rank did not come to an exchange within {MEETING_S:g} s")
        return CpuHandle(outputs[0])

    def close(self) -> None:
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()
