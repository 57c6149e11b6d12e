"""`sweep`: measure a grid of cells, keep each as it ends, and print the table.

Flags and `sweep.toml` say the same things; both are derived from the knobs in `spec/measurement.py`. Defaults depend on the machine: the
8-billion-parameter Llama in bf16 on a GPU, the built-in tiny model in fp32 on a CPU, where the figures test the tool and not a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trtllm_bench import interrupts
from trtllm_bench.commands import _options as options
from trtllm_bench.errors import FAILURE, BenchError

if TYPE_CHECKING:
    from trtllm_bench.measure.accuracy import AccuracySpec

DEFAULTS_GPU = {"model": "llama-3.1-8b", "precision": "bf16", "concurrency": (1, 8, 64), "isl": (128, 2048), "osl": (128,)}
DEFAULTS_SERVER = {"concurrency": (1, 8, 64)}
"""A server says its model itself, or is asked for the one `--model` names; `--precision` only labels the rows."""
DEFAULTS_CPU = {"model": "tiny-llama", "precision": "fp32", "concurrency": (1, 8), "isl": (32, 128), "osl": (32,)}
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
    gpu: Annotated[str | None, typer.Option("--gpu", help="GPU of --predict: a100, l40s, h100 or h200 (default: the one here).")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the results (default: runs/<time>).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the sweep in --out; finished cells are not measured again.")] = False,
) -> None:
    """Measure a grid of precision, batch and lengths into a table.

    Every flag shown with .. takes a list and may be an axis of the grid.

    Examples:
      trtllm-bench sweep --model llama-3.1-8b --batch-size 1,64 --isl 128,2048
      trtllm-bench sweep --target http://127.0.0.1:8000 --request-rate 1,2,4
    """
    flags = {**asked, "repeats": repeats, "accuracy": accuracy, "accuracy_windows": accuracy_windows}
    if gpu is not None and not predict:
        raise BenchError("--gpu names the GPU of a prediction; add --predict, or leave it out to measure on this machine's")
    if predict:
        _predict(spec, flags, gpu)
    else:
        _run(spec, flags, out, resume, profile)


def _predict(toml: Path | None, flags: dict[str, Any], gpu: str | None) -> None:
    from trtllm_bench.measure.rows import command_line
    from trtllm_bench.sweep.predicted import hardware_for, notes_on, predict_sweep
    from trtllm_bench.sweep.spec import load_spec
    from trtllm_bench.sweep.table import print_table
    from trtllm_dashboards.tables import plain_console
    from trtllm_results.record.environment import Environment

    spec = load_spec(flags, toml, None, DEFAULTS_GPU)
    hardware = hardware_for(gpu, Environment.capture(use_gpu=gpu is None))
    console = plain_console()
    rows = predict_sweep(spec, hardware, command_line())
    print_table(rows, console, spec.axes)
    console.print("; ".join(notes_on(rows, hardware)), style="dim")
    if not any(row.status == "ok" for row in rows):
        raise typer.Exit(FAILURE)


def _run(toml: Path | None, flags: dict[str, Any], out: Path | None, resume: bool, profile: str | None) -> None:
    from contextlib import ExitStack

    from trtllm_bench.sweep.folder import holds_sweep, new_folder, resumed_folder, what_is_kept
    from trtllm_bench.sweep.settle import settled
    from trtllm_bench.sweep.spec import load_spec

    if resume and out is None:
        raise BenchError("--resume needs --out: the folder of the sweep to go on with")
    with ExitStack() as claim:  # from the first look into the folder to the last row, no other sweep may write there
        earlier = None
        if resume and out is not None:
            given = toml is not None or any(value is not None for value in flags.values())
            earlier = claim.enter_context(resumed_folder(out, given))
        known = earlier is not None and holds_sweep(earlier)
        spec = load_spec(flags, toml, earlier if known else None, _defaults)
        engines = settled(spec)
        accuracy = None
        if spec.accuracy:
            from trtllm_bench.measure.accuracy import AccuracySpec, widest_first, with_room

            engines = engines if "max_seq_len" in spec.values else with_room(engines)
            accuracy = AccuracySpec.of(spec.accuracy, spec.accuracy_windows, [points[0].spec for points in engines])
            engines = [engines[index] for index in widest_first([points[0].spec for points in engines])]
        if profile is not None:
            from trtllm_bench.sweep.profiles import check_profiled, parse_which

            parse_which(profile)
            check_profiled(engines)
        folder = earlier or claim.enter_context(new_folder(out))
        with interrupts.keeping(lambda: what_is_kept(folder)):
            _measure(spec, engines, folder, profile, accuracy)


def _measure(spec: Any, engines: Any, folder: Path, profile: str | None, accuracy: AccuracySpec | None) -> None:
    from trtllm_bench.measure.accuracy import SweepAccuracy, engine_of
    from trtllm_bench.measure.rows import command_line
    from trtllm_bench.measure.session import open_session
    from trtllm_bench.measure.workload import notes_of, workload_of
    from trtllm_bench.spec.measurement import safe_target
    from trtllm_bench.sweep.progress import SweepView
    from trtllm_bench.sweep.runner import Sweep
    from trtllm_bench.sweep.table import print_table
    from trtllm_bench.targets.registry import runs_on_gpu
    from trtllm_dashboards.tables import plain_console
    from trtllm_results.record.environment import Environment
    from trtllm_results.store.table import Store

    spec.save(folder)
    console = plain_console()
    environment = Environment.capture(use_gpu=runs_on_gpu(engines[0][0].spec))
    models = ", ".join(dict.fromkeys(points[0].spec.engine.model or safe_target(points[0].spec.target) for points in engines))
    console.print(f"{models} on {environment.device or 'this machine'}: {_count(spec)}; results in {folder}", soft_wrap=True)
    datasets = {point.spec.workload.dataset: point.spec for points in engines for point in points if point.spec.workload.dataset}
    for note in dict.fromkeys(note for one in datasets.values() for note in notes_of(one.workload, workload_of(one))):
        console.print(f"note: {note}", style="yellow", soft_wrap=True)
    with SweepView(spec, console) as view:
        scored = None if accuracy is None else SweepAccuracy(accuracy, folder, view.stage)
        sweep = Sweep(
            engines=engines,
            repeats=spec.repeats,
            store=Store(folder),
            open_session=lambda point: open_session(point, view.stage),
            make_workload=workload_of,
            watcher=view,
            environment=lambda point: Environment.capture(use_gpu=runs_on_gpu(point)),
            command=command_line(),
            accuracy=None if scored is None else lambda session: scored.measure(engine_of(session)),
            accuracy_asked={} if accuracy is None else accuracy.described(),
        )
        rows = sweep.run()
    console.print()
    print_table(rows, console, spec.axes)
    if sweep.no_telemetry:
        console.print(sweep.no_telemetry, style="dim", soft_wrap=True)
    console.print(f"\nresults: {folder / 'results.parquet'}, {folder / 'results.json'}", soft_wrap=True)
    if not any(row.status == "ok" for row in rows):
        raise typer.Exit(FAILURE)
    if profile is not None:
        _profile(rows, sweep, profile, console)


def _defaults(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """By the target asked for and the machine: what to measure where nothing was said."""
    from trtllm_bench.machine import has_gpu
    from trtllm_bench.targets.registry import OWN, target_kind

    target = given.get("target", OWN)
    first = target.split(",")[0].strip() if isinstance(target, str) else str(next(iter(target), "") if isinstance(target, list) else target)
    if target_kind(first).names_its_model:
        return DEFAULTS_SERVER
    return DEFAULTS_GPU if given.get("device") != "cpu" and has_gpu() else DEFAULTS_CPU


def _profile(rows: Any, sweep: Any, which: str, console: Any) -> None:
    from trtllm_bench.sweep.profiles import choose, parse_which, profile_cells
    from trtllm_dashboards.profile_page import PAGE_FILE

    def report(row: Any, outcome: Any, folder: Path) -> None:
        text = f"not profiled: {outcome}" if isinstance(outcome, Exception) else str(folder / PAGE_FILE)
        console.print(f"{row.cell.label}: {text}", soft_wrap=True)

    console.print()
    profile_cells(choose(rows, parse_which(which)), sweep.measured, sweep.store, None, report)


def _count(spec: Any) -> str:
    cells = len(spec.points)
    return f"{cells} cell{'s' * (cells != 1)}" + (f" x {spec.repeats} repeats" if spec.repeats > 1 else "")
