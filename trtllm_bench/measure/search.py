"""The saturation search over real sessions: makes each probe's workload, measures it, and tells the story.

A probe's first tenth is ramp-up and does not count: it meets an empty server. Overload shows only once a queue has had time to grow, so a
probe lasts at least `duration_s` of arrivals and has at least as many requests as could decide it. A run that the driver's own lag voids is
made again, a few times; one bad moment of this machine must not end a long search, nor count.
"""

from __future__ import annotations

import json
import math
import sys
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.load.saturation import Good, Probe, Saturation, Search, find_saturation
from trtllm_bench.measure.rows import RowMaker, cell_of, keep
from trtllm_bench.measure.session import Identity, Load, Measurement, Session
from trtllm_bench.measure.spec import (
    EngineWish,
    WorkloadWish,
    check_target,
    longest,
    make_workload,
    mean_lengths,
    open_session,
    runs_on_gpu,
    vocabulary_of,
)
from trtllm_results.metrics.requests import goodput_mask
from trtllm_results.record.environment import Environment
from trtllm_results.store.table import Store

RAMP_UP = 0.1
VOID_RUNS = 3


@dataclass(frozen=True)
class Settings:
    target: str
    engine: EngineWish
    workload: WorkloadWish
    search: Search
    slo_ms: Mapping[str, float]
    by_rate: bool
    start: float
    duration_s: float
    warmup: int
    max_lag_ms: float
    report_json: Path | None = None
    out: Path | None = None

    @property
    def unit(self) -> str:
        return "requests/s" if self.by_rate else "at a time"


def run(settings: Settings) -> Saturation:
    """Searches, prints each probe and the answer. Raises the components' errors."""
    console = Console(highlight=False)
    check_target(settings.target, settings.engine)
    vocabulary = vocabulary_of(settings.target, settings.engine)
    engine = settings.engine
    if engine.max_seq_len is None and engine.engine_dir is None:
        engine = replace(
            engine, max_seq_len=longest(make_workload(replace(settings.workload, requests=_requests(settings, 1.0)), vocabulary))
        )
    session = open_session(settings.target, engine)
    try:
        prober = _Prober(settings, engine, session, session.identity(), vocabulary)
        limits = ", ".join(f"{name} {limit:g} ms" for name, limit in settings.slo_ms.items())
        least = _requests(settings, 0)
        console.print(f"{limits} for {settings.search.attainment:.0%} of requests, at least {least:,} a run; {settings.unit}:")
        found = find_saturation(prober.measure, settings.start, settings.search, lambda probe: _tell(console, settings, probe))
    finally:
        session.close()
    console.print()
    console.print(answer(settings, found), soft_wrap=True)
    if settings.report_json is not None:
        settings.report_json.write_text(json.dumps(report(settings, found), indent=2) + "\n")
    return found


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
    """Runs probes; every run of the search has prompts and arrivals of its own, so that pooled runs are independent."""

    def __init__(self, settings: Settings, engine: EngineWish, session: Session, identity: Identity, vocabulary: int) -> None:
        self._settings, self._engine, self._session, self._identity, self._vocabulary = settings, engine, session, identity, vocabulary
        self._runs = 0
        environment = Environment.capture(use_gpu=runs_on_gpu(settings.target, engine.device))
        self._rows = RowMaker(environment, uuid.uuid4().hex[:12], " ".join(["trtllm-bench", *sys.argv[1:]]))
        self._store = Store(settings.out) if settings.out is not None else None

    def measure(self, load: float) -> Good:
        """A run that counts. Raises `RunFailure` when `VOID_RUNS` in a row were void."""
        void = ""
        for _ in range(VOID_RUNS):
            measurement = self._measure(load)
            if not measurement.void:
                log = measurement.log
                order = np.argsort(log.intended_s, kind="stable")
                return goodput_mask(log, self._settings.slo_ms)[order][int(len(log) * RAMP_UP) :]
            void = measurement.void
        raise RunFailure(f"at {load:.4g} {self._settings.unit}: {void}")

    def _measure(self, load: float) -> Measurement:
        settings = self._settings
        rate = load if settings.by_rate else 0.0
        wish = replace(settings.workload, requests=_requests(settings, load), request_rate=rate, seed=settings.workload.seed + self._runs)
        self._runs += 1
        workload = make_workload(wish, self._vocabulary)
        if wish.requests is not None and len(workload) < wish.requests:
            raise BenchError(
                f"the dataset has {len(workload)} requests and a run at {load:.4g} {settings.unit} needs {wish.requests}; "
                "give a longer one, a workload .toml that makes as many as asked, a shorter --duration, or a lower --attainment"
            )
        how = Load(
            concurrency=0 if rate else max(1, int(load)),
            open_loop=rate > 0,
            warmup=settings.warmup,
            slo_ms=settings.slo_ms,
            max_lag_ms=settings.max_lag_ms,
        )
        measurement = self._session.measure(workload, how, lambda done: None)
        if self._store is not None:
            isl, osl = mean_lengths(workload)
            model, precision = self._identity.model or self._engine.model or "", self._identity.precision or self._engine.precision or ""
            cell = cell_of(
                model,
                precision,
                self._identity,
                workload,
                batch=how.concurrency,
                isl=isl,
                osl=osl,
                request_rate=rate,
                settings={"search": 1},
            )
            keep(self._store, self._rows.measured(cell, 0, measurement), measurement)
        return measurement


def _tell(console: Console, settings: Settings, probe: Probe) -> None:
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


def answer(settings: Settings, found: Saturation) -> str:
    """The result as a sentence."""
    what = "request rate" if settings.by_rate else "concurrency"
    sure = f"with {found.confidence:.0%} confidence"
    if found.failed == 0:
        return f"no {what} meets these limits: requests sent one at a time miss them, {sure}"
    if found.passed == 0:
        lowest = min(probe.load for probe in found.probes if probe.load)
        return f"no {what} tried meets these limits; the lowest tried was {lowest:.4g} {settings.unit}"
    if math.isinf(found.failed):
        return f"every {what} tried meets these limits, up to {found.passed:.4g} {settings.unit}"
    return f"the highest {what} that meets these limits lies between {found.passed:.4g} and {found.failed:.4g} {settings.unit}, {sure}"


def report(settings: Settings, found: Saturation) -> dict[str, Any]:
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
        for p in found.probes
    ]
    return {
        "by": "rate" if settings.by_rate else "concurrency",
        "slo_ms": dict(settings.slo_ms),
        "search": {name: value for name, value in asdict(settings.search).items() if value != math.inf},
        "passed": found.passed,
        "failed": None if math.isinf(found.failed) else found.failed,
        "confidence": found.confidence,
        "probes": probes,
        "answer": answer(settings, found),
    }
