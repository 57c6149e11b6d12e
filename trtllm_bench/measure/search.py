"""The saturation search over real sessions: makes each probe's workload, measures it, and tells the story.

A probe's first tenth is ramp-up and does not count: it meets an empty server. Overload shows only once a queue has had time to grow, so a
probe lasts at least `duration_s` of arrivals and has at least as many requests as could decide it. Few long runs tell more than many short
ones, since each pays for its ramp-up. A run that the driver's own lag voids is made again, a few times; one bad moment of this machine must
not end a long search, nor count.

A load far too high shows at once, and would take minutes to be served to its end. So a run ends when all that is still open has missed its
limits, which changes nothing for those that can meet them, and requests sent one at a time are first a few, which is enough where they miss
the limits by far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from trtllm_bench import interrupts
from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.load.control_variate import Run
from trtllm_bench.load.saturation import MAX_STEPS, RAMP_UP, Probe, Saturation, Search, find_saturation, verdict
from trtllm_bench.measure.place import open_store
from trtllm_bench.measure.prepare import check_server_flags, misfit, sized, with_model
from trtllm_bench.measure.report import check_report, write_json
from trtllm_bench.measure.rows import RowMaker, cell_of, keep
from trtllm_bench.measure.session import Measurement, Session, TooLateError, open_session, took_s
from trtllm_bench.measure.workload import notes_of, workload_of
from trtllm_bench.spec.measurement import MeasurementSpec
from trtllm_bench.targets.registry import target_kind
from trtllm_dashboards.tables import plain_console, sentence
from trtllm_results.metrics.requests import goodput_mask
from trtllm_results.record.row import Row
from trtllm_workloads.request import Workload

VOID_RUNS = 3
FEW = 24
"""Requests, one at a time, of a first look."""
LATE_S = 1.0
"""Beyond the time that a good request may take, until what is open is given up."""
USUAL_RUNS = MAX_STEPS // 2
"""Beside the limit, in a search that takes them all."""


@dataclass(frozen=True)
class Settings:
    spec: MeasurementSpec
    """What each probe measures, at a load of its own."""
    search: Search
    by_rate: bool
    start: float
    duration_s: float
    report_json: Path | None = None
    out: str | None = None

    @property
    def unit(self) -> str:
        return "requests/s" if self.by_rate else "at a time"

    def probe(self, load: float, run: int, requests: int | None = None) -> MeasurementSpec:
        """The measurement at this load, of as many requests as can decide it unless they are given; each run has prompts and arrivals of
        its own, so that pooled runs are independent."""
        spec, by_rate = self.spec, self.by_rate and load > 0
        asked = replace(
            spec.workload,
            num_requests=_requests(self, load) if requests is None else requests,
            request_rate=load if by_rate else 0.0,
            burstiness=self.search.burstiness if by_rate else 1.0,
            seed=spec.workload.seed + run,
        )
        bounded = replace(spec.load, concurrency=0 if by_rate else max(1, int(load)))
        return replace(spec, workload=asked, load=bounded)


def run(settings: Settings) -> Saturation:
    """Searches, prints each probe and the answer. Raises the components' errors."""
    console = plain_console()
    check_report(settings.report_json)
    _check_time(settings)
    check_server_flags(settings.spec)
    spec = with_model(settings.spec)
    target_kind(spec.target).check(spec)
    settings = replace(settings, spec=spec)
    probe = settings.probe(1.0, 0)
    workload = workload_of(probe)
    if reason := misfit(spec, workload.longest_sequence):
        raise BenchError(reason)
    spec = replace(spec, engine=sized(spec.engine, 0, workload.longest_sequence))
    for note in notes_of(replace(probe.workload, num_requests=None), workload):
        sentence(console, f"note: {note}", "yellow")
    settings = replace(settings, spec=spec)
    session = open_session(spec)
    try:
        prober = _Prober(settings, session)
        limits = ", ".join(f"{name} {limit:g} ms" for name, limit in spec.load.slo_ms.items())
        least = _requests(settings, 0)
        console.print(f"{limits} for {settings.search.attainment:.0%} of requests, at least {least:,} a run; {settings.unit}:")
        with interrupts.keeping(prober.kept):
            result = find_saturation(
                prober.measure,
                settings.start,
                settings.search,
                lambda probe: _print_probe(console, settings, probe),
                lambda load: _requests(settings, load),
            )
    finally:
        session.close()
    if settings.report_json is not None:
        write_json(report(settings, result), settings.report_json)
    prober.finish()
    if prober.failures:
        load, told = prober.failures[0]
        runs = f"{len(prober.failures)} runs had failed requests, the first" if len(prober.failures) > 1 else "the run"
        sentence(console, f"note: {runs} at {load:.4g} {settings.unit}: {told}", "yellow")
    console.print()
    sentence(console, answer(settings, result))
    return result


def _check_time(settings: Settings) -> None:
    """Raises `BenchError` where not even the first run of a search by rate fits in its time."""
    budget_s, load = settings.search.budget_s, settings.start
    requests = _requests(settings, load)
    if budget_s is None or not settings.by_rate or requests / load <= budget_s:
        return
    least = requests_to_decide(settings.search)
    shorter = load * settings.duration_s > least
    cure = (
        f"a --duration such as {budget_s / USUAL_RUNS:.2g}"
        if shorter
        else f"a higher --start, such as {math.ceil(least * USUAL_RUNS / budget_s)}"
    )
    raise BenchError(
        f"--max-seconds is {budget_s:g} and the first run takes {requests / load:.3g} s ({requests:,} requests at {load:.4g} requests/s); "
        f"give more seconds, or {cure}, so that several runs fit"
    )


def longest_good_s(slo_ms: Mapping[str, float], output_tokens: int) -> float:
    """Seconds from its intended time in which a request of so many tokens has ended, if it meets the limits; infinite where they do not
    say."""
    by_tokens = slo_ms["ttft"] + slo_ms["tpot"] * (output_tokens - 1) if {"ttft", "tpot"} <= set(slo_ms) else math.inf
    return min(slo_ms.get("e2e", math.inf), by_tokens) / 1e3


def missed(workload: Workload) -> Run:
    """A run in which no request met its limits. A later turn of a conversation, which has no time of its own, counts as one of the last."""
    times = workload.arrival_s if len(workload.arrival_s) else np.zeros(len(workload))
    bad = np.zeros(len(workload) - int(len(workload) * RAMP_UP), dtype=bool)
    return Run(bad, np.sort(np.nan_to_num(times, nan=np.nanmax(times))))


def requests_to_decide(search: Search) -> int:
    """Fewest requests of a probe, its ramp-up included."""
    return math.ceil(search.least_requests() / (1 - RAMP_UP)) + 1


def _requests(settings: Settings, load: float) -> int:
    """Requests of a probe."""
    least = requests_to_decide(settings.search)
    if settings.by_rate:
        return max(least, math.ceil(load * settings.duration_s))
    return max(least, 4 * int(load))


class _Prober:
    """Runs probes."""

    def __init__(self, settings: Settings, session: Session) -> None:
        self._settings, self._session, self._identity = settings, session, session.identity()
        self._runs = self._kept = 0
        self._took_s = 0.0
        """All runs so far, each with its warm-up and to its last answer. The driver's clock counts too, as that of a test runs ahead."""
        self.failures: list[tuple[float, str]] = []
        """(load, how many requests failed and why) of each run that had any."""
        self._rows = RowMaker.here(settings.spec)
        self._store = open_store(settings.out) if settings.out is not None else None

    def measure(self, load: float) -> Run:
        """A run that counts, and how long it and those that were void took. Raises `RunFailure` when `VOID_RUNS` in a row were void."""
        before_s = self._took_s
        run = self._first_few_or_all(load)
        return replace(run, took_s=self._took_s - before_s)

    def _first_few_or_all(self, load: float) -> Run:
        """A run at `load`; of requests sent one at a time only the first few, where these decide or all would not fit in the time."""
        needed = _requests(self._settings, load)
        if load or needed <= FEW:
            return self._counting(load, None)
        few, before_s = Probe(load), self._took_s
        few.add(first := self._counting(load, FEW))
        all_s = (self._took_s - before_s) / FEW * needed
        fits = self._took_s + all_s <= (self._settings.search.budget_s or math.inf)
        return self._counting(load, None) if fits and verdict(few, self._settings.search) != "fail" else first

    def _counting(self, load: float, requests: int | None) -> Run:
        void = ""
        for _ in range(VOID_RUNS):
            measurement, workload = self._measure(load, requests)
            if measurement is None:
                return missed(workload)
            if not measurement.void:
                log = measurement.log
                order = np.argsort(log.intended_s, kind="stable")
                good = goodput_mask(log, self._settings.spec.load.slo_ms)[order][int(len(log) * RAMP_UP) :]
                return Run(good, log.intended_s[order] - log.intended_s.min())
            void = measurement.void
        raise RunFailure(f"at {load:.4g} {self._settings.unit}: {void}")

    def _measure(self, load: float, requests: int | None) -> tuple[Measurement | None, Workload]:
        """What came back, or None where no request ended in time to meet the limits, and what was sent."""
        spec = self._settings.probe(load, self._runs, requests).with_defaults(0, 0)
        self._runs += 1
        workload = workload_of(spec)
        spec = replace(spec, load=replace(spec.load, tail_s=longest_good_s(spec.load.slo_ms, int(workload.output_tokens.max())) + LATE_S))
        needed = spec.workload.num_requests
        if needed is not None and len(workload) < needed:
            raise BenchError(
                f"the dataset has {len(workload)} requests and a run at {load:.4g} {self._settings.unit} needs {needed}; "
                "give a longer one, a workload .toml that makes as many as asked, a shorter --duration, or a lower --attainment"
            )
        cell = cell_of(spec, self._identity, workload)
        began_s = time.perf_counter()
        try:
            measurement = self._session.measure(workload, spec, lambda done: None)
        except TooLateError as error:
            self._took_s += max(error.took_s, time.perf_counter() - began_s)
            self._keep(self._rows.failed(spec, cell, 0, error), None)
            return None, workload
        self._took_s += max(took_s(measurement.log), time.perf_counter() - began_s)
        self.failures += [(load, told) for told in measurement.failures]
        self._keep(self._rows.measured(spec, cell, 0, measurement), measurement)
        return measurement, workload

    def _keep(self, row: Row, measurement: Measurement | None) -> None:
        if self._store is not None:
            keep(self._store, row, measurement)
            self._kept += 1

    def kept(self) -> str:
        """What is kept of a search that ends early; empty for nothing."""
        if self._store is None or not self._kept:
            return ""
        runs = "1 run is" if self._kept == 1 else f"{self._kept} runs are"
        return f"{runs} kept in {self._store.place}; run the command again, with a --start near the limit"

    def finish(self) -> None:
        if self._store is not None:
            self._store.finish()


def _print_probe(console: Console, settings: Settings, probe: Probe) -> None:
    low, high = probe.interval(settings.search.z)
    counted = sum(map(len, probe.runs))
    style = {"pass": "green", "fail": "red", "undecided": "yellow"}[probe.verdict]
    console.print(
        f"  {f'{probe.load:.4g}' if probe.load else 'alone':>9}  good {probe.share:>6.1%} of {counted:>6,}  [{low:.1%}, {high:.1%}]".ljust(
            60
        )
        + f"  {probe.verdict}",
        style=style,
        markup=False,
    )


def answer(settings: Settings, result: Saturation) -> str:
    """The result as a sentence."""
    what = "request rate" if settings.by_rate else "concurrency"
    sure = f"with {result.confidence:.0%} confidence"
    spent = f"; --max-seconds {settings.search.budget_s:g} was over before" if result.cut and settings.search.budget_s is not None else ""
    if result.failed == 0:
        return f"no {what} meets these limits: requests sent one at a time miss them, {sure}"
    if result.passed == 0:
        lowest = min(probe.load for probe in result.probes if probe.load)
        sooner = spent and f"{spent} one met them; give more, or a lower --start"
        return f"no {what} tried meets these limits; the lowest tried was {lowest:.4g} {settings.unit}{sooner}"
    if math.isinf(result.failed):
        sooner = spent and f"{spent} one missed them; give more, or a higher --start"
        return f"every {what} tried meets these limits, up to {result.passed:.4g} {settings.unit}{sooner}"
    between = f"the highest {what} that meets these limits lies between {result.passed:.4g} and {result.failed:.4g} {settings.unit}, {sure}"
    if result.reached:
        return between
    width, asked = result.failed / result.passed - 1, settings.search.tolerance
    return f"{between}; the tolerance of {asked:.0%} was not reached: the interval is {width:.0%} wide{_more(settings, result)}"


def _more(settings: Settings, result: Saturation) -> str:
    """What would narrow it."""
    if not settings.by_rate:
        return "; give more --max-seconds" if result.cut else "; give more --repeats"
    if result.needed_s is None:
        return "; give --max-seconds more, or runs a longer --duration"
    seconds = math.ceil(float(f"{result.needed_s:.2g}") / 10) * 10
    longer = f" --duration {seconds / USUAL_RUNS:.0f}" if seconds > USUAL_RUNS * settings.duration_s else ""
    return f"; --max-seconds {seconds}{longer} would likely reach it"


def report(settings: Settings, result: Saturation) -> dict[str, Any]:
    z = settings.search.z
    probes = [
        {
            "load": p.load,
            "verdict": p.verdict,
            "good": p.share,
            "interval": p.interval(z),
            "requests": sum(map(len, p.runs)),
            "runs": len(p.runs),
        }
        for p in result.probes
    ]
    return {
        "by": "rate" if settings.by_rate else "concurrency",
        "slo_ms": settings.spec.load.slo_ms,
        "search": {name: value for name, value in asdict(settings.search).items() if value not in (math.inf, None)},
        "passed": result.passed,
        "failed": None if math.isinf(result.failed) else result.failed,
        "confidence": result.confidence,
        "reached": result.reached,
        "needed_s": result.needed_s,
        "probes": probes,
        "answer": answer(settings, result),
    }
