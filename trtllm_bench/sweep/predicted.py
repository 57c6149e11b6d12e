"""`sweep --predict`: the same grid by the step model instead of a GPU, one row per cell, for a GPU that need not be here.

A stored prediction is told from a measurement by its target, `predicted`, and by its GPU's name; `extra` says what it rests on, and within
which interval its throughput is likely to be (`prediction_error.py`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, cast

from trtllm_bench.analysis.cells import hardware_of, layout_of, quantization_of
from trtllm_bench.analysis.predict import predict
from trtllm_bench.analysis.prediction_error import interval_for
from trtllm_bench.analysis.step_constants import constants_for
from trtllm_bench.analysis.step_model import hosts_of, is_quantized, widens
from trtllm_bench.errors import BenchError
from trtllm_bench.measure.rows import cell_of, reason_of, varied
from trtllm_bench.measure.workload import workload_of
from trtllm_bench.roofline.hardware import GPUS, Hardware, published
from trtllm_bench.spec.measurement import EngineSpec, MeasurementSpec
from trtllm_bench.sweep.settle import fitted
from trtllm_bench.sweep.spec import SweepSpec
from trtllm_bench.targets.native import model_of
from trtllm_bench.targets.native_engine import profile_for
from trtllm_bench.targets.registry import Identity
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import ParallelLayout, Plan
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.quantization.scheme import WIDE
from trtllm_engines.runtime.scheduler import Policy
from trtllm_kernels.lowering.packed_triton import MMA_PADDED
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import INTERVAL, PREDICTED, Row
from trtllm_results.store.table import Store


def notes_on(rows: Sequence[Row]) -> list[str]:
    """Notes of the rows, to print below a predicted table. A note that does not hold for all precisions names those it holds for."""
    precisions = list(dict.fromkeys(row.cell.precision for row in rows if row.status == "ok"))
    of: dict[str, dict[str, None]] = {}
    for row in rows:
        for note in row.extra.get(PREDICTED, ()):
            of.setdefault(note, {})[row.cell.precision] = None
    return [note if len(named) == len(precisions) else f"{', '.join(named)}: {note}" for note, named in of.items()]


def _notes(plan: Plan, layout: ParallelLayout, hardware: Hardware) -> list[str]:
    constants, gpu = constants_for(hardware.name, quantized=is_quantized(plan)), hardware.name.upper()
    alone = f"{gpu}: from its data sheet alone; no run on it, ours or published, was compared"
    few = (
        f"packed weights of up to {MMA_PADDED[-1]} tokens take a kernel that never ran on {gpu}: "
        "it is assumed to read as fast as the library and to decode as fast as Hopper's"
    )
    many = f"packed weights are made wide in every step of more than {MMA_PADDED[-1]} tokens"
    through_memory = layout.tp if layout.group_way == "memory" else 1
    hosts = hosts_of(layout, hardware)
    return [
        "predicted from counts and ceilings, not measured",
        *([alone] if hardware.sheet_only else []),
        *([constants.note] if constants.note else []),
        *([constants.engine] if constants.fitted and constants.earlier else []),
        *([few, many] if widens(plan, hardware) else []),
        *(["communication is that of two H200"] if through_memory > 1 else []),
        *(["communication of more than two GPUs is by formula"] if through_memory > 2 else []),
        *(["what stages send is by formula"] if layout.pp > 1 and layout.pipe_way == "memory" else []),
        *([f"{hosts.note}, and the interval does not hold"] if hosts is not None else []),
    ]


def keep_predictions(store: Store, rows: Sequence[Row]) -> int:
    """Stores the predictions that `store` lacks (by cell key: the same sources predict the same). Returns how many were new."""
    known = store.finished()
    new = [row for row in rows if (row.key, row.repeat) not in known]
    store.append(*new)
    return len(new)


def hardware_for(gpu: str | None, environment: Environment) -> Hardware:
    """The GPU named, else the one here. Raises `BenchError` for neither."""
    if gpu is not None:
        return published(gpu)
    if not environment.gpu:
        raise BenchError(f"--predict needs to know for which GPU: add --gpu with one of {', '.join(GPUS)}")
    return hardware_of(environment)


def predict_sweep(
    spec: SweepSpec, hardware: Hardware, command: str, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Row]:
    """One row per cell of the grid; a cell that could not run (no such precision, no memory) says why. `progress` is told how many are done
    of how many."""
    rows: list[Row] = []
    run_id = uuid.uuid4().hex[:12]
    for grid_points in spec.engines():
        points = fitted(grid_points)
        nothing_to_run = all(point.refused for point in points)
        plans, error = ([], None) if nothing_to_run else _plans(points[0].spec.engine, hardware)
        for point in points:
            reason = BenchError(point.refused) if point.refused else error
            rows.append(_row(point.spec, tuple(spec.axes), [] if point.refused else plans, reason, hardware, run_id, command))
            progress(len(rows), len(spec.points))
    return rows


def _plans(engine: EngineSpec, hardware: Hardware) -> tuple[list[Plan], Exception | None]:
    """Of each stage; none where the engine cannot be, with the reason."""
    try:
        profile = profile_for(engine, "cuda")
        config = resolve_model(model_of(engine)).config
        source = {"kind": "dummy", "seed": 0}
        arches = (hardware.arch,) if hardware.arch else ("cpu",)
        layout = ParallelLayout(engine.tp, engine.pp, engine.nnodes or 1)
        hosts_of(layout, hardware)
        types = {"kv_dtype": engine.kv_dtype, "context_attention": engine.context_attention or WIDE}
        precision = quantization_of(model_of(engine), str(engine.precision), arches=arches, **types)
        settings: dict[str, Any] = {"arches": arches, "weights_source": source, "layout": layout, **types}
        return [compile_model(config, precision, profile, stage=stage, **settings).plan for stage in range(layout.pp)], None
    except ValueError as error:
        return [], error


def _row(
    spec: MeasurementSpec,
    axes: Sequence[str],
    plans: list[Plan],
    error: Exception | None,
    hardware: Hardware,
    run_id: str,
    command: str,
) -> Row:
    """A cell that cannot run has no workload hash unless it is of a dataset: prompts may take longer to draw than all else here."""
    engine = spec.engine
    identity = Identity(PREDICTED, kv_dtype=plans[0].kv_dtype if plans else "", places=engine.max_batch_size or 0, engine=engine)
    workload = workload_of(spec) if plans or spec.workload.dataset else None
    environment = _environment(hardware)
    figures: dict[str, float] = {}

    def run(pace: float) -> dict[str, float]:
        assert workload is not None
        figures, _ = predict(
            plans,
            hardware,
            workload,
            concurrency=spec.load.concurrency,
            open_loop=spec.workload.open_loop,
            policy=cast(Policy, engine.policy),
            kv_cache_fraction=engine.kv_cache_fraction,
            replicas=engine.replicas,
            slo_ms=spec.load.slo_ms or None,
            pace=pace,
        )
        return figures

    if plans and workload is not None:
        try:
            figures = run(1.0)
        except ValueError as problem:
            error = problem
    cell = cell_of(spec, identity, workload if error is None or spec.workload.dataset else None)
    if error is not None:
        asked = varied(spec, cell, axes)
        return Row(cell, environment, status="failed", reason=reason_of(error), run_id=run_id, command=command, extra=asked)
    sequences = -(-spec.load.concurrency // engine.replicas) or engine.max_batch_size or 0
    interval = interval_for(hardware, sequences, engine.tp * engine.pp, is_quantized(plans[0]))
    rate = figures["output_tokens_per_s"]
    low, high = interval.around(rate)
    if spec.workload.open_loop:  # as far as arrivals decide the throughput, an error of the model does not change it
        ends = [run(pace)["output_tokens_per_s"] for pace in (interval.factor, 1 / interval.factor)]
        low, high = min(rate, *ends), max(rate, *ends)  # where a step's length moves which arrivals wait for it, faster may end later
    basis = {
        **varied(spec, cell, axes),
        PREDICTED: [*_notes(plans[0], layout_of(cell), hardware), interval.note],
        INTERVAL: {"low": low, "high": high, "cover": interval.cover, "errors": interval.errors, "note": interval.note},
    }
    return Row(cell, environment, figures=figures, run_id=run_id, command=command, extra=basis)


def _environment(hardware: Hardware) -> Environment:
    """The GPU predicted for, and the sources that predict; this machine has no part in the result."""
    here = Environment.capture(use_gpu=False)
    names = ("bench", "source_hash", "git_revision", "git_dirty")
    by = "data sheet only, by the step model" if hardware.sheet_only else "by the step model"
    return Environment(gpu=f"{hardware.name.upper()} ({by})", **{name: getattr(here, name) for name in names})
