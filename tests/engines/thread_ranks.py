"""The ranks of an engine as threads of one process on the CPU: every layout runs here, and starts in no time.

Every rank of a stage runs the same plan over its own weights, KV cache and state, and meets the others in the ops that communicate; stages
of a pipeline are linked by queues. A step's batch goes to all; the tokens of the last stage's first rank are the step's, as all ranks of
that stage have the same. Ranks on GPUs, and of an engine on the CPU, are processes, which take seconds to start.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from trtllm_engines.compiler.plan import Plan
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.batch import StepBatch, StepOutput
from trtllm_engines.runtime.cpu import CpuRunner
from trtllm_engines.runtime.group import joined
from trtllm_kernels.references.communication import communicate

MEETING_S = 60.0
"""How long a rank waits for the others in one exchange before it gives them up."""
_LOOK_S = 0.5
"""How often a rank that waits for the stage before looks whether another has failed."""


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


@dataclass(frozen=True)
class ThreadLink:
    """One thread's ends of the pipeline: a queue from the stage before, where there is one, and one to the next."""

    before: queue.Queue[torch.Tensor]
    next: queue.Queue[torch.Tensor]
    failed: threading.Event

    def join(self, plan: Plan) -> tuple[torch.Tensor, torch.Tensor | None]:
        return joined(self, plan)

    def receive(self, hidden: torch.Tensor) -> None:
        for _ in range(int(MEETING_S / _LOOK_S)):
            with contextlib.suppress(queue.Empty):
                hidden.copy_(self.before.get(timeout=_LOOK_S))
                return
            if self.failed.is_set():
                break
        raise threading.BrokenBarrierError

    def send(self, hidden: torch.Tensor) -> None:
        self.next.put(hidden)


@dataclass(frozen=True)
class ThreadHandle:
    """A step in flight on the threads. `answers`: the rank whose tokens are the step's."""

    futures: Sequence[Future[StepOutput]]
    answers: int

    def done(self) -> bool:
        return all(future.done() for future in self.futures)

    def result(self) -> StepOutput:
        """Raises `EngineError` naming the rank that failed."""
        errors = [future.exception() for future in self.futures]
        if any(errors):
            failures = [
                f"rank {rank} failed: {type(error).__name__}: {error}"
                for rank, error in enumerate(errors)
                if error is not None and not isinstance(error, threading.BrokenBarrierError)
            ]
            raise EngineError("; ".join(failures) or f"a rank did not come to an exchange within {MEETING_S:g} s")
        return self.futures[self.answers].result()


class ThreadRanks:
    """A `StepRunner` of several CPU ranks. `plans`: one a pipeline stage. `tensors(rank)` gives a rank's weights and constants."""

    def __init__(self, plans: Plan | Sequence[Plan], tensors: Callable[[int], Mapping[str, torch.Tensor]], num_pages: int) -> None:
        stages = [plans] if isinstance(plans, Plan) else list(plans)
        self.plan, self.num_pages = stages[0], num_pages
        tp = self.plan.parallel.tp
        self._answers = (len(stages) - 1) * tp
        self._failed = threading.Event()
        self._meetings = [_Meeting(tp) for _ in stages]
        links: list[queue.Queue[torch.Tensor]] = [queue.Queue() for _ in range((len(stages) + 1) * tp)]
        self.ranks = [
            CpuRunner(
                plan,
                tensors(stage * tp + rank),
                num_pages,
                group=ThreadGroup(self._meetings[stage], rank),
                link=ThreadLink(links[stage * tp + rank], links[(stage + 1) * tp + rank], self._failed),
            )
            for stage, plan in enumerate(stages)
            for rank in range(tp)
        ]
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
                self._failed.set()
                for meeting in self._meetings:
                    meeting.barrier.abort()
                future.set_exception(error)

    def launch(self, batch: StepBatch) -> ThreadHandle:
        """Sends the step to every rank."""
        futures: list[Future[StepOutput]] = [Future() for _ in self.ranks]
        for inbox, future in zip(self._inboxes, futures, strict=True):
            inbox.put((batch, future))
        return ThreadHandle(futures, self._answers)

    def close(self) -> None:
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()
