"""Our engine's loops as what the driver sends requests to.

A loop runs on a thread of its own from `start` to `stop`, so that the driver's thread only sends. Token times are those of the engine's
steps (a token is seen when the step that made it ends), on the driver's clock. Every request generates exactly what it asks for
(`ignore_eos`): a random prompt's end-of-sequence token would cut runs short at random.

Several loops are replicas of one engine, whose threads are all of this process. `runtime.dispatch` says which of them a request goes to.
When one dies, requests end everywhere: the rest would only measure something else than was asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from trtllm_bench.load.target import Deliver, RequestOutcome, Target
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.dispatch import Dispatcher
from trtllm_engines.runtime.engine_loop import EngineLoop, EngineThread
from trtllm_engines.runtime.request import Request
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_workloads.request import RequestSpec


class NativeTarget(Target):
    """Drives `loops`, one a replica, which nobody else may step between `start` and `stop`."""

    def __init__(self, loops: Sequence[EngineLoop]) -> None:
        self._loops = loops
        self._threads: list[EngineThread] = []

    def start(self, deliver: Deliver) -> None:
        self._deliver = deliver
        self._open: dict[int, tuple[EngineLoop, Request]] = {}
        self._dispatcher = Dispatcher(len(self._loops))
        self._given_up = threading.Event()
        self._threads = [EngineThread(loop) for loop in self._loops]

    def submit(self, request: RequestSpec, arrival_s: float) -> None:
        if request.prompt is None:
            raise ValueError("the workload gives text and the engine takes token ids; prepare it with a tokenizer")
        number, tokens = request.id, len(request.prompt) + request.output_tokens
        replica = self._dispatcher.take(tokens)
        loop = next((one for one in self._loops if one.broken), self._loops[replica])

        def finish(finished: Request) -> None:
            self._dispatcher.done(replica, tokens)
            self._finish(number, loop, finished)

        sampling = SamplingParams(max_tokens=request.output_tokens, ignore_eos=True)
        accepted = loop.add_request(request.prompt, sampling, arrival_s=arrival_s, on_finish=finish)
        if not accepted.finished:
            self._open[number] = (loop, accepted)
            if accepted.finished:  # meanwhile, on the loop's thread
                self._open.pop(number, None)
            elif self._given_up.is_set():
                loop.cancel(accepted)

    def _finish(self, number: int, loop: EngineLoop, request: Request) -> None:
        self._open.pop(number, None)
        times = request.token_times_s
        end = float(times[-1]) if len(times) else float(request.finished_s or np.nan)
        stopped = request.finish_reason == "cancelled" and self._given_up.is_set()
        self._deliver(
            RequestOutcome(
                id=number,
                end_s=end,
                output_tokens=len(request.output),
                token_times_s=times,
                input_tokens=len(request.prompt),
                scheduled_s=float("nan") if request.scheduled_s is None else request.scheduled_s,
                preemptions=request.preemptions,
                error=request.error or ("another replica stopped" if stopped else ""),
            )
        )
        if loop.broken and not self._given_up.is_set():
            self._given_up.set()
            self._cancel_open()

    def _cancel_open(self) -> None:
        for loop, request in list(self._open.values()):
            loop.cancel(request)

    def heard_s(self, request_id: int) -> float:
        """The end of its replica's latest step: a request that waits while the engine works is not forgotten."""
        held = self._open.get(request_id)
        if held is None:
            return float("nan")
        log = held[0].log
        steps = np.arange(max(0, len(log) - 2 - held[0].scheduler.config.stages), len(log))
        return float(log.times_of(steps.astype(np.int32)).max()) if len(steps) else float("nan")

    def cancel(self, request_id: int) -> None:
        held = self._open.pop(request_id, None)
        if held is not None:
            loop, request = held
            loop.cancel(request)

    def stop(self) -> None:
        """Cancels what is still running, so that the next run finds the engine empty. Raises `EngineError` when a replica has died."""
        self._cancel_open()
        threads, self._threads = self._threads, []
        failures: list[EngineError] = []
        for number, thread in enumerate(threads, 1):
            try:
                thread.close()
            except EngineError as error:
                failures.append(error if len(threads) == 1 else EngineError(f"replica {number} of {len(threads)}: {error}"))
        if failures:
            raise failures[0]
        for loop in self._loops:
            loop.run()
