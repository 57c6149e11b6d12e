"""Time as the driver sees it: now, and wait until a moment or an outcome, whichever comes first.

The one seam between the driver and real time. `FakeClock` runs the same driver in virtual time, where a test can assert that a request was
sent at exactly the intended instant; a scripted target puts its answers on the clock as events.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from trtllm_bench.load.target import RequestOutcome


class Clock(Protocol):
    def now(self) -> float:
        """Seconds, monotonic."""

    def deliver(self, outcome: RequestOutcome) -> None:
        """Thread-safe; ends a `wait`."""

    def wait(self, until: float) -> RequestOutcome | None:
        """The next outcome, or None once `until` has passed without one."""

    def poll(self) -> RequestOutcome | None:
        """An outcome already there, or None."""


class RealClock:
    """`time.perf_counter`, and an inbox that wakes the driver. Sleeps in the kernel: spinning would take a core from the target.

    Rejected: `queue.SimpleQueue`. Up to CPython 3.12 its `get(timeout)` may wait for ever: when an item was taken without a wait before it,
    and the thread stands still between its two looks at the time, what is left of the timeout is below zero, which means none.
    """

    def __init__(self) -> None:
        self._inbox: deque[RequestOutcome] = deque()
        self._bell = threading.Lock()
        """Open once something was delivered that no wait has seen."""
        self._bell.acquire()
        self.now = time.perf_counter

    def deliver(self, outcome: RequestOutcome) -> None:
        self._inbox.append(outcome)
        with suppress(RuntimeError):  # it is open already
            self._bell.release()

    def wait(self, until: float) -> RequestOutcome | None:
        while not self._inbox:
            left = until - time.perf_counter()
            if left <= 0:
                return None
            self._bell.acquire(timeout=min(left, 3600.0))
        return self._inbox.popleft()

    def poll(self) -> RequestOutcome | None:
        return self._inbox.popleft() if self._inbox else None


class FakeClock:
    """Virtual time: advances only in `wait`, from event to event. `at(t, event)` schedules what a scripted target does later."""

    def __init__(self, send_cost_s: float = 0.0) -> None:
        self._now = 1000.0
        self._send_cost_s = send_cost_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._inbox: deque[RequestOutcome] = deque()
        self._order = 0
        self._stops: list[tuple[float, float]] = []

    def stand_still(self, when: float, seconds: float) -> None:
        """The driver's thread will not run from `when` on, for `seconds`: what a suspended process or a starved machine does to it."""
        heapq.heappush(self._stops, (when, seconds))

    def _stopped(self) -> None:
        while self._stops and self._stops[0][0] <= self._now:
            when, seconds = heapq.heappop(self._stops)
            self._now = max(self._now, when + seconds)

    def now(self) -> float:
        return self._now

    def spend(self) -> None:
        """A submit was made: virtual time a slow driver would have lost on it."""
        self._now += self._send_cost_s

    def at(self, when: float, event: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (when, self._order, event))

    def deliver(self, outcome: RequestOutcome) -> None:
        self._inbox.append(outcome)

    def wait(self, until: float) -> RequestOutcome | None:
        while not self._inbox and self._events and self._events[0][0] <= until:
            when, _, event = heapq.heappop(self._events)
            self._now = max(self._now, when)
            event()
        if not self._inbox:
            self._now = max(self._now, until)
        self._stopped()
        return self._inbox.popleft() if self._inbox else None

    def poll(self) -> RequestOutcome | None:
        while self._events and self._events[0][0] <= self._now:
            heapq.heappop(self._events)[2]()
        return self._inbox.popleft() if self._inbox else None
