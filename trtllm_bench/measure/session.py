"""One measurement: what is asked of a target that is ready (`Session`), and what comes back (`Measurement`).

Every command that measures does so through this seam, and so does the scripted session of the tests. What all targets share is in
`TargetSession`: warm-up as a run of its own (nothing of it is in the log), telemetry, figures from the log, and the reasons to distrust
them.

No prompt is measured twice: warm-up has prompts of its own, and each measurement of a session after the first, and every one of a server,
draws random prompts anew (what they share with each other on purpose stays shared). A workload's hash is that of the workload as given.

A session outlives a cell, because loading an engine costs more than many cells do; after a cell has failed it is told to `recover`,
since a device that ran out of memory is not to be trusted with the next one before it was emptied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from trtllm_bench.errors import RunFailure
from trtllm_bench.load.driver import TOO_LATE, Drive, run_load
from trtllm_bench.measure.validity import commonest_failures, told_failures, verdict
from trtllm_bench.spec.measurement import EngineSpec, MeasurementSpec
from trtllm_bench.targets.registry import Identity, OnBuild, OpenTarget, target_kind
from trtllm_bench.telemetry import Telemetry
from trtllm_results.metrics.requests import RequestLog, figures
from trtllm_workloads.request import Workload

OnRequests = Callable[[int], None]
"""Called with the number of requests finished so far."""
WARMUP_TOKENS = 16
"""Most output tokens of a warm-up request: prefill and decode at the cell's batch are met, and no more time is spent."""


class TooLateError(RunFailure):
    """Not one request of a run, which took `took_s`, ended in time to meet its limits."""

    def __init__(self, message: str, took_s: float) -> None:
        super().__init__(message)
        self.took_s = took_s


def took_s(log: RequestLog) -> float:
    """Seconds from the start of a driven run until its last request had ended or was given up."""
    return float(np.nanmax(log.columns["closed_s"]) - np.nanmin(log.columns["start_s"]))


@dataclass(frozen=True)
class Measurement:
    figures: Mapping[str, float]
    log: RequestLog
    steps: Mapping[str, Any] = field(default_factory=dict)
    """Columns, one entry per engine step, where the target knows its steps."""
    samples: Mapping[str, Any] = field(default_factory=dict)
    """Columns of telemetry samples, where there is telemetry."""
    by_gpu: Sequence[Mapping[str, float]] = ()
    """Clocks, energy, heat and memory of each GPU, where several took part."""
    no_telemetry: str = ""
    """Why there is none, one sentence; empty where there is."""
    warnings: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    """Those of the warnings that tell of failed requests."""
    void: str = ""
    """Why the figures must not be used, one sentence; empty when they may."""


class Session(Protocol):
    """A target, ready for any cell that its engine can serve."""

    def identity(self) -> Identity:
        """Builds what has to be built. Raises the components' user errors."""

    def ready(self) -> None:
        """Loads what `measure` needs, so that a cell's time is its own. Called after `identity`; cheap when it is ready."""

    def measure(self, workload: Workload, spec: MeasurementSpec, on_requests: OnRequests) -> Measurement: ...

    def recover(self) -> None:
        """Gives everything back after a failed measurement; the next one starts afresh."""

    def close(self) -> None: ...


class TargetSession:
    """A session over any target."""

    def __init__(self, target: OpenTarget) -> None:
        self.target = target
        self._measurements = 0
        self._engine: EngineSpec | None = None
        self.ready, self.recover, self.close = target.ready, target.recover, target.close

    def identity(self) -> Identity:
        identity = self.target.identity()
        self._engine = identity.engine
        return identity

    def measure(self, workload: Workload, spec: MeasurementSpec, on_requests: OnRequests) -> Measurement:
        """Warms up, sends the workload under telemetry, and says whether what came back may be believed.

        Raises `RunFailure` when nothing succeeded, `BenchError` when the workload does not fit the target.
        """
        driven, engine = self.target.serve(workload), self._engine or spec.engine
        load, open_loop = spec.load, spec.workload.open_loop
        salt, self._measurements = self.target.salt + self._measurements, self._measurements + 1
        workload = workload.reseeded(salt) if salt else workload
        limit_s = load.request_timeout or math.inf
        drive = Drive(load.concurrency, open_loop, load.stall_timeout, limit_s, tail_s=load.tail_s, warmup_s=load.warmup_seconds)
        cold: list[str] = []
        if load.warmup:
            first = workload.for_warmup(load.warmup)
            short = replace(first, output_tokens=np.minimum(first.output_tokens, WARMUP_TOKENS))
            warmed = run_load(short.requests(), driven, replace(drive, open_loop=False, tail_s=math.inf, warmup_s=0.0))
            if warmed.failures:
                cold = [f"{len(warmed.failures)} of {len(warmed.log)} warm-up requests failed: {commonest_failures(warmed)}"]
        requests = workload.requests()
        with Telemetry(self.target.gpus, hosts=spec.engine.nnodes or 1) as telemetry:
            result = run_load(requests, driven, drive, on_requests=on_requests, gpus=engine.gpus)
        log = result.measured
        if not len(log):
            raise RunFailure(
                f"all {len(requests):,} requests were due within the first {load.warmup_seconds:g} s, which --warmup-seconds leaves out; "
                "send more, or leave out less"
            )
        if not log.ok.any() and all(reason == TOO_LATE for _, reason in result.failures):
            raise TooLateError(f"every request was {TOO_LATE}", took_s(log))
        if not log.ok.any():
            raise RunFailure(f"every request failed: {commonest_failures(result)}")
        judged = verdict(result, open_loop, load.max_lag_ms, workload.shares_prefixes)
        window = (judged.window.start_s, judged.window.end_s) if judged.window is not None else None
        known = figures(log, load.slo_ms or result.own_slo_ms or None, window=window)
        samples = telemetry.stop()
        span = (float(log.intended_s.min()), float(np.nanmax(log.end_s)))
        details = self.target.details(log)
        known |= {**samples.figures(*span, known.get("output_tokens", 0.0)), **details.figures}
        return Measurement(
            known,
            log,
            steps=details.steps,
            samples=samples.columns(),
            by_gpu=samples.by_gpu(*span),
            no_telemetry=samples.absent,
            warnings=(*judged.warnings, *cold, *samples.suspicions(*span), *details.warnings),
            failures=tuple(told_failures(result)),
            void=judged.void,
        )


def open_session(spec: MeasurementSpec, on_build: OnBuild | None = None) -> TargetSession:
    """Nothing is built or loaded until the session is asked for its identity or a measurement; `on_build` then sees it."""
    return TargetSession(target_kind(spec.target).open(spec, on_build))
