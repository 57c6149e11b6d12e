"""What the driver needs of a target: take a request without waiting, deliver its outcome later, from any thread.

One delivery a request, not one a token: token times travel inside the outcome, stamped where the token was seen. So the driver's thread has
nothing to do between sending and completion, and a thousand streams cost it no more than one. Rejected: a callback a token into the
driver (at 30,000 tokens/s it takes the GIL from an in-process engine and delays the next send).

All times are `time.perf_counter` seconds, the clock the engine's loop and the telemetry use too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trtllm_workloads.request import RequestSpec

FloatArray = npt.NDArray[np.float64]


def _no_times() -> FloatArray:
    return np.empty(0)


@dataclass(slots=True)
class RequestOutcome:
    """The end of one request. `error` is empty when it succeeded."""

    id: int
    end_s: float
    output_tokens: int
    token_times_s: FloatArray = field(default_factory=_no_times)
    """[output_tokens] when each token was seen; tokens that came in one piece repeat its time. Empty where the target does not stream."""
    input_tokens: int = -1
    """Prompt tokens the target counted; -1 where it does not say."""
    scheduled_s: float = float("nan")
    preemptions: int = 0
    error: str = ""


Deliver = Callable[[RequestOutcome], None]


class Target(Protocol):
    """Something that serves requests."""

    def start(self, deliver: Deliver) -> None:
        """Called once before a run; every outcome of the run goes to `deliver`, which is thread-safe and does not block."""

    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        """Takes a request whose intended arrival is `arrival_s`. Must not wait for the target's answer."""

    def stop(self) -> None:
        """Called once after a run, finished or not: requests still open are dropped."""
