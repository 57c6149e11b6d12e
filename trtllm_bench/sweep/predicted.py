"""`sweep --predict`: the same grid by the step model instead of a GPU, one row a cell, for a GPU that need not be here."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from trtllm_bench.analysis.predict import predict
from trtllm_bench.errors import BenchError
from trtllm_bench.measure.rows import cell_of, reason_of
from trtllm_bench.measure.session import Identity
from trtllm_bench.measure.spec import mean_lengths
from trtllm_bench.roofline.hardware import Hardware, published
from trtllm_bench.sweep.spec import GridCase, SweepSpec
from trtllm_bench.targets.native import DEFAULT_TOKENS
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.plan import Plan, Profile
from trtllm_engines.models.presets import resolve_model
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_workloads.request import Workload

TARGET = "predicted"


def hardware_for(gpu: str | None, environment: Environment) -> Hardware:
    """The GPU named, else the one here. Raises `BenchError` for neither."""
    if gpu is not None:
        return published(gpu)
    from trtllm_bench.analysis.cells import hardware_of

    if not environment.gpu:
        raise BenchError("--predict needs to know for which GPU: add --gpu a100, l40s, h100 or h200")
    return hardware_of(environment)


def predict_sweep(
    spec: SweepSpec, hardware: Hardware, max_seq_len: int, make_workload: Callable[[GridCase], Workload], command: str
) -> list[Row]:
    """A row a cell of the grid; a cell that could not run (no such precision, no memory) says why."""
    rows: list[Row] = []
    run_id = uuid.uuid4().hex[:12]
    for precision in spec.precision:
        cases = [case for case in spec.cases() if case.precision == precision]
        plan, error = _plan(spec, precision, hardware, max_seq_len)
        for case in cases:
            rows.append(_row(spec, case, plan, error, hardware, make_workload(case), run_id, command))
    return rows


def _plan(spec: SweepSpec, precision: str, hardware: Hardware, max_seq_len: int) -> tuple[Plan | None, Exception | None]:
    wish = spec.engine_wish(precision, max_seq_len)
    batch = wish.max_batch_size or 1
    profile = Profile(batch, max(wish.max_num_tokens or DEFAULT_TOKENS["cuda"], batch), max_seq_len)
    try:
        config = resolve_model(spec.model).config
        source = {"kind": "dummy", "seed": 0}
        arches = (hardware.arch,) if hardware.arch else ("cpu",)
        return compile_model(config, precision, profile, arches=arches, weights_source=source, kv_dtype=spec.kv_dtype).plan, None
    except ValueError as error:
        return None, error


def _row(
    spec: SweepSpec,
    case: GridCase,
    plan: Plan | None,
    error: Exception | None,
    hardware: Hardware,
    workload: Workload,
    run_id: str,
    command: str,
) -> Row:
    wish = spec.workload_wish(case)
    isl, osl = mean_lengths(workload)
    identity = Identity(TARGET, kv_dtype="" if plan is None else plan.kv_dtype, settings={"policy": spec.policy})
    cell = cell_of(spec.model, case.precision, identity, workload, batch=case.batch, isl=isl, osl=osl, request_rate=case.request_rate)
    environment = Environment(gpu=f"{hardware.name.upper()} (by the step model)")
    figures: dict[str, float] = {}
    if plan is not None:
        try:
            figures, _ = predict(
                plan,
                hardware,
                workload,
                concurrency=0 if wish.open_loop else case.batch,
                open_loop=wish.open_loop,
                policy=spec.policy,
                kv_cache_fraction=spec.kv_cache_fraction,
            )
        except ValueError as problem:
            error = problem
    if error is not None:
        return Row(cell, environment, status="failed", reason=reason_of(error), run_id=run_id, command=command)
    return Row(cell, environment, figures=figures, run_id=run_id, command=command)
