"""What a rank's process records of its steps while it is asked to: a trace of torch.profiler, its own file.

The process that schedules says when, by messages in the ring that carries steps (`order`), so that recording begins and ends between the
same two steps on every rank. Ranges of ops are torch's own on a CPU; on a GPU CUPTI records the kernels, and is attached before graphs are
instantiated, or their kernels stay unseen.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch

from trtllm_engines.runtime.batch import ObservedRunner, StepBatch
from trtllm_engines.runtime.observer import NOBODY, Observers, StepObserver
from trtllm_engines.runtime.ranges import RangeObserver, TorchMarker, nvtx_marker

MAGIC = b"TRC1"
"""How a message begins that is no step (`wire.MAGIC`)."""


def order(folder: Path | None) -> bytes:
    """A message to every rank: record from now on, or (a folder) end and write `rank<n>.json` there."""
    return MAGIC + json.dumps({"write": None if folder is None else str(folder)}).encode()


def trace_file(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.json"


class RankTrace:
    """Of one rank. `traced`: whether it may be asked to record; `detail`: of its NVTX ranges."""

    def __init__(self, rank: int, on_gpu: bool, traced: bool, detail: str) -> None:
        self._rank, self._on_gpu = rank, on_gpu
        self._profiler: Any = None
        self._observer: StepObserver = NOBODY if detail == "off" else RangeObserver(nvtx_marker(), detail)
        if traced and not on_gpu:
            ranges = RangeObserver(TorchMarker(), "op")
            self._observer = ranges if self._observer is NOBODY else Observers(ranges, self._observer)
        if traced and on_gpu:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")
            os.environ["TEARDOWN_CUPTI"] = "0"
            os.environ["DISABLE_CUPTI_LAZY_REINIT"] = "1"
            self._start()
            torch.zeros(1, device="cuda").add_(1)
            self._stop()

    def observe(self, runner: object) -> None:
        """Has the runner tell of its ops."""
        if self._observer is not NOBODY and isinstance(runner, ObservedRunner):
            runner.observe(self._observer)

    def launch_begins(self, number: int, batch: StepBatch) -> None:
        self._observer.launch_begins(number, batch)

    def launch_ends(self) -> None:
        self._observer.launch_ends()

    def obey(self, message: bytes) -> None:
        """Does what `order` says. No step may be in flight."""
        folder = json.loads(message[len(MAGIC) :])["write"]
        if folder is None:
            self._start()
            return
        self._stop()
        path = trace_file(Path(folder), self._rank)
        written = path.with_suffix(".part.json")
        self._profiler.export_chrome_trace(str(written))
        written.replace(path)

    def _start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        activity = ProfilerActivity.CUDA if self._on_gpu else ProfilerActivity.CPU
        self._profiler = profile(activities=[activity], acc_events=True)
        self._profiler.start()

    def _stop(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        self._profiler.stop()
