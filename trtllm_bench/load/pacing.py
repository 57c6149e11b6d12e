"""Which request is due next, and since when: arrivals, followers in a session, and the bound on requests in flight, as one rule.

A request is *eligible* at its arrival time, or `think_s` after the request it follows ended; without arrival times, from the start.
It is *due* when it is eligible and a place is free. Its *intended* time, from which latency counts, is the arrival time in an open loop (a
bound on concurrency makes it wait, and that wait is latency), and the due time in a closed one, which has no other. The driver's own
lag is always sent - due. A request has ended, and its place is free, when its answer is closed: what the target does between the last
token and that end is neither the next request's latency nor the driver's lag.

Pure bookkeeping, no clock: the driver tells it what ended when.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from trtllm_workloads.request import RequestSpec


@dataclass(frozen=True, slots=True)
class Due:
    id: int
    due_s: float
    intended_s: float


class Pacer:
    """`concurrency` 0 means no bound; `open_loop` says whether the requests' arrival times count. Times are absolute."""

    def __init__(self, requests: Sequence[RequestSpec], start_s: float, concurrency: int, open_loop: bool) -> None:
        self._requests = requests
        self._open = open_loop
        self._bounded = concurrency > 0
        self._free = deque([start_s] * concurrency)
        self._followers: dict[int, list[int]] = {}
        first: list[tuple[float, int]] = []
        for place, request in enumerate(requests):
            if request.after >= 0:
                self._followers.setdefault(request.after, []).append(place)
                continue
            arrival = 0.0 if not open_loop or math.isnan(request.arrival_s) else request.arrival_s
            first.append((start_s + arrival, place))
        first.sort()
        self._first = deque(first)
        self._woken: list[tuple[float, int]] = []

    def next_due(self) -> float:
        """When the next request is due: infinity when none is waiting, or all places are taken."""
        if self._bounded and not self._free:
            return math.inf
        eligible = self._peek()[0]
        return max(eligible, self._free[0]) if self._bounded else eligible

    def _peek(self) -> tuple[float, int]:
        """The next request and when it is (or was) eligible. In a closed loop a free place goes to a waiting follower before it starts a
        new session, so that at most about `concurrency` sessions are under way."""
        if not self._woken:
            return self._first[0] if self._first else (math.inf, -1)
        if not self._first:
            return self._woken[0]
        if self._open:
            return min(self._first[0], self._woken[0])
        free = self._free[0] if self._free else self._first[0][0]
        return self._woken[0] if self._woken[0][0] <= free else self._first[0]

    def take(self) -> Due:
        """The next request, which the caller now sends. Only valid when `next_due` is finite."""
        eligible, place = self._peek()
        if self._woken and self._woken[0] == (eligible, place):
            heapq.heappop(self._woken)
        else:
            self._first.popleft()
        due = max(eligible, self._free.popleft()) if self._bounded else eligible
        return Due(place, due, eligible if self._open else due)

    def ended(self, place: int, end_s: float, ok: bool) -> list[int]:
        """A request ended: its place is free. Returns the requests that will never be sent because it failed (the rest of its session)."""
        if self._bounded:
            self._free.append(end_s)
        followers = self._followers.pop(place, [])
        if ok:
            for follower in followers:
                heapq.heappush(self._woken, (end_s + self._requests[follower].think_s, follower))
            return []
        lost = []
        while followers:
            follower = followers.pop()
            lost.append(follower)
            followers += self._followers.pop(follower, [])
        return lost
