"""How long one kernel takes: batches of samples until their mean is known, thrown away while the GPU is slowed down.

The stopping rule is nvbench's: samples come in batches until the relative standard error of the mean is below a bound, and an answer that
never gets there is given with the noise it has and called noisy. A batch during which the driver slowed the clocks down for heat or power
supply is not a sample of the kernel and is repeated, a few times.

A sample is the sum of durations that CUPTI reports for the kernels of one call: neither the launch nor the gap between two kernels is in
it, which events around a call of a few microseconds would mostly measure. Cold: several L2 caches' worth of memory is read before each
call; not written, because lines that were have to go back to memory while the call reads its own. Warm: calls follow each other and find
what the last one left. Chained: replays of a CUDA graph of many calls, one right behind another and overlapping where the engine lets
them, between two events each; what a call costs there is what it adds to a step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np

from trtllm_bench.errors import RunFailure
from trtllm_bench.tracing.collect import TorchCollector
from trtllm_bench.tracing.trace import device_events

FLUSH_BYTES = 256 << 20
"""Several times any L2 cache."""
_LINE_BYTES = 128
Call = Callable[[], Any]
How = Literal["cold", "warm", "chained"]


@dataclass(frozen=True)
class StoppingRule:
    """When to stop. `noise`: relative standard error of the mean; `seconds`: of measuring, at most."""

    noise: float = 0.005
    batch: int = 25
    min_batches: int = 3
    max_batches: int = 40
    seconds: float = 2.0
    retries: int = 5


@dataclass(frozen=True)
class Timing:
    """Microseconds per call. `batches`: mean of each batch, the sample that runs are compared by."""

    mean_us: float
    median_us: float
    noise: float
    samples: int
    batches: tuple[float, ...]
    settled: bool
    slowed: bool = False
    """Every batch was measured on a slowed-down GPU."""

    def per(self, calls: int) -> Timing:
        """Of one among `calls` that were measured together."""
        batches = tuple(mean / calls for mean in self.batches)
        return replace(self, mean_us=self.mean_us / calls, median_us=self.median_us / calls, batches=batches)


class Timer(Protocol):
    def sample(self, call: Call, count: int, how: How) -> list[float]:
        """Microseconds of each of `count` calls."""

    def slowed(self) -> bool:
        """Whether the device was slowed down since the last question."""


class Sampler:
    """Batches of one call, as they come; what `StoppingRule` decides on."""

    def __init__(self, timer: Timer, call: Call, how: How, rule: StoppingRule) -> None:
        self._timer, self._call, self._how, self._rule = timer, call, how, rule
        self._retries = rule.retries
        self.samples: list[float] = []
        self.batches: list[float] = []
        self.slowed = False

    def add(self) -> None:
        """One more batch; one during which the GPU was slowed down is measured again while there are retries."""
        while True:
            batch = self._timer.sample(self._call, self._rule.batch, self._how)
            if not self._timer.slowed():
                break
            if not self._retries:
                self.slowed = True
                break
            self._retries -= 1
        self.samples += batch
        self.batches.append(float(np.mean(batch)))

    @property
    def noise(self) -> float:
        """Relative standard error of the mean."""
        values = np.asarray(self.samples)
        return float(values.std(ddof=1) / math.sqrt(len(values)) / values.mean()) if len(values) > 1 and values.mean() > 0 else math.inf

    @property
    def settled(self) -> bool:
        return self.noise <= self._rule.noise

    def timing(self) -> Timing:
        return Timing(
            mean_us=float(np.mean(self.samples)),
            median_us=float(np.median(self.samples)),
            noise=self.noise,
            samples=len(self.samples),
            batches=tuple(self.batches),
            settled=self.settled,
            slowed=self.slowed,
        )


def measure(timer: Timer, call: Call, how: How, rule: StoppingRule, clock: Callable[[], float] = time.perf_counter) -> Timing:
    """Times `call` until `rule` says stop. `clock` is in seconds."""
    began = clock()
    sampler = Sampler(timer, call, how, rule)
    while len(sampler.batches) < rule.max_batches:
        sampler.add()
        if len(sampler.batches) >= rule.min_batches and (sampler.settled or clock() - began > rule.seconds):
            break
    return sampler.timing()


class CuptiTimer:
    """On the current GPU. Call `trtllm_bench.tracing.collect.prime` before."""

    def __init__(self) -> None:
        import torch

        lines = torch.randint(0, 256, (FLUSH_BYTES // _LINE_BYTES, _LINE_BYTES), dtype=torch.uint8, device="cuda")
        self._lines, self._read = lines[:, 0], torch.empty(len(lines), dtype=torch.uint8, device="cuda")
        self._reasons = _slow_down_reasons()

    def sample(self, call: Call, count: int, how: How) -> list[float]:
        import torch

        call()
        if how == "chained":
            return self._between_events(call, count)
        cold = how == "cold"
        torch.cuda.synchronize()
        collector = TorchCollector("cuda")
        collector.start()
        for _ in range(count):
            if cold:
                self._read.copy_(self._lines)
            call()
        torch.cuda.synchronize()
        collector.stop()
        return split_samples([event.duration_us for event in device_events(collector.content())], count, cold)

    @staticmethod
    def _between_events(call: Call, count: int) -> list[float]:
        import torch

        events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]  # type: ignore[no-untyped-call]
        events[0].record()
        for event in events[1:]:
            call()
            event.record()
        events[-1].synchronize()
        return [1e3 * before.elapsed_time(after) for before, after in pairwise(events)]

    def slowed(self) -> bool:
        return self._reasons()


class Bursts:
    """Samples one at a time, each after a rest, so that neither heat nor the power limit slows the GPU down: what a kernel takes when
    nothing ran right before it, as in a collector that sets up every case anew. A kernel that runs without a pause may take a fifth longer.

    `sleep` and `clock` are in seconds.
    """

    REST, MOST_REST_S = 9.0, 0.3
    """A rest is so many times as long as the sample before, and no longer than this."""

    def __init__(self, timer: Timer, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.perf_counter) -> None:
        self._timer, self._sleep, self._clock = timer, sleep, clock
        self._rest = 0.0

    def sample(self, call: Call, count: int, how: How) -> list[float]:
        samples: list[float] = []
        for _ in range(count):
            self._sleep(self._rest)
            began = self._clock()
            samples += self._timer.sample(call, 1, how)
            self._rest = min(self.MOST_REST_S, self.REST * (self._clock() - began))
        return samples

    def slowed(self) -> bool:
        return self._timer.slowed()


def split_samples(durations: list[float], count: int, cold: bool) -> list[float]:
    """Durations of all device activity, in order, as `count` equal groups; a cold group begins with the flush. Raises `RunFailure`."""
    each, left = divmod(len(durations), count)
    seen = f"the profiler saw {len(durations)} kernels in {count} calls"
    if left:
        raise RunFailure(f"{seen}, which is not a whole number per call; try again")
    if each <= cold:
        raise RunFailure(f"{seen}, none of them of the op itself; try again")
    return [sum(durations[i * each + cold : (i + 1) * each]) for i in range(count)]


def _slow_down_reasons() -> Callable[[], bool]:
    """Asks NVML whether heat or power supply slow this GPU down now; never, where NVML cannot say."""
    from trtllm_bench.telemetry import SLOW_DOWN

    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(torch.cuda.current_device())
        pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
    except Exception:
        return lambda: False
    return lambda: bool(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle) & SLOW_DOWN)
