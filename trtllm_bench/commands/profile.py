"""`profile`: record a window of a cell's steps kernel by kernel: table, trace, timeline and roofline page."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import BenchError

Steps = Annotated[str | None, typer.Option("--steps", help="Window A-B of the run's steps (default: 32 in the middle).")]


def command(
    cell: Annotated[str | None, typer.Argument(metavar="[CELL]", help="A measured cell, RESULTS@batch=64 or RESULTS@KEY.")] = None,
    model: options.Model = None,
    engine_dir: options.EngineDir = None,
    precision: options.Precision = None,
    kv_dtype: options.KvDtype = "auto",
    weights: options.Weights = None,
    dataset: options.Dataset = None,
    isl: options.Isl = None,
    osl: options.Osl = None,
    num_requests: options.NumRequests = None,
    concurrency: Annotated[int, typer.Option("--concurrency", help="Most requests in flight; 0 or less: no bound.")] = -1,
    request_rate: options.RequestRate = None,
    burstiness: options.Burstiness = 1.0,
    arrivals: options.Arrivals = None,
    replay: options.Replay = False,
    time_scale: options.TimeScale = 1.0,
    steps: Steps = None,
    warmup: options.Warmup = 2,
    device: options.Device = "auto",
    max_batch_size: options.MaxBatchSize = None,
    max_num_tokens: options.MaxNumTokens = None,
    max_seq_len: options.MaxSeqLen = None,
    kv_cache_fraction: options.KvFraction = 0.9,
    policy: options.Policy = "guaranteed_no_evict",
    nvtx_detail: options.NvtxDetail = "off",
    seed: options.Seed = 0,
    nsys: Annotated[bool, typer.Option("--nsys", help="Record with Nsight Systems; keeps its report too.")] = False,
    ncu: Annotated[str | None, typer.Option("--ncu", help="Also read hardware counters of this kernel or op, with Nsight Compute.")] = None,
    inside_nsys: Annotated[bool, typer.Option("--inside-nsys", hidden=True)] = False,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for profile, trace and page (default: profiles/<time>).")] = None,
) -> None:
    """See kernel by kernel where a cell's time goes, and how near the hardware's limits."""
    import time
    from dataclasses import replace

    from rich.console import Console

    from trtllm_bench.analysis.cells import find_cell
    from trtllm_bench.measure.from_row import wishes_of
    from trtllm_bench.measure.session import Load
    from trtllm_bench.measure.single import case_of
    from trtllm_bench.measure.spec import (
        EngineWish,
        WorkloadWish,
        check_target,
        default_model,
        longest,
        make_workload,
        rate_of,
        runs_on_gpu,
        vocabulary_of,
    )
    from trtllm_bench.profiling.cell import ProfileRequest, profile_cell, with_counters
    from trtllm_bench.profiling.nsys import inside, profile_with_nsys, without
    from trtllm_bench.profiling.show import print_profile
    from trtllm_bench.profiling.window import Window
    from trtllm_bench.sweep.profiles import FOLDER, link
    from trtllm_bench.tracing.nsight import find

    rate = options.rate_from(request_rate, burstiness)
    window = None if steps is None else Window.parse(steps)
    measured = None if cell is None else find_cell(cell)
    if measured is not None:
        if replay or any(
            flag is not None for flag in (model, engine_dir, precision, dataset, isl, osl, num_requests, request_rate, arrivals)
        ):
            raise BenchError("CELL already says model, engine and load; leave their flags out, or leave CELL out")
        wish, wanted_load, load = wishes_of(measured.row)
        wish = replace(wish, nvtx_detail=nvtx_detail)
    else:
        lengths = case_of(isl, osl, dataset)
        bound = max(concurrency, 0)
        requests = num_requests or (None if dataset is not None else max(32, 4 * bound))
        batch = max_batch_size or bound or (None if engine_dir is not None else min(requests or 256, 256))
        name, kind = default_model(model, precision, engine_dir, "native", device, kv_dtype)
        sizes = (batch, max_num_tokens, max_seq_len)
        wish = EngineWish(name, kind, engine_dir, weights, device, *sizes, kv_cache_fraction, policy, seed, kv_dtype, nvtx_detail)
        wanted_load = WorkloadWish(requests, *lengths, dataset, rate, burstiness, replay, time_scale, seed, arrivals)
        load = Load(bound, wanted_load.open_loop, warmup)
    check_target("native", wish)
    workload = make_workload(wanted_load, vocabulary_of("native", wish))
    if wish.max_seq_len is None and wish.engine_dir is None:
        wish = replace(wish, max_seq_len=longest(workload))
    line = " ".join(["trtllm-bench", *sys.argv[1:]])
    wanted = ProfileRequest(wish, workload, load, window, rate_of(wanted_load, workload), line)
    store = measured.store if measured is not None and out is None else None
    if measured is not None and store is not None:
        folder = store.path / FOLDER / measured.row.key
    else:
        folder = out or Path(FOLDER) / time.strftime("%Y%m%d-%H%M%S")
    console = Console(highlight=False)
    if inside_nsys:
        inside(wanted, folder)
        return
    for tool in ["nsys"] * nsys + ["ncu"] * (ncu is not None):
        find(tool)
        if not runs_on_gpu("native", wish.device):
            raise BenchError(f"--{tool} looks into a GPU and this cell runs on the CPU; leave it out")
    if nsys:
        profile = profile_with_nsys(without(sys.argv[1:], ("--nsys",), ("--ncu", "--out")), folder, line)
    else:
        profile = profile_cell(wanted, folder)
    if ncu is not None:
        profile = with_counters(profile, wanted, ncu, folder)
    if measured is not None and store is not None:
        link(store, measured.row.key, Path(FOLDER) / measured.row.key)
    print_profile(profile, console)
    console.print(f"\npage, trace (open in ui.perfetto.dev) and data: {folder}", soft_wrap=True)
