"""Steps from the process that schedules to the ranks' processes and tokens back, through shared memory of one host.

    header     int64: steps written, steps the controller wants no more (closing), pages of KV cache, steps answered, then for each rank its
               state, the steps it has read, and its process
    messages   a ring of `SLOTS`: length and bytes of a step batch (`wire`), which every rank reads
    answers    a ring of `SLOTS`: length and bytes of what the first rank sampled
    reasons    a sentence of each rank that failed

The writer fills a slot and then counts it; readers poll the count. x86 processors show another process's stores in the order they were
made, so no lock is needed. Rejected: a pipe to each rank (67 us round trip against 13, measured with 2,048 sequences on a CPU), and pickled
objects, which run what they are sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from multiprocessing import shared_memory

import numpy as np
import numpy.typing as npt

from trtllm_engines.errors import EngineError

SLOTS = 8
STARTING, READY, FAILED, ENDED = range(4)
_WRITTEN, _CLOSING, _PAGES, _ANSWERED, _FIXED = range(5)
_PER_RANK = 3
_REASON_BYTES = 1024
_SPIN_S = 200e-6
"""How long a waiting process polls without sleeping: about as long as the host needs between two steps."""


class StepRing:
    """Either end. `create` makes the memory and is its owner; ranks `attach`."""

    def __init__(self, memory: shared_memory.SharedMemory, ranks: int, message_bytes: int, answer_bytes: int, owner: bool) -> None:
        assert memory.buf is not None
        self._memory, self._bytes, self._owner, self.ranks = memory, memory.buf, owner, ranks
        self._counts: npt.NDArray[np.int64] = np.ndarray(_FIXED + _PER_RANK * ranks, np.int64, memory.buf)
        self._messages = 8 * (_FIXED + _PER_RANK * ranks)
        self._message_bytes = message_bytes
        self._answers = self._messages + SLOTS * (8 + message_bytes)
        self._answer_bytes = answer_bytes
        self._reasons = self._answers + SLOTS * (8 + answer_bytes)

    @classmethod
    def create(cls, ranks: int, message_bytes: int, answer_bytes: int) -> StepRing:
        size = 8 * (_FIXED + _PER_RANK * ranks) + SLOTS * (16 + message_bytes + answer_bytes) + ranks * _REASON_BYTES
        try:
            memory = shared_memory.SharedMemory(create=True, size=size)
        except OSError as error:
            raise EngineError(f"{size / 2**20:.0f} MiB of shared memory for the ranks' steps cannot be had ({error.strerror})") from error
        ring = cls(memory, ranks, message_bytes, answer_bytes, owner=True)
        ring._bytes[:] = bytes(size)
        return ring

    @classmethod
    def attach(cls, name: str, ranks: int, message_bytes: int, answer_bytes: int) -> StepRing:
        memory = shared_memory.SharedMemory(name=name)
        _leave_to_its_owner(memory)
        return cls(memory, ranks, message_bytes, answer_bytes, owner=False)

    @property
    def name(self) -> str:
        return self._memory.name

    # --- the controller's end ---

    def send(self, message: bytes, wait: Callable[[], None]) -> int:
        """Writes a step for every rank, once all have read the one whose slot it takes; returns its number. `wait` is called while polling
        and may raise."""
        if len(message) > self._message_bytes:
            raise EngineError(f"a step of {len(message)} bytes is larger than the ranks' ring has room for ({self._message_bytes})")
        number = int(self._counts[_WRITTEN])
        _poll(lambda: number - int(self._counts[_FIXED + 1 :: _PER_RANK].min()) < SLOTS, wait)
        self._put(self._messages, self._message_bytes, number, message)
        self._counts[_WRITTEN] = number + 1
        return number

    def answered(self, number: int) -> bool:
        return int(self._counts[_ANSWERED]) > number

    def answer(self, number: int, wait: Callable[[], None]) -> bytes:
        """What the first rank answered to step `number`."""
        _poll(lambda: self.answered(number), wait)
        return self._get(self._answers, self._answer_bytes, number)

    def states(self) -> list[int]:
        return [int(state) for state in self._counts[_FIXED::_PER_RANK]]

    def processes(self) -> list[int]:
        """Process id of each rank, 0 where it has not come yet."""
        return [int(process) for process in self._counts[_FIXED + 2 :: _PER_RANK]]

    def reason(self, rank: int) -> str:
        at = self._reasons + rank * _REASON_BYTES
        return bytes(self._bytes[at : at + _REASON_BYTES]).rstrip(b"\0").decode(errors="replace")

    @property
    def num_pages(self) -> int:
        return int(self._counts[_PAGES])

    def close(self) -> None:
        """Tells ranks to end, and leaves the memory."""
        if self._owner:
            self._counts[_CLOSING] = 1
        del self._counts, self._bytes
        self._memory.close()
        if self._owner:
            self._memory.unlink()

    # --- a rank's end ---

    def enter(self, rank: int, process: int) -> None:
        self._counts[_FIXED + _PER_RANK * rank + 2] = process

    def ready(self, rank: int, num_pages: int) -> None:
        self._counts[_PAGES] = num_pages
        self._counts[_FIXED + _PER_RANK * rank] = READY

    def fail(self, rank: int, reason: str) -> None:
        at, text = self._reasons + rank * _REASON_BYTES, reason.encode()[: _REASON_BYTES - 1]
        self._bytes[at : at + len(text)] = text
        self._counts[_FIXED + _PER_RANK * rank] = FAILED

    def receive(self, rank: int, wait: Callable[[], None]) -> bytes | None:
        """The next step, or None when there will be no more."""
        number = int(self._counts[_FIXED + _PER_RANK * rank + 1])
        _poll(lambda: int(self._counts[_WRITTEN]) > number or bool(self._counts[_CLOSING]), wait)
        if int(self._counts[_WRITTEN]) <= number:
            return None
        message = self._get(self._messages, self._message_bytes, number)
        self._counts[_FIXED + _PER_RANK * rank + 1] = number + 1
        return message

    def reply(self, number: int, answer: bytes) -> None:
        self._put(self._answers, self._answer_bytes, number, answer)
        self._counts[_ANSWERED] = number + 1

    def _put(self, first: int, room: int, number: int, data: bytes) -> None:
        at = first + number % SLOTS * (8 + room)
        self._bytes[at : at + 8] = len(data).to_bytes(8, "little")
        self._bytes[at + 8 : at + 8 + len(data)] = data

    def _get(self, first: int, room: int, number: int) -> bytes:
        at = first + number % SLOTS * (8 + room)
        length = int.from_bytes(self._bytes[at : at + 8], "little")
        return bytes(self._bytes[at + 8 : at + 8 + length])


def _poll(done: Callable[[], bool], wait: Callable[[], None]) -> None:
    began = time.perf_counter()
    while not done():
        wait()
        time.sleep(50e-6 if time.perf_counter() - began > _SPIN_S else 0)  # 0 lets other threads run: those of other replicas


def _leave_to_its_owner(memory: shared_memory.SharedMemory) -> None:
    """Python's resource tracker would otherwise remove the memory when a process that only attached to it ends (until Python 3.13)."""
    from multiprocessing import resource_tracker

    resource_tracker.unregister(memory._name, "shared_memory")  # type: ignore[attr-defined]
