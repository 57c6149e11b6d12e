"""A request from arrival to result. What changes every step lives in `slots.py` as vectors; here is what changes a few times a life.

Times are the loop's clock (`time.perf_counter`, seconds). A token's time is when the host held it, the end of the step that made it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from trtllm_engines.runtime.batch import IntArray, TokenLogprobs
from trtllm_engines.runtime.sampling_params import SamplingParams

FinishReason = Literal["length", "stop", "cancelled", "error"]
OnToken = Callable[["Request", int, float], None]
"""(request, token id, time): called in the loop's thread as each token arrives. Raising fails that request alone."""
OnFinish = Callable[["Request"], None]

EMPTY = np.empty(0, np.int32)


@dataclass(eq=False)
class Request:
    request_id: int
    prompt: IntArray
    sampling: SamplingParams
    seed: int
    stop_ids: tuple[int, ...]
    max_new: int
    arrival_s: float
    on_token: OnToken | None = None
    on_finish: OnFinish | None = None

    slot: int = -1
    output: IntArray = field(default_factory=lambda: EMPTY)
    """Tokens generated: filled when the request finishes or is preempted, the slot's rows being the truth in between."""
    output_steps: IntArray = field(default_factory=lambda: EMPTY)
    """Step that made each token."""
    token_times_s: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    scheduled_s: float | None = None
    finished_s: float | None = None
    preemptions: int = 0
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    text_tail: str = ""
    """End of the text so far, as much as a stop string could begin in; kept only while stop strings are looked for."""
    text_dropped: int = 0
    """Characters before `text_tail`."""
    stop_at: int | None = None
    """Where in the text the stop string begins that ended it."""
    finish_reason: FinishReason | None = None
    error: str | None = None

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def first_token_s(self) -> float | None:
        return float(self.token_times_s[0]) if len(self.token_times_s) else None

    @property
    def max_kv_tokens(self) -> int:
        """Most tokens it can ever hold in the cache: the last sampled one is never written."""
        return len(self.prompt) + self.max_new - 1
