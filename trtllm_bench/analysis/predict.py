"""A run that was not made: the engine's own batcher over a clock that the step model moves.

The scheduler, the page pool and the loop with its one step of overlap are the real ones, so that batch composition, waves, preemption and
queueing come out as they would; only the runner is replaced by one that takes the predicted time and returns any token.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_bench.analysis.step_constants import StepConstants
from trtllm_bench.analysis.step_model import StepModel, StepTime
from trtllm_bench.errors import BenchError
from trtllm_bench.roofline.costs import mean_step_ms
from trtllm_bench.roofline.counts import StepShape
from trtllm_bench.roofline.hardware import Hardware
from trtllm_engines.compiler.plan import Plan
from trtllm_engines.runtime.batch import StepBatch, StepOutput
from trtllm_engines.runtime.device_state import pages_within
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.memory import page_bytes
from trtllm_engines.runtime.request import Request
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import Policy, Received, SchedulerConfig
from trtllm_kernels.dialect.dtypes import nbytes
from trtllm_results.metrics.requests import SLO_NAMES, RequestLog, figures
from trtllm_workloads.request import Workload

RESERVED_BYTES = 2 << 30
"""What driver and libraries keep of a GPU's memory: 1.3 to 2.1 GiB of an H100's and 1.5 of an H200's, by the pages of recorded runs."""
FINENESS = 64
"""Steps whose cache lengths agree to one in so many are predicted once."""


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


class PredictedRunner:
    """Takes each step's predicted time, times `pace`, on a device that is free when the step before is done; in a pipeline on one after
    another."""

    def __init__(self, stages: Sequence[StepModel], clock: Clock, pace: float = 1.0) -> None:
        self._stages, self._clock, self._pace = stages, clock, pace
        self._free = [0.0] * len(stages)
        self._known: dict[tuple[int, ...], list[StepTime]] = {}
        self.shapes: dict[tuple[int, ...], tuple[StepShape, int]] = {}
        """Of the steps so far, by what tells them apart: the first such, and how many there were."""

    def launch(self, batch: StepBatch) -> PredictedStep:
        times = self._times(StepShape.of(batch))
        self._clock.now += self._pace * max(time.host_us for time in times) * 1e-6
        done = self._clock.now
        for stage, time in enumerate(times):
            done = self._free[stage] = max(self._free[stage], done) + self._pace * time.device_us * 1e-6
        return PredictedStep(self._clock, done, int(batch.sampled.sum()))

    def _times(self, shape: StepShape) -> list[StepTime]:
        rough = (shape.tokens, shape.sequences, shape.num_decodes, shape.samples)
        key = (*rough, *(round(FINENESS * math.log(max(n, 1))) for n in (shape.kv_tokens, shape.pairs)))
        first, seen = self.shapes.get(key, (shape, 0))
        self.shapes[key] = (first, seen + 1)
        if key not in self._known:
            self._known[key] = [stage.step(shape) for stage in self._stages]
        return self._known[key]


@dataclass(frozen=True)
class PredictedStep:
    clock: Clock
    done_s: float
    samples: int

    def done(self) -> bool:
        return self.clock.now >= self.done_s

    def result(self) -> StepOutput:
        self.clock.now = max(self.clock.now, self.done_s)
        return StepOutput(np.zeros(self.samples, np.int32))


class _RequestsFirst(EngineLoop):
    """The engine loop of runs for which `StepConstants.requests_first` holds."""

    def _go_on(self, step: int, received: Received) -> None:
        pass


def cache_bytes_on(plan: Plan, hardware: Hardware, fraction: float) -> int:
    """Bytes that a GPU has room for as KV cache. Raises `BenchError` where weights do not fit or the fraction leaves too little."""
    weights = sum(map(nbytes, plan.weights.values()))
    left = hardware.memory_bytes - RESERVED_BYTES - weights - plan.arena_bytes
    least = 8 * page_bytes(plan)
    if left >= least > left * fraction:
        raise BenchError(
            f"a share of {fraction:g} of the {left / 2**30:.1f} GiB that {plan.config.name} in {plan.precision} leaves of {hardware.name} "
            f"is less than eight pages of KV cache; raise --kv-cache-free-gpu-mem-fraction to {least / left:.2g} or more"
        )
    if left < least:
        raise BenchError(
            f"{plan.config.name} in {plan.precision} does not fit {hardware.name}: its weights and buffers take "
            f"{(weights + plan.arena_bytes) / 2**30:.1f} GiB of {hardware.memory_bytes / 2**30:.1f}"
        )
    return int(left * fraction)


def pages_on(plan: Plan, hardware: Hardware, fraction: float) -> int:
    """Pages of KV cache an engine takes on a GPU: what there is room for, as far as it can use them. Raises as `cache_bytes_on`."""
    return pages_within(plan, cache_bytes_on(plan, hardware, fraction))


def predict(
    plans: Plan | Sequence[Plan],
    hardware: Hardware,
    workload: Workload,
    *,
    concurrency: int,
    open_loop: bool = False,
    max_batch_size: int | None = None,
    max_num_tokens: int | None = None,
    policy: Policy = "guaranteed_no_evict",
    kv_cache_fraction: float = 0.9,
    replicas: int = 1,
    constants: StepConstants | None = None,
    slo_ms: Mapping[str, float] | None = None,
    pace: float = 1.0,
    on_steps: Callable[[list[tuple[StepShape, int]]], None] | None = None,
) -> tuple[dict[str, float], RequestLog]:
    """Figures of the run on as many of the GPU as the engine has ranks, and its requests. Raises `BenchError` when the model does not fit.

    `plans`: of each stage of a pipeline, in order. `constants`: the step model's, where they are not `hardware`'s.
    `replicas` copies of the engine, each on GPUs of its own, share the places in flight and take requests in proportion to them.
    `slo_ms`: limits of goodput, where not those that requests bring themselves. `pace`: every step takes so many times as long as the model
    says, for what an error of the model comes to. `on_steps` is given the steps of each copy: what tells them
    apart, and how many there were.
    """
    stages = [plans] if isinstance(plans, Plan) else list(plans)
    plan = stages[0]
    profile = plan.profile
    config = SchedulerConfig(
        max_batch_size or profile.max_batch_size,
        max_num_tokens or profile.max_num_tokens,
        profile.max_seq_len,
        profile.page_size,
        min(pages_on(stage, hardware, kv_cache_fraction) for stage in stages),
        policy,
        len(stages),
    )
    models = [StepModel(stage, hardware, constants=constants) for stage in stages]
    loop_type = _RequestsFirst if models[0].constants.requests_first else EngineLoop
    copies = min(replicas, concurrency, len(workload)) if concurrency else min(replicas, len(workload))
    logs, steps = [], []
    shares = [[one for one in range(len(workload)) if one % (concurrency or copies) % copies == copy] for copy in range(copies)]
    for copy, share in enumerate(shares):
        clock = Clock()
        runner = PredictedRunner(models, clock, pace)
        loop = loop_type(runner, config, vocab_size=plan.config.vocab_size, clock=clock)
        costs = models[0].constants.step
        end_s, begin_s = (costs["end_us"] * 1e-6, costs["begin_us"] * 1e-6) if len(stages) > 1 else (0.0, 0.0)
        places = concurrency // copies + (copy < concurrency % copies) if concurrency else 0
        logs.append(_drive(loop, clock, workload, share, places, open_loop, end_s, begin_s))
        steps.append(loop.log.rows())
        if on_steps is not None:
            on_steps(list(runner.shapes.values()))
    log = _joined(logs, replicas * plan.parallel.ranks)
    known = figures(log, slo_ms or _own_slo_ms(workload, [one for share in shares for one in share]))
    known |= {"steps": float(sum(map(len, steps))), "step_mean_ms": fmean(map(mean_step_ms, steps))}
    return known, log


def _own_slo_ms(workload: Workload, order: Sequence[int]) -> dict[str, npt.NDArray[np.float64]] | None:
    """Limits that requests bring themselves, in this order of them; infinite where one has none. None where no request has any."""
    if workload.slo_ms is None:
        return None
    limits = np.where(np.isnan(workload.slo_ms), np.inf, workload.slo_ms)[list(order)]
    return {name: limits[:, place] for place, name in enumerate(SLO_NAMES)}


def _joined(logs: Sequence[RequestLog], gpus: int) -> RequestLog:
    """The requests of all copies, one after another."""
    known = [{name: value for name, value in vars(log).items() if isinstance(value, np.ndarray)} for log in logs]
    arrays: dict[str, Any] = {name: np.concatenate([one[name] for one in known]) for name in known[0] if name != "token_offsets"}
    counts = np.concatenate([np.diff(one["token_offsets"]) for one in known])
    return RequestLog(**arrays, token_offsets=np.concatenate([[0], np.cumsum(counts)]), gpus=gpus)


def _drive(
    loop: EngineLoop,
    clock: Clock,
    workload: Workload,
    chosen: Sequence[int],
    concurrency: int,
    open_loop: bool,
    end_s: float = 0.0,
    begin_s: float = 0.0,
) -> RequestLog:
    """Runs the requests of `chosen` (indices in the workload) on one engine. The host takes `end_s` for a request that ends, and `begin_s`
    for one that begins in its place."""
    arrivals = np.asarray(workload.arrival_s) if open_loop and len(workload.arrival_s) else np.zeros(len(workload))
    waiting = deque(chosen)
    done: list[Request] = []
    order: list[int] = []
    bound = concurrency or len(chosen)

    def finished(request: Request) -> None:
        clock.now += end_s + (begin_s if waiting else 0.0)
        done.append(request)

    sampling = cache(lambda tokens: SamplingParams(max_tokens=tokens, ignore_eos=True))
    while waiting or not loop.idle:
        while waiting and len(order) - len(done) < bound and arrivals[waiting[0]] <= clock.now:
            index = waiting.popleft()
            order.append(index)
            params = sampling(int(workload.output_tokens[index]))
            due = float(arrivals[index]) if open_loop else clock.now
            loop.add_request(np.zeros(int(workload.input_tokens[index]), np.int32), params, arrival_s=due, on_finish=finished)
        if loop.idle:
            clock.now = max(clock.now, float(arrivals[waiting[0]]))
        else:
            loop.step()
    failed = next((request.error for request in done if request.error), None)
    if failed is not None:
        raise BenchError(failed)
    done.sort(key=lambda request: request.request_id)
    times = [request.token_times_s for request in done]
    counts = np.array([len(one) for one in times])
    return RequestLog(
        intended_s=np.array([request.arrival_s for request in done]),
        sent_s=np.array([request.arrival_s for request in done]),
        first_token_s=np.array([one[0] for one in times]),
        end_s=np.array([one[-1] for one in times]),
        input_tokens=np.array([len(request.prompt) for request in done]),
        output_tokens=counts,
        ok=np.ones(len(done), np.bool_),
        requested_tokens=counts,
        scheduled_s=np.array([request.scheduled_s for request in done], float),
        token_times_s=np.concatenate(times),
        token_offsets=np.concatenate([[0], np.cumsum(counts)]),
    )
