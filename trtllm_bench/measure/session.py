"""One measurement: what a target made ready (`Session`) is asked, and what comes back (`Measurement`).

`throughput`, `latency` and `sweep` all measure through this seam, and so does the scripted session of the tests. A session outlives a cell,
because loading an engine costs more than many cells do; after a cell has failed it is told to `recover`, since a device that ran out of
memory is not to be trusted with the next one before it was emptied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from trtllm_results.metrics.requests import RequestLog
from trtllm_workloads.request import Workload

OnRequests = Callable[[int], None]
"""Called with the number of requests finished so far."""


@dataclass(frozen=True)
class Identity:
    """What serves, as far as it can change a result; known before anything is measured."""

    target: str
    target_version: str = ""
    engine_fingerprint: str = ""
    weights_hash: str = ""
    kv_dtype: str = ""
    model: str = ""
    precision: str = ""
    """What the engine says it is; empty where the target does not know."""
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Load:
    """How requests are sent: at most `concurrency` in flight (0: no bound), at the workload's own arrival times when `open_loop`."""

    concurrency: int = 0
    open_loop: bool = False
    warmup: int = 2
    """Requests run beforehand, with short outputs."""
    warmup_s: float = 0.0
    """Seconds at the start of the run itself whose requests are sent and kept out of the figures."""
    slo_ms: Mapping[str, float] = field(default_factory=dict)
    max_lag_ms: float = 25.0
    """p99 of the driver's own lateness beyond which a measurement is void."""


@dataclass(frozen=True)
class Measurement:
    figures: Mapping[str, float]
    log: RequestLog
    steps: Mapping[str, Any] = field(default_factory=dict)
    """Columns, one entry an engine step, where the target knows its steps."""
    samples: Mapping[str, Any] = field(default_factory=dict)
    """Columns of telemetry samples, where there is telemetry."""
    no_telemetry: str = ""
    """Why there is none, one sentence; empty where there is."""
    warnings: tuple[str, ...] = ()
    void: str = ""
    """Why the figures must not be used, one sentence; empty when they may."""


class Session(Protocol):
    """A target, ready for any cell whose precision it was opened with."""

    def identity(self) -> Identity:
        """Builds what has to be built. Raises the components' user errors."""

    def ready(self) -> None:
        """Loads what `measure` needs, so that a cell's time is its own. Called after `identity`; cheap when it is ready."""

    def measure(self, workload: Workload, load: Load, on_requests: OnRequests) -> Measurement: ...

    def recover(self) -> None:
        """Give everything back after a failed measurement; the next one starts afresh."""

    def close(self) -> None: ...
