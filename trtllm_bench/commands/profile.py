"""`profile`: record a window of a cell's steps kernel by kernel: table, trace, timeline and roofline page."""

from __future__ import annotations

import sys
from pathlib import Path
from types import MappingProxyType
from typing import Annotated

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import BenchError

Steps = Annotated[str | None, typer.Option("--steps", help="Window A-B of the run's steps (default: 32 in the middle).")]


LEAST_REQUESTS, PER_PLACE = 32, 4
WITH_CELL = ("device", "nvtx_detail", "max_lag_ms")
"""Flags that may stand beside a measured CELL."""


@options.measures(without=("target",), help={"concurrency": "Most requests in flight; 0 or less: no bound (default)."})
def command(
    cell: Annotated[str | None, typer.Argument(metavar="[CELL]", help="A measured cell, RESULTS@batch=64 or RESULTS@KEY.")] = None,
    asked: options.Asked = MappingProxyType({}),
    steps: Steps = None,
    nsys: Annotated[bool, typer.Option("--nsys", help="Record with Nsight Systems; keeps its report too.")] = False,
    ncu: Annotated[str | None, typer.Option("--ncu", help="Also read hardware counters of this kernel or op, with Nsight Compute.")] = None,
    inside_nsys: Annotated[bool, typer.Option("--inside-nsys", hidden=True)] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for profile, trace and page (default: profiles/<time>).")] = None,
) -> None:
    """See kernel by kernel where a cell's time goes, and how near the hardware's limits.

    Examples:
      trtllm-bench profile runs/a@batch=64
      trtllm-bench profile --model llama-3.1-8b --concurrency 64 --steps 40-60
    """
    import time
    from dataclasses import replace

    from trtllm_bench.analysis.cells import find_cell
    from trtllm_bench.measure.from_row import spec_of_row
    from trtllm_bench.measure.prepare import prepare
    from trtllm_bench.measure.rows import command_line
    from trtllm_bench.profiling.cell import ProfileRequest, profile_cell, with_counters
    from trtllm_bench.profiling.nsys import inside, profile_with_nsys, without
    from trtllm_bench.profiling.show import print_profile
    from trtllm_bench.profiling.window import Window
    from trtllm_bench.sweep.profiles import FOLDER, link
    from trtllm_bench.targets.registry import runs_on_gpu
    from trtllm_bench.tracing.nsight import find
    from trtllm_dashboards.profile_page import DATA_FILE
    from trtllm_dashboards.tables import plain_console
    from trtllm_results.store.files import check_writable

    window = None if steps is None else Window.parse(steps)
    measured = None if cell is None else find_cell(cell)
    if measured is not None:
        if set(asked) - set(WITH_CELL):
            raise BenchError("CELL already says model, engine and load; leave their flags out, or leave CELL out")
        spec = spec_of_row(measured.row)
        spec = replace(spec, engine=replace(spec.engine, **{name: value for name, value in asked.items() if name != "max_lag_ms"}))
    else:
        spec = options.single(asked)
    spec, workload = prepare(spec, LEAST_REQUESTS, PER_PLACE)
    request = ProfileRequest(spec, workload, window, command_line())
    store = measured.store if measured is not None and out is None else None
    if measured is not None and store is not None:
        folder = store.path / FOLDER / measured.row.key
    else:
        folder = out or Path(FOLDER) / time.strftime("%Y%m%d-%H%M%S")
    console = plain_console()
    if inside_nsys:
        inside(request, folder)
        return
    for tool in ["nsys"] * nsys + ["ncu"] * (ncu is not None):
        find(tool)
        if not runs_on_gpu(spec):
            raise BenchError(f"--{tool} looks into a GPU and this cell runs on the CPU; leave it out")
    check_writable(folder / DATA_FILE)
    if nsys:
        profile = profile_with_nsys(without(sys.argv[1:], ("--nsys",), ("--ncu", "--out")), folder, request.command)
    else:
        profile = profile_cell(request, folder)
    if ncu is not None:
        profile = with_counters(profile, request, ncu, folder)
    if measured is not None and store is not None:
        link(store, measured.row.key, Path(FOLDER) / measured.row.key)
    print_profile(profile, console)
    console.print(f"\npage, trace (open in ui.perfetto.dev) and data: {folder}", soft_wrap=True)
