"""The window of steps a profile looks at: a collector started before its first step and stopped after its last, in the engine's own thread.

A profile of a whole run is too large to read and its start-up is no steady state, so a few dozen steps are taken (`--steps A-B`, as
TLLM_PROFILE_START_STOP has it). The device is idle when the collector starts and stops, so every launched step is in the trace whole; the
bubble this makes falls into the lead-in steps, which are recorded and not counted. Steps are numbered from the first measured one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from trtllm_bench.errors import BenchError
from trtllm_bench.roofline.counts import StepShape
from trtllm_engines.runtime.batch import StepBatch, StepHandle
from trtllm_engines.runtime.engine_loop import EngineLoop

LEAD_IN = 2


@dataclass(frozen=True)
class Window:
    """Steps `first` to `last`, both included."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Window:
        """`A-B`, or one number. Raises `BenchError`."""
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", text)
        if match is None or int(match.group(2) or match.group(1)) < int(match.group(1)):
            raise BenchError(f"--steps {text} is not a range of steps; write A-B, such as 100-131")
        return cls(int(match.group(1)), int(match.group(2) or match.group(1)))

    def __len__(self) -> int:
        return self.last - self.first + 1


class Collector(Protocol):
    """What records the device between `start` and `stop`; both are called in the engine's thread while the device is idle."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class SeenStep:
    """A step whose kernels are in the trace."""

    number: int
    shape: StepShape
    symbols: Mapping[str, int]
    """Launch sizes: those of the shape, or of the CUDA graph it was padded to."""
    graph: bool


class StepWindow:
    """Hooks into one engine loop. `runs`: how often the loop is served before the measured run (a warm-up is a run of its own)."""

    def __init__(
        self, loop: EngineLoop, window: Window, collector: Collector, *, runs_before: int = 0, synchronize: Callable[[], None] | None = None
    ) -> None:
        self.window = window
        self.seen: list[SeenStep] = []
        """Lead-in steps first."""
        self._loop, self._collector = loop, collector
        self._synchronize = synchronize or (lambda: None)
        self._runs_left = runs_before
        self._base: int | None = None
        self._active = False
        self._serve, self._runner = loop.serve, loop._runner
        self._launch = self._runner.launch
        setattr(loop, "serve", self._served)  # noqa: B010
        setattr(self._runner, "launch", self._launched)  # noqa: B010

    @property
    def lead_in(self) -> int:
        return sum(step.number < self.window.first for step in self.seen)

    def _served(self, *args: Any) -> None:
        if self._runs_left == 0 and self._base is None:
            self._base = len(self._loop.log)
        self._runs_left -= 1
        try:
            self._serve(*args)
        finally:
            self._end()

    def _launched(self, batch: StepBatch) -> StepHandle:
        if self._base is None:
            return self._launch(batch)
        number = len(self._loop.log) - 1 - self._base
        if number == max(0, self.window.first - LEAD_IN):
            self._synchronize()
            self._collector.start()
            self._active = True
        if number > self.window.last:
            self._end()
        if self._active:
            self.seen.append(self._see(number, batch))
        return self._launch(batch)

    def _see(self, number: int, batch: StepBatch) -> SeenStep:
        shape = StepShape.of(batch)
        bucket_of: Any = getattr(self._runner, "_bucket", None)
        bucket = bucket_of(batch) if bucket_of is not None else None
        return SeenStep(number, shape, shape.symbols if bucket is None else shape.padded(bucket), bucket is not None)

    def _end(self) -> None:
        if self._active:
            self._active = False
            self._synchronize()
            self._collector.stop()
