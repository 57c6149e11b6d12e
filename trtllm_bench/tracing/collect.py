"""torch.profiler as the collector: CUPTI's kernel records on a GPU, ranges of our own ops on a CPU.

On a GPU only device activity is asked for: recording each torch operator on the host would slow the launches of a small step several times
over. CUPTI must be attached before CUDA graphs are instantiated, or their kernels stay unseen. So `prime` runs the profiler once before an
engine is loaded, and keeps CUPTI attached afterwards, where torch would detach it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from trtllm_bench.errors import RunFailure
from trtllm_bench.tracing.trace import read_json


class TorchCollector:
    """A `Collector` (`profiling/window.py`) on `device`, `cuda` or `cpu`."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._profiler: Any = None

    def start(self) -> None:
        from torch.profiler import ProfilerActivity, profile

        activity = ProfilerActivity.CUDA if self._device == "cuda" else ProfilerActivity.CPU
        self._profiler = profile(activities=[activity], acc_events=True)
        self._profiler.start()

    def stop(self) -> None:
        self._profiler.stop()

    def content(self) -> dict[str, Any]:
        """The trace. Raises `RunFailure` when nothing was recorded."""
        if self._profiler is None:
            raise RunFailure("nothing was profiled: the run ended before the first step asked for")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            self._profiler.export_chrome_trace(str(path))
            return read_json(path)


def prime(device: str) -> None:
    """Makes the profiler ready; call it in the main thread, as torch demands. On a GPU this attaches CUPTI to the process for good.

    Raises `RunFailure` where CUPTI records nothing.
    """
    import torch

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    os.environ["TEARDOWN_CUPTI"] = "0"
    os.environ["DISABLE_CUPTI_LAZY_REINIT"] = "1"
    collector = TorchCollector(device)
    collector.start()
    torch.zeros(1, device=device).add_(1)
    if device == "cuda":
        torch.cuda.synchronize()
    collector.stop()
    if device == "cuda" and not any(event.get("cat") == "kernel" for event in collector.content()["traceEvents"]):
        raise RunFailure(
            "the profiler sees no kernels on this GPU (CUPTI may be reserved for administrators: set NVreg_RestrictProfilingToAdminUsers=0 "
            "for the driver, or end other profilers)"
        )
