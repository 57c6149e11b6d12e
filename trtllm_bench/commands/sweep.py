"""`sweep`: measure a grid of cells, keep each as it ends, and print the table.

Flags and `sweep.toml` say the same things; both are derived from the knobs in `spec/measurement.py`. Defaults depend on the machine: the
8-billion-parameter Llama in bf16 on a GPU, the built-in tiny model in fp32 on a CPU, where the figures test the tool and not a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtllm_bench import interrupts
from trtllm_bench.commands import _options as options
from trtllm_bench.commands._price import GpuPrice
from trtllm_bench.errors import FAILURE, BenchError
from trtllm_results.gpus import SHEETS

if TYPE_CHECKING:
    from trtllm_bench.measure.accuracy import AccuracySpec
    from trtllm_results.cost import Price

DEFAULTS_GPU = {"model": "llama-3.1-8b", "precision": "bf16", "concurrency": (1, 8, 64), "isl": (128, 2048), "osl": (128,)}
DEFAULTS_SERVER = {"concurrency": (1, 8, 64)}
"""A server says its model itself, or is asked for the one `--model` names; `--precision` only labels the rows."""
DEFAULTS_CPU = {"model": "tiny-llama", "precision": "fp32", "concurrency": (1, 8), "isl": (32, 128), "osl": (32,)}
SCORED_TOKENS = 512
"""Shortest sequence that an engine takes where its accuracy is measured and nobody said another."""
HELP = {
    "precision": "fp32, fp16, bf16, fp8, int4, int8_sq and others (docs/quantization.md), such as bf16,fp8.",
    "concurrency": "Sequences in flight.",
    "num_requests": "Requests per measurement (default: 4 full batches).",
}


@options.measures(grid=True, help=HELP)
def command(
    spec: Annotated[Path | None, typer.Argument(metavar="[SWEEP.TOML]", help="Specification; flags win over it.")] = None,
    asked: options.Asked = MappingProxyType({}),
    repeats: Annotated[int | None, typer.Option("--repeats", help="Measurements of each cell (default 1).")] = None,
    accuracy: Annotated[
        str | None, typer.Option("--accuracy", help="Score each engine too: on a text file, task (a built-in test), or text.txt,task.")
    ] = None,
    accuracy_windows: Annotated[int | None, typer.Option("--accuracy-windows", help="Most windows of that text (default 32).")] = None,
    profile: Annotated[str | None, typer.Option("--profile", help="Then profile cells: worst, all, or how many of the worst.")] = None,
    predict: Annotated[bool, typer.Option("--predict", help="Measure nothing: predict the grid by the step model.")] = False,
    gpu: Annotated[str | None, typer.Option("--gpu", help=f"GPU of --predict: {', '.join(SHEETS)} (default: the one here).")] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="<path>", help="Folder or address (s3://...) for the results (default: runs/<time>).")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in --out; finished cells are not measured again.")] = False,
    cluster: Annotated[str | None, typer.Option("--cluster", help="Run it as jobs: slurm, or local (one after another here).")] = None,
    partition: Annotated[str | None, typer.Option("--partition", help="Slurm partition of the jobs.")] = None,
    account: Annotated[str | None, typer.Option("--account", help="Slurm account of the jobs.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option("--gpus-per-node", min=0, help="GPUs of each job (default: what its layout takes).")
    ] = None,
    timeout_min: Annotated[int | None, typer.Option("--timeout-min", min=1, help="Minutes of each job (default 240).")] = None,
    cluster_option: Annotated[
        list[str] | None, typer.Option("--cluster-option", help="NAME=VALUE of submitit or sbatch, such as qos=high; repeatable.")
    ] = None,
    gpu_price: GpuPrice = None,
) -> None:
    """Measure a grid of precision, batch and lengths into a table.

    Every flag shown with .. takes a list and may be an axis of the grid.

    Examples:
      trtllm-bench sweep --model llama-3.1-8b --batch-size 1,64 --isl 128,2048
      trtllm-bench sweep --target http://127.0.0.1:8000 --request-rate 1,2,4
    """
    flags = {**asked, "repeats": repeats, "accuracy": accuracy, "accuracy_windows": accuracy_windows}
    from trtllm_bench.sweep.jobs import Cluster
    from trtllm_results.cost import Price
    from trtllm_results.store.remote import is_address, open_address

    price = Price.parse(gpu_price) if gpu_price else None
    where = Cluster.of(cluster, partition, account, gpus_per_node, timeout_min, cluster_option)
    for name, given in (("predict", predict), ("profile", profile is not None), ("accuracy", accuracy is not None)):
        if where is not None and given:
            raise BenchError(f"--{name} works on this machine only; leave --cluster out")
    measured = {"profile": profile, "accuracy": accuracy, "repeats": repeats, "resume": resume or None}
    for name, value in measured.items():
        if predict and value is not None:
            raise BenchError(f"--{name} is for measuring, and --predict measures nothing; leave one of them out")
    if accuracy_windows is not None and accuracy is None and spec is None and not resume:
        raise BenchError("--accuracy-windows is for a text to score; give it with --accuracy, or leave it out")
    if gpu is not None and not predict:
        raise BenchError("--gpu names the GPU of a prediction; add --predict, or leave it out to measure on this machine's")
    address = out if out is not None and is_address(out) else None
    folder = None if out is None or address is not None else Path(out)
    if address is not None:
        open_address(address)  # what cannot be is told before anything is measured
    if predict:
        _predict(spec, flags, gpu, out, price)
    elif where is not None:
        if address is not None:
            raise BenchError("--cluster measures into a folder that its jobs share; give one with --out, and copy it afterwards")
        _submit(spec, flags, folder, resume, where, price)
    else:
        _run(spec, flags, folder, resume, profile, address, price)


def _predict(toml: Path | None, flags: dict[str, Any], gpu: str | None, out: str | None, price: Price | None) -> None:
    from functools import partial

    from trtllm_bench.build_progress import build_progress
    from trtllm_bench.measure.place import open_store
    from trtllm_bench.measure.rows import command_line
    from trtllm_bench.sweep.predicted import hardware_for, keep_predictions, notes_on, predict_sweep
    from trtllm_bench.sweep.spec import load_spec
    from trtllm_bench.sweep.table import print_table
    from trtllm_bench.targets.registry import is_own
    from trtllm_dashboards.tables import plain_console, sentence
    from trtllm_results.record.environment import Environment

    spec = load_spec(flags, toml, None, DEFAULTS_GPU)
    if other := next((points[0].spec.target for points in spec.engines() if not is_own(points[0].spec.target)), None):
        raise BenchError(f"--predict is for this tool's engine, and the target is {other!r}; leave one of them out")
    store = None if out is None else open_store(out)
    hardware = hardware_for(gpu, Environment.capture(use_gpu=gpu is None))
    console = plain_console()
    with build_progress() as report:
        rows = predict_sweep(spec, hardware, command_line(), partial(report, "cells"))
    print_table(rows, console, spec.axes, price)
    sentence(console, "; ".join(notes_on(rows)), "dim")
    if store is not None:
        new = keep_predictions(store, rows)
        store.finish()
        console.print(f"{new} of {len(rows)} predicted rows are new and written to {store.place}", soft_wrap=True)
    if not any(row.status == "ok" for row in rows):
        raise typer.Exit(FAILURE)


def _run(
    toml: Path | None, flags: dict[str, Any], out: Path | None, resume: bool, profile: str | None, address: str | None, price: Price | None
) -> None:
    from contextlib import ExitStack

    from trtllm_bench.sweep.folder import what_is_kept
    from trtllm_bench.sweep.settle import settled

    engines: Any = None
    accuracy: AccuracySpec | None = None

    def settle(spec: Any) -> None:
        nonlocal engines, accuracy
        engines = settled(spec)
        if spec.accuracy:
            from trtllm_bench.measure.accuracy import AccuracySpec, widest_first
            from trtllm_bench.sweep.settle import with_room

            engines = engines if "max_seq_len" in spec.values else with_room(engines, SCORED_TOKENS)
            accuracy = AccuracySpec.of(spec.accuracy, spec.accuracy_windows, [points[0].spec for points in engines])
            engines = [engines[index] for index in widest_first([points[0].spec for points in engines])]
        if profile is not None:
            from trtllm_bench.sweep.profiles import check_profiled, parse_which

            parse_which(profile)
            check_profiled(engines)

    with ExitStack() as claim:
        spec, folder = _claimed(claim, toml, flags, out, resume, _defaults, settle)
        with interrupts.keeping(lambda: what_is_kept(folder)):
            _measure(spec, engines, folder, profile, address, accuracy, price)


def _claimed(
    claim: Any, toml: Path | None, flags: dict[str, Any], out: Path | None, resume: bool, defaults: Any, check: Any
) -> tuple[Any, Path]:
    """The specification, once `check` has passed it, and the sweep's folder: from the first look into it to the end of `claim`, no other
    sweep may write there, and a resumed one works where it was started if its relative paths lead nowhere from here."""
    from contextlib import chdir

    from trtllm_bench.sweep.folder import folder_of_paths, holds_sweep, new_folder, resumed_folder
    from trtllm_bench.sweep.spec import load_spec

    if resume and out is None:
        raise BenchError("--resume needs --out: the folder of the sweep to go on with")
    earlier = None
    if resume and out is not None:
        given = toml is not None or any(value is not None for value in flags.values())
        earlier = claim.enter_context(resumed_folder(out, given))
    known = earlier is not None and holds_sweep(earlier)
    if known and earlier is not None and (there := folder_of_paths(earlier)) is not None:
        if given:
            raise BenchError(f"the sweep in {out} was started in {there}, where its paths lead; to give it other settings, go on there")
        earlier = earlier.absolute()
        claim.enter_context(chdir(there))
    spec = load_spec(flags, toml, earlier if known else None, defaults)
    check(spec)
    return spec, earlier or claim.enter_context(new_folder(out))


def _measure(
    spec: Any, engines: Any, folder: Path, profile: str | None, address: str | None, accuracy: AccuracySpec | None, price: Price | None
) -> None:
    from trtllm_bench.measure.accuracy import SweepAccuracy
    from trtllm_bench.measure.rows import command_line
    from trtllm_bench.measure.workload import notes_of, workload_of
    from trtllm_bench.spec.measurement import safe_target
    from trtllm_bench.sweep.here import sweep_here
    from trtllm_bench.sweep.progress import SweepView
    from trtllm_bench.targets.registry import runs_on_gpu
    from trtllm_dashboards.tables import plain_console, sentence
    from trtllm_results.record.environment import Environment
    from trtllm_results.store.table import MirroredStore, Store

    spec.save(folder)
    store = Store(folder) if address is None else MirroredStore(folder, address)
    console = plain_console()
    environment = Environment.capture(use_gpu=runs_on_gpu(engines[0][0].spec))
    models = ", ".join(dict.fromkeys(points[0].spec.engine.model or safe_target(points[0].spec.target) for points in engines))
    console.print(f"{models} on {environment.device or 'this machine'}: {_count(spec)}; results in {folder}", soft_wrap=True)
    datasets = {point.spec.workload.dataset: point.spec for points in engines for point in points if point.spec.workload.dataset}
    for note in dict.fromkeys(note for one in datasets.values() for note in notes_of(one.workload, workload_of(one))):
        sentence(console, f"note: {note}", "yellow")
    with SweepView(spec, console, Store(folder)) as view:
        scored = None if accuracy is None else SweepAccuracy(accuracy, folder, view.stage)
        sweep = sweep_here(store, spec, engines, view, command_line(), scored)
        rows = sweep.run()
    try:
        _report(rows, spec, folder, console, price, sweep.no_telemetry)
    finally:
        store.finish()
    if address is not None:
        console.print(f"copied to {store.place}", soft_wrap=True)
    if profile is not None and any(row.status == "ok" for row in rows):
        _profile(rows, sweep, profile, console)
    _fail_where_any_is_missing(rows)


def _fail_where_any_is_missing(rows: Any) -> None:
    """Raises `typer.Exit` where a measurement has no result: a script that goes on would take the grid for whole."""
    if any(row.status != "ok" for row in rows):
        raise typer.Exit(FAILURE)


def _report(rows: Any, spec: Any, folder: Path, console: Any, price: Price | None, note: str = "") -> None:
    """The table, where it is kept, and how many measurements have no result."""
    from trtllm_bench.sweep.table import print_table
    from trtllm_dashboards.tables import sentence
    from trtllm_results.store.layout import ROWS, ROWS_JSON

    console.print()
    print_table(rows, console, spec.axes, price)
    if note:
        sentence(console, note, "dim")
    console.print(f"\nresults: {folder / ROWS}, {folder / ROWS_JSON}", soft_wrap=True)
    missing = sum(row.status != "ok" for row in rows)
    if 0 < missing < len(rows):
        console.print(
            f"{missing} of {len(rows)} measurements have no result; --resume tries these again and keeps the others", soft_wrap=True
        )


def _submit(toml: Path | None, flags: dict[str, Any], out: Path | None, resume: bool, cluster: Any, price: Price | None) -> None:
    """The sweep as jobs of a cluster."""
    from contextlib import ExitStack

    from trtllm_bench.measure.rows import RowMaker
    from trtllm_bench.sweep.cluster import ClusterSweep, check
    from trtllm_bench.sweep.cluster_view import ClusterView
    from trtllm_bench.sweep.folder import what_is_kept
    from trtllm_bench.sweep.jobs import SLURM
    from trtllm_bench.sweep.submit import check_submits, executor_of
    from trtllm_dashboards.tables import plain_console
    from trtllm_results.record.environment import Environment

    def check_all(spec: Any) -> None:
        check(spec)
        check_submits(cluster)

    with ExitStack() as claim:
        defaults = partial(_defaults, on_gpus=True) if cluster.kind == SLURM else _defaults
        spec, folder = _claimed(claim, toml, flags, out, resume, defaults, check_all)
        console = plain_console()
        view = ClusterView(console)
        sweep = ClusterSweep(spec, cluster, folder, view, RowMaker(Environment.capture(use_gpu=False), axes=tuple(spec.axes)))
        executor_of(cluster, sweep.parts[0])  # its parameters are checked before anything is submitted
        spec.save(folder)
        jobs = len(sweep.parts)
        console.print(f"{_count(spec)} as {jobs} job{'s' * (jobs != 1)} ({cluster.kind}); results in {folder}", soft_wrap=True)
        with interrupts.keeping(lambda: what_is_kept(folder, cluster.flags)), view.showing(sweep.parts):
            rows = sweep.run()
        _report(rows, spec, folder, console, price)
    _fail_where_any_is_missing(rows)


def _defaults(given: Mapping[str, Any], on_gpus: bool = False) -> Mapping[str, Any]:
    """By the target asked for and the machine: what to measure where nothing was said. `on_gpus`: whatever this machine has."""
    from trtllm_bench.machine import has_gpu
    from trtllm_bench.targets.registry import target_kind
    from trtllm_results.record.cell import OWN_TARGET

    target = given.get("target", OWN_TARGET)
    first = target.split(",")[0].strip() if isinstance(target, str) else str(next(iter(target), "") if isinstance(target, list) else target)
    if target_kind(first).names_its_model:
        return DEFAULTS_SERVER
    return DEFAULTS_GPU if given.get("device") != "cpu" and (on_gpus or has_gpu()) else DEFAULTS_CPU


def _profile(rows: Any, sweep: Any, which: str, console: Any) -> None:
    from trtllm_bench.sweep.profiles import choose, parse_which, profile_cells
    from trtllm_dashboards.profile_page import PAGE_FILE

    def report(row: Any, outcome: Any, folder: Path) -> None:
        text = f"not profiled: {outcome}" if isinstance(outcome, Exception) else str(folder / PAGE_FILE)
        console.print(f"{row.label}: {text}", soft_wrap=True)

    console.print()
    profile_cells(choose(rows, parse_which(which)), sweep.measured, sweep.store, None, report)


def _count(spec: Any) -> str:
    cells = len(spec.points)
    return f"{cells} cell{'s' * (cells != 1)}" + (f" x {spec.repeats} repeats" if spec.repeats > 1 else "")
