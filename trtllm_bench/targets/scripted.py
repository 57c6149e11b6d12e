"""Targets that serve nothing: the null target (what the driver itself costs) and a scripted one (a server whose truth is known).

The scripted target answers after `ttft_s`, then a token every `itl_s`, on at most `slots` requests at a time, first come first served: an
M/D/c-like queue, so a test, a dry run of a sweep and the saturation search all have something that saturates where arithmetic says.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np

from trtllm_bench.load.clock import FakeClock
from trtllm_bench.load.target import Deliver, RequestOutcome, Target
from trtllm_bench.spec.measurement import MeasurementSpec
from trtllm_bench.targets.registry import Identity, OnBuild, StaticTarget, register
from trtllm_workloads.request import RequestSpec


class NullTarget(Target):
    """Every request ends the moment it is submitted."""

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver

    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        now = time.perf_counter()
        self._deliver(RequestOutcome(request.id, now, request.output_tokens, np.full(request.output_tokens, now)))

    def stop(self) -> None:
        pass


@dataclass(frozen=True)
class Script:
    """The scripted server's truth. `slots` 0: no bound."""

    ttft_s: float = 0.02
    itl_s: float = 0.002
    slots: int = 0
    short_by: int = 0
    """Tokens left off each answer, to play a server that stops early."""
    fail_every: int = 0
    """Every n-th request fails; 0 for none."""

    def answer(self, request: RequestSpec, begin_s: float) -> RequestOutcome:
        if self.fail_every and request.id % self.fail_every == self.fail_every - 1:
            return RequestOutcome(request.id, begin_s + self.ttft_s, 0, error="the script says so")
        tokens = max(1, request.output_tokens - self.short_by)
        times = begin_s + self.ttft_s + self.itl_s * np.arange(tokens, dtype=np.float64)
        return RequestOutcome(request.id, float(times[-1]), tokens, times, scheduled_s=begin_s)


class VirtualTarget(Target):
    """The script on a `FakeClock`: exact, and as quick as the driver."""

    def __init__(self, clock: FakeClock, script: Script) -> None:
        self._clock, self._script = clock, script
        self.sent: list[tuple[float, int]] = []
        self.in_flight = self.peak_in_flight = 0
        self._running = 0
        self._waiting: deque[RequestSpec] = deque()

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver

    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        self.sent.append((self._clock.now(), request.id))
        self._clock.spend()
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        self._waiting.append(request)
        self._begin()

    def _begin(self) -> None:
        while self._waiting and (not self._script.slots or self._running < self._script.slots):
            outcome = self._script.answer(self._waiting.popleft(), self._clock.now())
            self._running += 1
            self._clock.at(outcome.end_s, lambda outcome=outcome: self._finish(outcome))  # type: ignore[misc]

    def _finish(self, outcome: RequestOutcome) -> None:
        self._running -= 1
        self.in_flight -= 1
        self._deliver(outcome)
        self._begin()

    def stop(self) -> None:
        pass


class ScriptedTarget(Target):
    """The script in real time, on one thread."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._changed = threading.Condition()

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._stopped = False
        self._waiting: deque[RequestSpec] = deque()
        self._running: list[tuple[float, int, RequestOutcome]] = []
        self._thread = threading.Thread(target=self._serve, name="scripted-target", daemon=True)
        self._thread.start()

    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        with self._changed:
            self._waiting.append(request)
            self._changed.notify()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and not self._ready():
                    self._changed.wait(None if not self._running else max(0.0, self._running[0][0] - time.perf_counter()))
                if self._stopped:
                    return
                now = time.perf_counter()
                while self._waiting and (not self._script.slots or len(self._running) < self._script.slots):
                    outcome = self._script.answer(self._waiting.popleft(), now)
                    heapq.heappush(self._running, (outcome.end_s, outcome.id, outcome))
                ended = []
                while self._running and self._running[0][0] <= now:
                    ended.append(heapq.heappop(self._running)[2])
            for outcome in ended:
                self._deliver(outcome)

    def _ready(self) -> bool:
        room = not self._script.slots or len(self._running) < self._script.slots
        return bool(self._waiting and room) or bool(self._running and self._running[0][0] <= time.perf_counter())

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()


def _open_null(spec: MeasurementSpec, on_build: OnBuild | None) -> StaticTarget:
    return StaticTarget(NullTarget(), Identity("null", "1"))


def _open_fake(spec: MeasurementSpec, on_build: OnBuild | None) -> StaticTarget:
    script = Script(slots=spec.engine.max_batch_size or 1)
    return StaticTarget(ScriptedTarget(script), Identity("fake", "1", places=script.slots, settings={"script": repr(script)}))


register("null", open=_open_null)
register("fake", open=_open_fake)
