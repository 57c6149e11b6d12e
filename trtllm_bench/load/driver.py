"""The driver: one thread that sends each request when it is due and gathers outcomes.

Open loop means the next send never depends on an answer: the loop waits for the earlier of the next due time and the next outcome, sends
everything that is due, takes in everything that has ended. Latency counts from the intended time, so a driver that is late shows as
latency and not as a better target; its lag (sent - due) is recorded for every request.

Garbage collection is off while requests are timed, as a collection over a large heap stops the thread for milliseconds; and the
interpreter's switch interval is lowered, since an engine in the same process may hold the GIL for the 5 ms default while a
request is due. Rejected: one coroutine per request (at 10,000 requests/s the event loop itself is late), and spinning for
precision (which takes a core from the target).

The driver watches itself: it wakes at least every `BEAT_S`, and where it woke or went on later than that, the run holds a standstill
(`LoadResult.standstills`), which `validity.py` weighs. A process that was stopped for a second shows nowhere else: in a closed loop the
stamps of what it missed, and the requests it did not send, are all late by the same second.

A request is given up alone: when it has taken `Drive.request_limit_s`, or when `Drive.stall_s` has passed since its last token. The run as
a whole is given up only when requests sent after that stay silent too. A search also ends a run `Drive.tail_s` after its last request was
intended: what is still open then is too late for its limits.
"""

from __future__ import annotations

import gc
import heapq
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtllm_bench.errors import user_errors
from trtllm_bench.load.clock import Clock, RealClock
from trtllm_bench.load.pacing import Pacer
from trtllm_bench.load.target import RequestOutcome, Standstill, Target
from trtllm_results.metrics.requests import SLO_NAMES, FloatArray, RequestLog
from trtllm_workloads.request import RequestSpec

SWITCH_INTERVAL_S = 0.0005
START_DELAY_S = 0.01
PROGRESS_S = 0.1
TOO_LATE = "given up: too late to meet any limit"
BEAT_S = 0.02
"""Longest that the driver sleeps without looking at the clock."""
STANDSTILL_S = 0.01
"""Lateness from which on it is a standstill: a few of the kernel's scheduling periods."""


@dataclass(frozen=True)
class Drive:
    """How to send. `concurrency` 0: no bound. `open_loop`: at the requests' arrival times."""

    concurrency: int = 0
    open_loop: bool = False
    stall_s: float = 600.0
    """A request is given up when this long has passed since it was sent and since its last token."""
    request_limit_s: float = math.inf
    """A request is given up when it has taken this long, tokens or not."""
    tail_s: float = math.inf
    """Once every request was sent, those still open this long after the last was intended are given up, all at once."""
    warmup_requests: int = 0
    """The first requests of the run, kept out of the figures."""
    warmup_s: float = 0.0
    """Requests intended in the run's first seconds, kept out of the figures."""


@dataclass(frozen=True)
class LoadResult:
    """What came back. Times are on the driver's clock."""

    log: RequestLog
    """All requests, in workload order, warm-up included; `columns` has start_s, due_s, closed_s, warmup, session, turn, priority, lora_id,
    preemptions, chunks, counted, cached_tokens and resent, and slo_*_ms where requests bring limits of their own."""
    start_s: float
    failures: tuple[tuple[int, str], ...]
    """(request, reason) of those that failed, in workload order."""
    stalled: bool
    """The target fell silent: more than half of the requests, or those sent after one that was given up, had no answer."""
    sent_tokens: npt.NDArray[np.int64]
    """[n] tokens of each prompt by the workload; 0 where it is text. The log has the target's own count where it reports one."""
    concurrency: int = 0
    """The bound on requests in flight; 0 for none."""
    standstills: tuple[Standstill, ...] = ()
    """When the driver's thread, or the target's client thread, should have run and did not, in order."""

    @property
    def measured(self) -> RequestLog:
        """The log without warm-up."""
        warmup = self.log.columns["warmup"]
        return self.log.select(~warmup) if warmup.any() else self.log

    @property
    def own_slo_ms(self) -> dict[str, FloatArray]:
        """Limits that the measured requests bring themselves, [n] each, infinite where a request has none; empty when none has any."""
        columns = self.measured.columns
        own = {name: columns[f"slo_{name}_ms"] for name in SLO_NAMES if f"slo_{name}_ms" in columns}
        return {name: np.where(np.isnan(limits), np.inf, limits) for name, limits in own.items()}


def run_load(
    requests: Sequence[RequestSpec],
    target: Target,
    drive: Drive,
    clock: Clock | None = None,
    on_requests: Callable[[int], None] | None = None,
    gpus: int = 1,
) -> LoadResult:
    """Sends every request and waits for every outcome. `on_requests` is told the number ended, at most ten times a second.

    An exception of the target's `submit` fails that request; KeyboardInterrupt stops the target and passes on.
    """
    clock = clock or RealClock()
    with _undisturbed():
        target.prepare(requests)
        target.start(clock.deliver)
        try:
            run = _Run(requests, target, drive, clock, on_requests)
            run.loop()
        finally:
            target.stop()
    return run.result(gpus, target.standstills())


@contextmanager
def _undisturbed() -> Iterator[None]:
    collecting, interval = gc.isenabled(), sys.getswitchinterval()
    gc.collect(1)  # what the run before left is young: nothing was collected meanwhile; the whole heap (torch's) takes a second
    gc.disable()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)
        if collecting:
            gc.enable()


class _Run:
    def __init__(
        self, requests: Sequence[RequestSpec], target: Target, drive: Drive, clock: Clock, on_requests: Callable[[int], None] | None
    ) -> None:
        self.requests, self.target, self.drive, self.clock = requests, target, drive, clock
        self._on_requests = on_requests
        n = len(requests)
        self._place = {request.id: place for place, request in enumerate(requests)}
        self._due: list[float] = [float("nan")] * n
        self._intended: list[float] = [float("nan")] * n
        self._sent: list[float] = [float("nan")] * n
        self._outcomes: list[RequestOutcome | None] = [None] * n
        self._ended = self._in_flight = 0
        self._deadlines: list[tuple[float, int]] = []
        self._silent = 0
        self._silent_since = math.inf
        """When a request was first given up as silent, with nothing heard of any other since."""
        self._stalled = False
        self._last_intended_s = -math.inf
        self._standstills: list[Standstill] = []
        self._told_s = 0.0
        self.start_s = clock.now() + START_DELAY_S
        self._pacer = Pacer(requests, self.start_s, drive.concurrency, drive.open_loop)

    def loop(self) -> None:
        clock, pacer = self.clock, self._pacer
        n = len(self.requests)
        self._awake_s = clock.now()
        while self._ended < n:
            now = clock.now()
            due = pacer.next_due()
            if due <= now:
                self._send()
                # Outcomes between two sends, so that a burst does not starve them, but never waiting for one.
                outcome = clock.poll()
                self._beat(now)
            else:
                until = min(due, self._deadlines[0][0] if self._deadlines else math.inf, now + BEAT_S)
                outcome = clock.wait(until)
                self._beat(until)
            while outcome is not None:
                self._end(outcome)
                self._silent_since = math.inf
                outcome = clock.poll() if pacer.next_due() > clock.now() else None
            self._give_up_overdue()
            self._give_up_tail()
            self._tell()
        self._stalled |= 2 * self._silent > n
        self._tell(last=True)

    def _beat(self, expected_s: float) -> None:
        """The thread runs, and should have by `expected_s`, or since it last did."""
        now, since = self.clock.now(), max(self._awake_s, expected_s)
        if now - since > STANDSTILL_S:
            self._standstills.append((since, now))
        self._awake_s = now

    def _send(self) -> None:
        due = self._pacer.take()
        request = self.requests[due.id]
        self._due[due.id], self._intended[due.id] = due.due_s, due.intended_s
        self._last_intended_s = max(self._last_intended_s, due.intended_s)
        self._sent[due.id] = sent_s = self.clock.now()
        self._in_flight += 1
        heapq.heappush(self._deadlines, (sent_s + min(self.drive.stall_s, self.drive.request_limit_s), due.id))
        try:
            self.target.submit(request, due.intended_s)
        except Exception as error:
            reason = str(error) if isinstance(error, user_errors()) else f"{type(error).__name__}: {error}"
            self._end(RequestOutcome(request.id, self.clock.now(), 0, error=reason))

    def _end(self, outcome: RequestOutcome) -> None:
        place = self._place.get(outcome.id, -1)
        if place < 0 or self._outcomes[place] is not None:
            return
        self._outcomes[place] = outcome
        self._ended += 1
        self._in_flight -= 1
        for lost in self._pacer.ended(place, outcome.free_s, not outcome.error):
            why = "not sent: an earlier turn of its session failed"
            self._outcomes[lost] = RequestOutcome(self.requests[lost].id, float("nan"), 0, error=why)
            self._ended += 1

    def _give_up_overdue(self) -> None:
        """Fails each request whose time is up, by itself; tokens put the end of its patience off."""
        now = self.clock.now()
        while self._deadlines and self._deadlines[0][0] <= now:
            _, place = heapq.heappop(self._deadlines)
            if self._outcomes[place] is not None:
                continue
            sent_s, heard_s = self._sent[place], self.target.heard_s(self.requests[place].id)
            silent_at = max(sent_s, sent_s if math.isnan(heard_s) else heard_s) + self.drive.stall_s
            limit_at = sent_s + self.drive.request_limit_s
            if min(silent_at, limit_at) > now:
                heapq.heappush(self._deadlines, (min(silent_at, limit_at), place))
            elif limit_at <= now:
                self._give_up(place, f"given up: it took longer than its limit of {self.drive.request_limit_s:g} s")
            else:
                self._fall_silent(place, math.isnan(heard_s))

    def _give_up_tail(self) -> None:
        all_sent = self._ended + self._in_flight == len(self.requests)
        if all_sent and self.clock.now() > self._last_intended_s + self.drive.tail_s:
            for place in range(len(self.requests)):
                self._give_up(place, TOO_LATE)

    def _fall_silent(self, place: int, unheard: bool) -> None:
        open_places = [other for other, outcome in enumerate(self._outcomes) if outcome is None and not math.isnan(self._sent[other])]
        if any(self.target.heard_s(self.requests[other].id) > self._silent_since for other in open_places):
            self._silent_since = math.inf
        lost_target = self._sent[place] >= self._silent_since
        self._silent += 1
        self._silent_since = min(self._silent_since, self.clock.now())
        why = f"nothing moved for {self.drive.stall_s:g} s"
        self._give_up(place, f"no answer: {why}" if unheard else f"the answer broke off: {why} after its last token")
        if lost_target:
            self._stalled = True
            for other in open_places:
                self._give_up(other, f"no answer: {why}")
            for other, outcome in enumerate(self._outcomes):
                if outcome is None:
                    self._outcomes[other] = RequestOutcome(self.requests[other].id, math.nan, 0, error="not sent: the run stalled")
                    self._ended += 1

    def _give_up(self, place: int, why: str) -> None:
        if self._outcomes[place] is None:
            number = self.requests[place].id
            self.target.cancel(number)
            self._end(RequestOutcome(number, math.nan, 0, error=why, closed_s=self.clock.now()))

    def _tell(self, last: bool = False) -> None:
        if self._on_requests is not None and (last or self.clock.now() - self._told_s >= PROGRESS_S):
            self._told_s = self.clock.now()
            self._on_requests(self._ended)

    def result(self, gpus: int, of_target: Sequence[Standstill] = ()) -> LoadResult:
        outcomes = [outcome for outcome in self._outcomes if outcome is not None]
        assert len(outcomes) == len(self.requests)
        ok = np.asarray([not outcome.error for outcome in outcomes])
        counts = [len(outcome.token_times_s) for outcome in outcomes]
        times = np.concatenate([outcome.token_times_s for outcome in outcomes]) if sum(counts) else np.empty(0)
        first = [float(outcome.token_times_s[0]) if len(outcome.token_times_s) else float("nan") for outcome in outcomes]
        intended = np.asarray(self._intended)
        warmup = np.arange(len(outcomes)) < self.drive.warmup_requests
        if self.drive.warmup_s > 0:
            warmup |= intended < self.start_s + self.drive.warmup_s
        stamped = np.asarray([outcome.sent_s for outcome in outcomes])
        columns = {
            "start_s": np.full(len(outcomes), self.start_s),
            "due_s": np.asarray(self._due),
            "closed_s": np.asarray([outcome.free_s for outcome in outcomes]),
            "warmup": warmup,
            "preemptions": np.asarray([outcome.preemptions for outcome in outcomes]),
            "chunks": np.asarray([outcome.chunks for outcome in outcomes], dtype=np.int64),
            "counted": np.asarray([outcome.counted for outcome in outcomes]),
            "cached_tokens": np.asarray([outcome.cached_tokens for outcome in outcomes], dtype=np.int64),
            "resent": np.asarray([outcome.resent for outcome in outcomes]),
            **{
                name: np.asarray([getattr(request, name) for request in self.requests])
                for name in ("session", "turn", "priority", "lora_id")
            },
        }
        limits = np.asarray([request.slo_ms for request in self.requests], dtype=np.float64)
        for place, name in enumerate(SLO_NAMES):
            if np.isfinite(limits[:, place]).any():
                columns[f"slo_{name}_ms"] = limits[:, place]
        inputs = [outcome.input_tokens if outcome.input_tokens >= 0 else request.input_tokens for outcome, request in self._pairs(outcomes)]
        # An unsent request has no intended time in a closed loop; it did not happen at the start of the run.
        log = RequestLog(
            intended_s=np.where(np.isnan(intended), self.clock.now(), intended),
            sent_s=np.where(np.isnan(stamped), np.asarray(self._sent), stamped),
            first_token_s=np.asarray(first),
            end_s=np.asarray([outcome.end_s for outcome in outcomes]),
            input_tokens=np.asarray(inputs, dtype=np.int64),
            output_tokens=np.asarray([outcome.output_tokens for outcome in outcomes], dtype=np.int64),
            ok=ok,
            requested_tokens=np.asarray([request.output_tokens for request in self.requests], dtype=np.int64),
            scheduled_s=np.asarray([outcome.scheduled_s for outcome in outcomes]),
            token_times_s=times,
            token_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            gpus=gpus,
            columns=columns,
        )
        failures = tuple((request.id, outcome.error) for outcome, request in self._pairs(outcomes) if outcome.error)
        sent_tokens = np.asarray([request.input_tokens for request in self.requests], dtype=np.int64)
        standstills = tuple(sorted((*self._standstills, *of_target)))
        return LoadResult(log, self.start_s, failures, self._stalled, sent_tokens, self.drive.concurrency, standstills)

    def _pairs(self, outcomes: list[RequestOutcome]) -> Iterator[tuple[RequestOutcome, RequestSpec]]:
        return zip(outcomes, self.requests, strict=True)
