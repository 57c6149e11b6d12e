"""What the driver needs of a target: take a request without waiting, deliver its outcome later, from any thread.

One delivery per request, not one per token: token times travel inside the outcome, stamped where the token was seen. So the driver's
thread has nothing to do between sending and completion, and a thousand streams cost it no more than one. Rejected: a callback a token into
the driver (at 30,000 tokens/s it takes the GIL from an in-process engine and delays the next send).

All times are `time.perf_counter` seconds, the clock the engine's loop and the telemetry use too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
    sent_s: float = float("nan")
    """When the request left the client, where the target knows better than the driver, whose own stamp is the hand-over."""
    closed_s: float = float("nan")
    """End of the answer, when its place is free again; NaN where it ends with its last token."""
    cached_tokens: int = -1
    """Prompt tokens that the target took from its prefix cache; -1 where it does not say."""
    chunks: int = 0
    """Pieces the tokens came in over a wire; 0 where there is none."""
    counted: bool = True
    """False where nobody counted the output tokens and `output_tokens` is the number of pieces."""
    resent: bool = False
    """Sent a second time, since the server had closed the idle connection of the first; times count from the first."""

    @property
    def free_s(self) -> float:
        """When the request's place is free again."""
        return self.end_s if math.isnan(self.closed_s) else self.closed_s


Deliver = Callable[[RequestOutcome], None]


Standstill = tuple[float, float]
"""(since when, until when) a thread that should have run did not, in seconds on the driver's clock."""


class Target(Protocol):
    """Something that serves requests. Only `start`, `submit` and `stop` must be there; the rest has a default for who inherits."""

    def prepare(self, requests: Sequence[RequestSpec]) -> None:
        """Called before `start`, with everything the run will submit: what can be done before the clock runs is done here."""
        return

    def start(self, deliver: Deliver) -> None:
        """Called once before a run; every outcome of the run goes to `deliver`, which is thread-safe and does not block."""

    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        """Takes a request whose intended arrival is `arrival_s`. Must not wait for the target's answer."""

    def heard_s(self, request_id: int) -> float:
        """When the last token of an open request came; NaN where none did or the target does not say."""
        return math.nan

    def cancel(self, request_id: int) -> None:
        """The driver has given this request up; its outcome, should it still come, is ignored."""
        return

    def stop(self) -> None:
        """Called once after a run, finished or not: requests still open are dropped."""

    def standstills(self) -> Sequence[Standstill]:
        """When the target's own client thread stood still during the run, as far as it watched itself."""
        return ()
