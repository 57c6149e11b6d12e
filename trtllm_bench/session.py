"""Sessions over the load driver: any target it can drive, made ready, measured, given back.

What every target shares is here: warm-up as a run of its own (nothing of it is in the log), figures from the log, and the reasons to
distrust them. What only our engine has (building, loading, step records) is in `native.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trtllm_bench.errors import RunFailure
from trtllm_bench.load.driver import Drive, LoadResult, run_load
from trtllm_bench.load.scripted import NullTarget, Script, ScriptedTarget
from trtllm_bench.load.steady import by_concurrency, by_slope
from trtllm_bench.load.target import Target
from trtllm_bench.measure import Identity, Load, Measurement, OnRequests
from trtllm_results.metrics import figures
from trtllm_workloads.request import Workload

SHORT_OUTPUT = 0.99
"""Outputs below this share of what was asked for make a measurement suspect."""


@dataclass
class DrivenSession:
    """A session over one target object that needs no preparation."""

    target: Target
    name: str
    version: str = "1"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def identity(self) -> Identity:
        return Identity(self.name, self.version, settings=self.settings)

    def measure(self, workload: Workload, load: Load, on_requests: OnRequests) -> Measurement:
        return drive(self.target, workload, load, on_requests)

    def recover(self) -> None:
        pass

    def close(self) -> None:
        pass


def scripted_session(name: str, concurrency: int) -> DrivenSession:
    """`null`: every request ends at once. `fake`: a server with a scripted pace that serves `concurrency` requests at a time."""
    if name == "null":
        return DrivenSession(NullTarget(), name)
    script = Script(slots=concurrency)
    return DrivenSession(ScriptedTarget(script), name, settings={"script": repr(script)})


def drive(target: Target, workload: Workload, load: Load, on_requests: OnRequests, gpus: int = 1) -> Measurement:
    """Warm up, send the workload, and judge what came back. Raises `RunFailure` when not one request succeeded."""
    how = Drive(concurrency=load.concurrency, open_loop=load.open_loop)
    requests = workload.requests()
    if load.warmup:
        run_load(workload.head(load.warmup).requests(), target, Drive(concurrency=load.concurrency), gpus=gpus)
    result = run_load(requests, target, how, on_requests=on_requests, gpus=gpus)
    log = result.measured
    if not log.ok.any():
        raise RunFailure(f"every request failed: {_first_failure(result)}")
    span = by_slope(log) if load.open_loop else by_concurrency(log)
    found = figures(log, load.slo_ms or None, window=(span.start_s, span.end_s) if span is not None else None)
    return Measurement(found, log, warnings=tuple(_warnings(result, found)))


def _first_failure(result: LoadResult) -> str:
    reason, count = Counter(reason for _, reason in result.failures).most_common(1)[0]
    return reason if count == len(result.failures) else f"{reason} ({count} of {len(result.failures)} failures)"


def _warnings(result: LoadResult, found: Mapping[str, float]) -> list[str]:
    warnings = []
    if result.stalled:
        warnings.append("the run stalled and was given up")
    if result.failures:
        warnings.append(f"{len(result.failures)} of {len(result.log)} requests failed: {_first_failure(result)}")
    ratio = found.get("output_length_ratio", 1.0)
    if ratio < SHORT_OUTPUT:
        asked = found["output_length_mean"] / ratio
        warnings.append(f"outputs were shorter than asked: {found['output_length_mean']:.1f} tokens a request instead of {asked:.1f}")
    return warnings
