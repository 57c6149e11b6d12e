"""`sweep`: measure a grid of cells, keep each as it ends, and print the table.

Flags and `sweep.toml` say the same things; `sweep/spec.py` has the fields. Defaults depend on the machine: the 8-billion-parameter Llama in
bf16 on a GPU, the built-in tiny model in fp32 on a CPU, where the figures test the tool and not a GPU.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import FAILURE, INTERRUPTED, BenchError

Text = str | None
Whole = int | None

DEFAULTS_GPU = {"model": "llama-3.1-8b", "precision": "bf16", "batch_size": (1, 8, 64), "isl": (128, 2048), "osl": (128,)}
DEFAULTS_SERVER = {"model": "served", "precision": "served", "batch_size": (1, 8, 64)}
"""A server keeps its model and precision to itself; `--model` and `--precision` then only label the rows."""
DEFAULTS_CPU = {"model": "tiny-llama", "precision": "fp32", "batch_size": (1, 8), "isl": (32, 128), "osl": (32,)}


def command(
    spec: Annotated[Path | None, typer.Argument(metavar="[SWEEP.TOML]", help="Specification; flags win over it.")] = None,
    model: options.Model = None,
    precision: Annotated[Text, typer.Option("--precision", help="List, such as bf16,fp8.")] = None,
    kv_dtype: Annotated[Text, typer.Option("--kv-dtype", help=options.KV_DTYPE_HELP)] = None,
    batch_size: Annotated[Text, typer.Option("--batch-size", "--concurrency", help="List: sequences in flight.")] = None,
    isl: Annotated[Text, typer.Option("--isl", help="List: input lengths, tokens.")] = None,
    osl: Annotated[Text, typer.Option("--osl", help="List: output lengths, tokens.")] = None,
    request_rate: Annotated[Text, typer.Option("--request-rate", help="List: requests/s of an open loop (Poisson).")] = None,
    burstiness: Annotated[float | None, typer.Option("--burstiness", help="Shape of gamma gaps; 1 is Poisson.")] = None,
    dataset: Annotated[Text, typer.Option("--dataset", help="Dataset, trace or workload .toml, instead of --isl/--osl.")] = None,
    arrivals: Annotated[Text, typer.Option("--arrivals", help=options.ARRIVALS_HELP)] = None,
    replay: Annotated[bool | None, typer.Option("--replay", help="Send at the dataset's own arrival times.")] = None,
    time_scale: Annotated[
        float | None, typer.Option("--time-scale", help="Multiply the dataset's times; 0.1 is ten times as fast.")
    ] = None,
    target: Annotated[Text, typer.Option("--target", help="native (our engine), a server's address, null or fake.")] = None,
    repeats: Annotated[Whole, typer.Option("--repeats", help="Measurements of each cell (default 1).")] = None,
    num_requests: Annotated[Whole, typer.Option("--num-requests", help="Requests a measurement (default: 4 full batches).")] = None,
    duration: Annotated[float | None, typer.Option("--duration", help="Seconds of arrivals at each rate, instead of a number.")] = None,
    goodput: Annotated[Text, typer.Option("--goodput", help="Limits in ms, such as ttft:200,tpot:50,e2e:5000.")] = None,
    warmup: Annotated[Whole, typer.Option("--warmup", help="Requests run before each measurement (default: a full batch).")] = None,
    max_lag_ms: Annotated[float | None, typer.Option("--max-lag-ms", help="Void a cell when the driver sends this late (p99).")] = None,
    warmup_seconds: Annotated[
        float | None, typer.Option("--warmup-seconds", help="Also leave out requests of a run's first seconds.")
    ] = None,
    weights: options.Weights = None,
    device: Annotated[Text, typer.Option("--device", help="auto, cpu or cuda.")] = None,
    policy: Annotated[Text, typer.Option("--scheduler-policy", help="guaranteed_no_evict, max_utilization, static_batch.")] = None,
    nvtx_detail: Annotated[Text, typer.Option("--nvtx-detail", help="NVTX ranges: off, step, layer or op.")] = None,
    max_num_tokens: Annotated[Whole, typer.Option("--max-num-tokens", help="Most tokens in a step.")] = None,
    kv_cache_fraction: Annotated[
        float | None, typer.Option("--kv-cache-free-gpu-mem-fraction", help="KV cache share of free memory.")
    ] = None,
    seed: Annotated[Whole, typer.Option("--seed", help="Seed of prompts, arrivals and dummy weights.")] = None,
    profile: Annotated[Text, typer.Option("--profile", help="Then profile cells: worst, all, or how many of the worst.")] = None,
    predict: Annotated[bool, typer.Option("--predict", help="Measure nothing: predict the grid by the step model.")] = False,
    gpu: Annotated[Text, typer.Option("--gpu", help="GPU of --predict: a100, l40s, h100 or h200 (default: the one here).")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the results (default: runs/<time>).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in --out; finished cells are not measured again.")] = False,
) -> None:
    """Measure a grid of precision, batch and lengths into a table."""
    given = dict(locals())
    flags = {name: value for name, value in given.items() if name not in ("spec", "out", "resume", "profile", "predict", "gpu")}
    if gpu is not None and not predict:
        raise BenchError("--gpu names the GPU of a prediction; add --predict, or leave it out to measure on this machine's")
    if predict:
        _predict(spec, flags, gpu)
    else:
        _run(spec, flags, out, resume, profile)


def _predict(toml: Path | None, flags: dict[str, Any], gpu: str | None) -> None:
    from rich.console import Console

    from trtllm_bench.analysis.step_constants import constants_for
    from trtllm_bench.measure.spec import longest, make_workload
    from trtllm_bench.sweep.predicted import hardware_for, predict_sweep
    from trtllm_bench.sweep.spec import load_spec
    from trtllm_bench.sweep.table import print_table
    from trtllm_bench.targets.native import vocabulary_of
    from trtllm_results.record.environment import Environment

    spec = load_spec(flags, toml, None, DEFAULTS_GPU)
    hardware = hardware_for(gpu, Environment.capture(use_gpu=gpu is None))
    vocabulary = vocabulary_of(spec.engine_wish(spec.precision[0], 1))
    workloads = {case: make_workload(spec.workload_wish(case), vocabulary) for case in spec.cases()}
    max_seq_len = max(longest(workload) for workload in workloads.values())
    console = Console(highlight=False)
    rows = predict_sweep(spec, hardware, max_seq_len, workloads.__getitem__, " ".join(["trtllm-bench", *sys.argv[1:]]))
    print_table(rows, console)
    note = constants_for(hardware.name).note
    console.print(f"predicted from counts and ceilings, not measured{'; ' if note else ''}{note}", style="dim")
    if not any(row.status == "ok" for row in rows):
        raise typer.Exit(FAILURE)


def _run(toml: Path | None, flags: dict[str, Any], out: Path | None, resume: bool, profile: str | None) -> None:
    import time

    from rich.console import Console

    from trtllm_bench.machine import has_gpu
    from trtllm_bench.measure.spec import check_target, is_url, longest, make_workload, open_session, runs_on_gpu, vocabulary_of
    from trtllm_bench.sweep.progress import SweepView
    from trtllm_bench.sweep.runner import Sweep
    from trtllm_bench.sweep.spec import SPEC_FILE, load_spec
    from trtllm_bench.sweep.table import print_table
    from trtllm_results.record.environment import Environment
    from trtllm_results.store.table import Store

    if resume and out is None:
        raise BenchError("--resume needs --out: the folder of the sweep to go on with")
    folder = out or Path("runs") / time.strftime("%Y%m%d-%H%M%S")
    known = resume and (folder / SPEC_FILE).exists()
    if resume and not folder.is_dir():
        raise BenchError(f"no sweep to resume in {folder}: the folder does not exist")
    if not resume and (folder / SPEC_FILE).exists():
        raise BenchError(f"{folder} already holds a sweep; add --resume to go on with it, or choose another --out")
    if is_url(flags["target"] or ""):
        defaults = DEFAULTS_SERVER
    else:
        defaults = DEFAULTS_GPU if flags["device"] != "cpu" and has_gpu() else DEFAULTS_CPU
    spec = load_spec(flags, toml, folder if known else None, defaults)
    if profile is not None:
        from trtllm_bench.sweep.profiles import parse_which

        parse_which(profile)
        if spec.target != "native":
            raise BenchError(f"--profile looks into our own engine; {spec.target} is another target")

    for precision in spec.precision:
        check_target(spec.target, spec.engine_wish(precision, 1))
    vocabulary = vocabulary_of(spec.target, spec.engine_wish(spec.precision[0], 1))
    max_seq_len = max(spec.isl) + max(spec.osl)
    if spec.dataset is not None:
        max_seq_len = max(longest(make_workload(spec.workload_wish(case), vocabulary)) for case in spec.cases())
    store = Store(folder)
    spec.save(folder)
    console = Console(highlight=False)
    environment = Environment.capture(use_gpu=runs_on_gpu(spec.target, spec.device))
    console.print(f"{spec.model} on {environment.device or 'this machine'}: {_count(spec)}; results in {folder}", soft_wrap=True)
    command_line = " ".join(["trtllm-bench", *sys.argv[1:]])
    try:
        with SweepView(spec, console) as view:
            sweep = Sweep(
                spec=spec,
                store=store,
                open_session=lambda precision: open_session(spec.target, spec.engine_wish(precision, max_seq_len), view.stage),
                make_workload=lambda case: make_workload(spec.workload_wish(case), vocabulary),
                watcher=view,
                environment=environment,
                command=command_line,
            )
            rows = sweep.run()
    except KeyboardInterrupt:
        done = [row for row in store.rows() if row.status == "ok"]
        print(f"\nstopped; {len(done)} finished measurements are kept", file=sys.stderr)
        print(f"go on with: trtllm-bench sweep --resume --out {folder}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    console.print()
    print_table(rows, console)
    if sweep.no_telemetry:
        console.print(sweep.no_telemetry, style="dim", soft_wrap=True)
    console.print(f"\nresults: {folder / 'results.parquet'}, {folder / 'results.json'}", soft_wrap=True)
    if not any(row.status == "ok" for row in rows):
        raise typer.Exit(FAILURE)
    if profile is not None:
        _profile(rows, spec, store, max_seq_len, lambda case: make_workload(spec.workload_wish(case), vocabulary), profile, console)


def _profile(rows: Any, spec: Any, store: Any, max_seq_len: int, make: Any, which: str, console: Any) -> None:
    from trtllm_bench.sweep.profiles import choose, parse_which, profile_cells
    from trtllm_dashboards.profile_page import PAGE_FILE

    def tell(row: Any, found: Any, folder: Path) -> None:
        said = f"not profiled: {found}" if isinstance(found, Exception) else str(folder / PAGE_FILE)
        console.print(f"{row.cell.label}: {said}", soft_wrap=True)

    console.print()
    profile_cells(choose(rows, parse_which(which)), spec, store, max_seq_len, make, None, tell)


def _count(spec: Any) -> str:
    cells = len(list(spec.cases()))
    return f"{cells} cell{'s' * (cells != 1)}" + (f" x {spec.repeats} repeats" if spec.repeats > 1 else "")
