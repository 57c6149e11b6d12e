"""Sessions over the load driver: any target it can drive, made ready, measured, given back.

What every target shares is here: warm-up as a run of its own (nothing of it is in the log), figures from the log, and the reasons to
distrust them. What only our engine has (building, loading, step records) is in `native.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from trtllm_bench.errors import RunFailure
from trtllm_bench.load.driver import Drive, run_load
from trtllm_bench.load.target import Target
from trtllm_bench.measure.session import Identity, Load, Measurement, OnRequests
from trtllm_bench.measure.telemetry import Telemetry
from trtllm_bench.measure.validity import commonest_failure, judge
from trtllm_bench.targets.http import HttpTarget
from trtllm_bench.targets.scripted import NullTarget, Script, ScriptedTarget
from trtllm_results.metrics.requests import figures
from trtllm_workloads.request import Workload

WARMUP_TOKENS = 16
"""Most output tokens of a warm-up request: prefill and decode at the cell's batch are met, and no more time is spent."""


@dataclass
class DrivenSession:
    """A session over one target object that needs no preparation."""

    target: Target
    name: str
    version: str = "1"
    settings: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""
    precision: str = ""

    def identity(self) -> Identity:
        return Identity(self.name, self.version, model=self.model, precision=self.precision, settings=self.settings)

    def ready(self) -> None:
        pass

    def measure(self, workload: Workload, load: Load, on_requests: OnRequests) -> Measurement:
        return drive(self.target, workload, load, on_requests)

    def recover(self) -> None:
        pass

    def close(self) -> None:
        pass


def server_session(url: str) -> DrivenSession:
    """An OpenAI-compatible server. It does not say what precision it serves with. Raises `RunFailure` when it is not there."""
    target = HttpTarget(url)
    model = target.check()
    return DrivenSession(target, "http", version="", settings={"url": url}, model=model, precision="as served")


def scripted_session(name: str, concurrency: int) -> DrivenSession:
    """`null`: every request ends at once. `fake`: a server with a scripted pace that serves `concurrency` requests at a time."""
    if name == "null":
        return DrivenSession(NullTarget(), name)
    script = Script(slots=concurrency)
    return DrivenSession(ScriptedTarget(script), name, settings={"script": repr(script)})


def drive(target: Target, workload: Workload, load: Load, on_requests: OnRequests, gpus: int = 0) -> Measurement:
    """Warm up, send the workload under telemetry of `gpus` GPUs, and judge what came back. Raises `RunFailure` when nothing succeeded."""
    requests = workload.requests()
    if load.warmup:
        first = workload.head(load.warmup)
        short = replace(first, output_tokens=np.minimum(first.output_tokens, WARMUP_TOKENS), after=None, arrival_s=np.zeros(0))
        run_load(short.requests(), target, Drive(concurrency=load.concurrency))
    with Telemetry(gpus) as telemetry:
        how = Drive(concurrency=load.concurrency, open_loop=load.open_loop, warmup_s=load.warmup_s)
        result = run_load(requests, target, how, on_requests=on_requests, gpus=max(gpus, 1))
    log = result.measured
    if not log.ok.any():
        raise RunFailure(f"every request failed: {commonest_failure(result)}")
    verdict = judge(result, load.open_loop, load.max_lag_ms)
    window = (verdict.window.start_s, verdict.window.end_s) if verdict.window is not None else None
    found = figures(log, load.slo_ms or result.own_slo_ms or None, window=window)
    samples = telemetry.stop()
    span = (float(log.intended_s.min()), float(np.nanmax(log.end_s)))
    found |= samples.figures(*span, found.get("output_tokens", 0.0))
    warnings = (*verdict.warnings, *samples.suspicions(*span))
    return Measurement(found, log, samples=samples.columns(), no_telemetry=samples.absent, warnings=warnings, void=verdict.void)
