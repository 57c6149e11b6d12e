"""What a rank's process records of its steps while it is asked to: a trace of torch.profiler, its own file. Nsight Systems, where it is
used, records all processes itself, and ranks tell it when.

The process that schedules says when, by messages in the ring that carries steps (`order`), so that recording begins and ends between the
same two steps on every rank. Ranges of ops are torch's own on a CPU; on a GPU CUPTI records the kernels, and is attached before graphs are
instantiated, or their kernels stay unseen.

Nsight Systems records from the first rank's `cudaProfilerStart` to the first rank's stop. Ranks meet before they stop, so each has ended
its steps by then.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trtllm_engines.runtime.batch import ObservedRunner, StepBatch
from trtllm_engines.runtime.host_ranks import Recorder
from trtllm_engines.runtime.observer import NOBODY, Observers, StepObserver
from trtllm_engines.runtime.ranges import RangeObserver, TorchMarker, nvtx_marker

MAGIC = b"TRC1"
"""How a message that is not a step begins (`wire.MAGIC`)."""


def order(folder: Path | None) -> bytes:
    """A message to every rank: record from now on, or (a folder) end and write `rank<n>.json` there: the trace, or under Nsight Systems the
    number of the rank's process, `{"process": 1234}`."""
    return MAGIC + json.dumps({"write": None if folder is None else str(folder)}).encode()


def trace_file(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.json"


class RankTrace:
    """Of one rank. `recorder`: what records when it is asked to; `detail`: of its NVTX ranges."""

    def __init__(self, rank: int, on_gpu: bool, recorder: Recorder, detail: str) -> None:
        self._rank, self._on_gpu, self._recorder = rank, on_gpu, recorder
        self._profiler: Any = None
        self._observer: StepObserver = NOBODY if detail == "off" else RangeObserver(nvtx_marker(), detail)
        if recorder == "torch" and not on_gpu:
            ranges = RangeObserver(TorchMarker(), "op")
            self._observer = ranges if self._observer is NOBODY else Observers(ranges, self._observer)
        if recorder == "torch" and on_gpu:
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
        if self._recorder == "nsys":
            written.write_text(json.dumps({"process": os.getpid()}))
        else:
            self._profiler.export_chrome_trace(str(written))
        written.replace(path)

    def _start(self) -> None:
        if self._recorder == "nsys":
            torch.cuda.synchronize()
            torch.cuda.cudart().cudaProfilerStart()  # type: ignore[no-untyped-call]
            return
        from torch.profiler import ProfilerActivity, profile

        activity = ProfilerActivity.CUDA if self._on_gpu else ProfilerActivity.CPU
        self._profiler = profile(activities=[activity], acc_events=True)
        self._profiler.start()

    def _stop(self) -> None:
        if self._on_gpu:
            torch.cuda.synchronize()
        if self._recorder == "nsys":
            dist.barrier()
            torch.cuda.cudart().cudaProfilerStop()  # type: ignore[no-untyped-call]
            return
        self._profiler.stop()
