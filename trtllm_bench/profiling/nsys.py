"""A cell under Nsight Systems: the same command again with the tool around it, and the tool's export analysed like any trace.

The inner process runs the cell and, instead of recording, tells the tool when its window begins and ends; what it leaves (`steps.json`)
says which steps the recorded kernels belong to. Of an engine of several ranks the report has every rank, on one timeline: the tool follows
all processes that its target starts. The ranks tell it when, and the first one's kernels are analysed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trtllm_bench.profiling.capture import Capture
from trtllm_bench.profiling.cell import ProfileRequest, RankCollector, analyse, record, write
from trtllm_bench.profiling.record import CellProfile
from trtllm_bench.tracing import nsight
from trtllm_bench.tracing.nsys_export import read_nsys

STEPS_FILE, REPORT = "steps.json", "nsys"


class ProfilerApi:
    """The collector of a process that runs under a tool."""

    def start(self) -> None:
        import torch

        torch.cuda.cudart().cudaProfilerStart()  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        import torch

        torch.cuda.cudart().cudaProfilerStop()  # type: ignore[no-untyped-call]


def without(arguments: Sequence[str], flags: Sequence[str], options: Sequence[str]) -> list[str]:
    """Arguments less some flags, and some options with their values (as `--out x` or `--out=x`)."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        name, equals, _ = argument.replace("_", "-").partition("=")
        if not skip and name not in flags and name not in options:
            kept.append(argument)
        skip = not skip and name in options and not equals
    return kept


def inside(request: ProfileRequest, folder: Path) -> None:
    """What runs under the tool."""
    if request.layout.ranks == 1:
        record(request, ProfilerApi()).save(folder / STEPS_FILE)
        return
    with tempfile.TemporaryDirectory() as written:
        collector = RankCollector(Path(written), "nsys")
        recorded = record(request, collector)
        processes = tuple(json.loads(path.read_text())["process"] for path in collector.written)
    note = f"the kernels are those of rank 0 of {len(processes)}; {REPORT}.nsys-rep has every rank"
    replace(recorded, processes=processes, notes=(*recorded.notes, note)).save(folder / STEPS_FILE)


def profile_with_nsys(arguments: Sequence[str], folder: Path, command: str) -> CellProfile:
    """`arguments`: of the `profile` command, without `--nsys`. Raises `BenchError` where the tool is absent."""
    tool = nsight.find("nsys")
    folder.mkdir(parents=True, exist_ok=True)
    target = [sys.executable, "-m", "trtllm_bench", *arguments, "--inside-nsys", "--out", str(folder)]
    nsight.run(nsight.nsys_command(tool, target, folder / REPORT), "nsys")
    recorded = Capture.load(folder / STEPS_FILE)
    events, _ = read_nsys(folder / f"{REPORT}.sqlite", process=recorded.processes[0] if recorded.processes else None)
    profile, _ = analyse(recorded, events, "Nsight Systems", command)
    write(profile, folder)
    return profile
