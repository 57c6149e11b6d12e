"""Our engine as a target: its loop on a thread of its own from `start` to `stop`, outcomes delivered from there.

Token times are those of the engine's steps (a token is seen when the step that made it ends), on the driver's clock. Every request
generates exactly what it asks for (`ignore_eos`): a random prompt's end-of-sequence token would cut runs short at random.
"""

from __future__ import annotations

import numpy as np

from trtllm_bench.load.target import Deliver, RequestOutcome
from trtllm_engines.runtime.engine_loop import EngineLoop, EngineThread
from trtllm_engines.runtime.request import Request
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_workloads.request import RequestSpec


class NativeTarget:
    """Drives `loop`, which nobody else may step between `start` and `stop`."""

    def __init__(self, loop: EngineLoop) -> None:
        self._loop = loop
        self._thread: EngineThread | None = None

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._open: dict[int, Request] = {}
        self._thread = EngineThread(self._loop)

    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        if request.prompt is None:
            raise ValueError("the workload gives text and the engine takes token ids; prepare it with a tokenizer")
        number = request.id
        sampling = SamplingParams(max_tokens=request.output_tokens, ignore_eos=True)
        accepted = self._loop.add_request(
            request.prompt, sampling, arrival_s=arrival_s, on_finish=lambda finished: self._finish(number, finished)
        )
        if not accepted.finished:
            self._open[number] = accepted

    def _finish(self, number: int, request: Request) -> None:
        self._open.pop(number, None)
        times = request.token_times_s
        end = float(times[-1]) if len(times) else float(request.finished_s or np.nan)
        self._deliver(
            RequestOutcome(
                id=number,
                end_s=end,
                output_tokens=len(request.output),
                token_times_s=times,
                input_tokens=len(request.prompt),
                scheduled_s=float("nan") if request.scheduled_s is None else request.scheduled_s,
                preemptions=request.preemptions,
                error=request.error or "",
            )
        )

    def stop(self) -> None:
        """Cancels what is still running, so that the next run finds the engine empty."""
        for request in list(self._open.values()):
            self._loop.cancel(request)
        if self._thread is not None:
            self._thread.close()
            self._thread = None
        self._loop.run()
