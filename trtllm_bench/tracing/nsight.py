"""Finds and runs the two Nsight tools where they are installed; `nsys_export.py` and `ncu_export.py` read what they write.

Neither is needed: torch.profiler sees the same kernels as Nsight Systems. Systems adds its own timeline of the whole machine; Compute adds
what only hardware counters know of one kernel (traffic, occupancy, why warps wait).
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from trtllm_bench.errors import BenchError, RunFailure

TOOLS = {"nsys": "Nsight Systems", "ncu": "Nsight Compute"}
_PLACES = {
    "nsys": ("/usr/local/cuda/bin/nsys", "/opt/nvidia/nsight-systems/*/bin/nsys"),
    "ncu": ("/usr/local/cuda/bin/ncu", "/opt/nvidia/nsight-compute/*/ncu"),
}
NCU_SECTIONS = (
    "LaunchStats",
    "Occupancy",
    "SpeedOfLight",
    "MemoryWorkloadAnalysis",
    "ComputeWorkloadAnalysis",
    "WarpStateStats",
)
MOST_QUOTED = 400
"""Characters of a tool's own words in an error."""


def find(tool: str) -> str:
    """Path of `nsys` or `ncu`. Raises `BenchError` saying what to install."""
    path = shutil.which(tool) or next((path for place in _PLACES[tool] for path in sorted(glob.glob(place), reverse=True)), None)
    if path is None:
        raise BenchError(
            f"{tool} is not installed here: install {TOOLS[tool]} (part of the CUDA toolkit, or NVIDIA's own package) and put it on PATH, "
            f"or leave --{tool} out; everything else works without it"
        )
    return path


def nsys_command(tool: str, target: Sequence[str], report: Path) -> list[str]:
    """The command that records `target` between `cudaProfilerStart` and `cudaProfilerStop`, with each kernel of a CUDA graph, and writes
    `report`.nsys-rep and `report`.sqlite."""
    return [
        tool,
        "profile",
        "--capture-range=cudaProfilerApi",
        "--capture-range-end=stop",
        "--trace=cuda,nvtx",
        "--cuda-graph-trace=node",
        "--sample=none",
        "--cpuctxsw=none",
        "--export=sqlite",
        "--force-overwrite=true",
        f"--output={report}",
        *target,
    ]


def ncu_command(tool: str, target: Sequence[str], log: Path) -> list[str]:
    """The command that collects `NCU_SECTIONS` for kernels between `cudaProfilerStart` and `cudaProfilerStop`, at the clocks that the GPU
    has, and writes them to `log` as CSV."""
    sections = [part for name in NCU_SECTIONS for part in ("--section", name)]
    more = ["--profile-from-start", "off", "--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base"]
    return [tool, *sections, *more, "--log-file", str(log), *target]


def run(command: Sequence[str], tool: str) -> None:
    """Raises `RunFailure` with the tool's last words when it fails."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    if done.returncode:
        words = " ".join((done.stderr.strip() or done.stdout.strip()).split())[-MOST_QUOTED:]
        raise RunFailure(f"{tool} ended with code {done.returncode}: {words or 'it said nothing'}")
