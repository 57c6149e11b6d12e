"""From a measurement, or a failure, to a row of the store."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from trtllm_bench.measure.session import Measurement
from trtllm_bench.measure.workload import rate_of
from trtllm_bench.spec.measurement import MeasurementSpec, all_knobs, safe_arguments
from trtllm_bench.targets.registry import Identity, runs_on_gpu
from trtllm_results.record.cell import ALIGN_FIELDS, CELL_FIELDS, Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import OUR_TARGETS, VARIED, Row
from trtllm_results.store.layout import SideKind
from trtllm_results.store.table import Store
from trtllm_workloads.request import Workload

MAX_REASON = 300
ASKED = "asked"
"""Where a row keeps what was asked for and is not part of its identity."""
TOLD = frozenset({*ALIGN_FIELDS, "concurrency", "dataset", "target"})
"""Knobs that fields of a cell already hold (`concurrency` is in `batch`, `dataset` in `workload`)."""
BY_GPU = "by_gpu"
"""Where a row keeps telemetry of each GPU of a cell that took several."""


def cell_of(spec: MeasurementSpec, identity: Identity, workload: Workload | None) -> Cell:
    """The cell that a measurement belongs to. `workload` None: it could not be made; the cell then only names the case.

    `batch` is the bound on sequences in flight; in an open loop without one, what the target serves at once. The cache's type of our
    own engine, measured or predicted, is the one asked for where the engine could not be made and does not tell it.
    """
    engine, asked = identity.engine or spec.engine, spec.workload
    kv_asked = engine.kv_dtype if identity.target in OUR_TARGETS and engine.kv_dtype != "auto" else ""
    isl, osl = asked.lengths if workload is None else workload.mean_lengths
    return Cell(
        model=spec.engine.model or identity.model,
        precision=spec.engine.precision or identity.precision,
        batch=spec.load.concurrency or (identity.places if asked.open_loop else 0),
        isl=isl,
        osl=osl,
        kv_dtype=identity.kv_dtype or kv_asked,
        tp=engine.tp,
        pp=engine.pp,
        replicas=engine.replicas,
        num_requests=len(workload) if workload is not None else 0,
        request_rate=asked.request_rate if workload is None else rate_of(asked, workload),
        workload=workload.name if workload is not None else "",
        workload_hash=workload.content_hash if workload is not None else "",
        target=identity.target,
        target_version=identity.target_version,
        engine_fingerprint=identity.engine_fingerprint,
        weights_hash=identity.weights_hash,
        settings={**identity.settings, **spec.identity_settings(identity.engine)},
    )


def command_line() -> str:
    """What was typed, without its secrets."""
    command = " ".join(["trtllm-bench", *safe_arguments(sys.argv[1:])])
    return command.encode(errors="backslashreplace").decode()  # a file's name may hold bytes that are not text


@dataclass(frozen=True)
class RowMaker:
    """Makes the rows of one run."""

    environment: Environment
    command: str = field(default_factory=command_line)
    axes: tuple[str, ...] = ()
    """Knobs that the run's sweep varies."""
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @classmethod
    def here(cls, spec: MeasurementSpec) -> Self:
        """For measurements on this machine."""
        return cls(Environment.capture(use_gpu=runs_on_gpu(spec)))

    def measured(self, spec: MeasurementSpec, cell: Cell, repeat: int, measurement: Measurement) -> Row:
        return Row(
            cell=cell,
            environment=self.environment,
            repeat=repeat,
            status="void" if measurement.void else "ok",
            reason=measurement.void,
            figures=measurement.figures,
            warnings=measurement.warnings,
            run_id=self.run_id,
            command=self.command,
            extra={
                **_asked(spec),
                **varied(spec, cell, self.axes),
                **({BY_GPU: list(measurement.by_gpu)} if measurement.by_gpu else {}),
            },
        )

    def failed(self, spec: MeasurementSpec, cell: Cell, repeat: int, error: Exception) -> Row:
        return Row(
            cell=cell,
            environment=self.environment,
            repeat=repeat,
            status="oom" if out_of_memory(error) else "failed",
            reason=reason_of(error),
            run_id=self.run_id,
            command=self.command,
            extra={**_asked(spec), **varied(spec, cell, self.axes)},
        )


def _asked(spec: MeasurementSpec) -> Mapping[str, Any]:
    other = {name: value for name, value in spec.other_settings().items() if name not in CELL_FIELDS}
    return {ASKED: other} if other else {}


def varied(spec: MeasurementSpec, cell: Cell, axes: Iterable[str]) -> Mapping[str, Any]:
    """For `Row.extra`: the values of those `axes` of a sweep that are in neither `Cell.align` nor the target; empty without any."""
    knobs = {one.name: one for one in all_knobs()}
    values = {}
    for name in axes:
        if name in TOLD or knobs[name].knob.secret:
            continue
        value = cell.settings.get(name, spec.value_of(name))
        values[name] = value if value is None or isinstance(value, str | int | float) else str(value)
    return {VARIED: values} if values else {}


def keep(store: Store, row: Row, measurement: Measurement | None) -> None:
    """Stores a row with its side tables."""
    sides: dict[SideKind, Mapping[str, Any]] = {}
    if measurement is not None:
        sides["requests"] = measurement.log.side_columns()
        sides |= {"steps": measurement.steps} if measurement.steps else {}
        sides |= {"samples": measurement.samples} if measurement.samples else {}
    store.record(row, sides)


def out_of_memory(error: Exception) -> bool:
    """Device or host memory ran out (torch's error is known by name: this module must not import torch)."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "out of memory" in str(error).lower()


def reason_of(error: Exception) -> str:
    """An error on one line, with its type unless it is one of ours."""
    text = " ".join(str(error).split())
    text = text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"
    ours = isinstance(error, ValueError) and type(error).__module__.startswith("trtllm_")
    return text if ours and text else f"{type(error).__name__}: {text}"
