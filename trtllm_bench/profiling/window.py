"""The window of steps a profile looks at: a collector started before its first step and stopped after its last, in the engine's own thread.

A profile of a whole run is too large to read and its start-up is not a steady state, so a few dozen steps are taken (`--steps A-B`, as
TLLM_PROFILE_START_STOP has it). The device is idle when the collector starts and stops, so every launched step is in the trace whole; the
bubble this makes falls into the lead-in steps, which are recorded and not counted. Steps are numbered from the first measured one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from trtllm_bench.errors import BenchError
from trtllm_bench.roofline.counts import StepShape
from trtllm_engines.runtime.batch import StepBatch
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.observer import StepObserver

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


class StepWindow(StepObserver):
    """Observes one engine loop. `runs_before`: how often the loop is served before the measured run (a warm-up is a run of its own)."""

    def __init__(
        self, loop: EngineLoop, window: Window, collector: Collector, *, runs_before: int = 0, synchronize: Callable[[], None] | None = None
    ) -> None:
        self.window = window
        self.seen: list[SeenStep] = []
        """Lead-in steps first."""
        self._collector = collector
        self._synchronize = synchronize or (lambda: None)
        self._runs_left = runs_before
        self._first_step: int | None = None
        """Number, in the engine's log, of the measured run's first step."""
        self._active = False
        loop.observe(self)

    @property
    def lead_in(self) -> int:
        return sum(step.number < self.window.first for step in self.seen)

    def serve_begins(self, step: int) -> None:
        if self._runs_left == 0 and self._first_step is None:
            self._first_step = step
        self._runs_left -= 1

    def serve_ends(self) -> None:
        self._end()

    def launch_begins(self, step: int, batch: StepBatch) -> None:
        if self._first_step is None:
            return
        number = step - self._first_step
        if number == max(0, self.window.first - LEAD_IN):
            self._synchronize()
            self._collector.start()
            self._active = True
        if number > self.window.last:
            self._end()
        if self._active:
            shape = StepShape.of(batch)
            self.seen.append(SeenStep(number, shape, shape.symbols, False))

    def replays_graph(self, sequences: int) -> None:
        if self._active:
            self.seen[-1] = replace(self.seen[-1], symbols=self.seen[-1].shape.padded(sequences), graph=True)

    def _end(self) -> None:
        if self._active:
            self._active = False
            self._synchronize()
            self._collector.stop()
