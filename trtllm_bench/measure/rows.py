"""From a measurement, or a failure, to a row of the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trtllm_bench.measure.session import Identity, Measurement
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Cell, Row
from trtllm_results.store.table import Store
from trtllm_workloads.request import Workload

MAX_REASON = 300


def cell_of(
    model: str,
    precision: str,
    identity: Identity,
    workload: Workload | None,
    *,
    batch: int,
    isl: int,
    osl: int,
    request_rate: float = 0.0,
    settings: Mapping[str, Any] | None = None,
) -> Cell:
    """What was asked for. `workload` None: it could not be made; the cell then only names the case."""
    both = {**identity.settings, **(settings or {})}
    return Cell(
        model=model,
        precision=precision,
        batch=batch,
        isl=isl,
        osl=osl,
        kv_dtype=identity.kv_dtype,
        num_requests=len(workload) if workload is not None else 0,
        request_rate=request_rate,
        workload=workload.name if workload is not None else "",
        workload_hash=workload.content_hash if workload is not None else "",
        target=identity.target,
        target_version=identity.target_version,
        engine_fingerprint=identity.engine_fingerprint,
        weights_hash=identity.weights_hash,
        settings={name: value for name, value in both.items() if value is not None},
    )


@dataclass(frozen=True)
class RowMaker:
    """Makes the rows of one run."""

    environment: Environment
    run_id: str
    command: str

    def measured(self, cell: Cell, repeat: int, measurement: Measurement) -> Row:
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
        )

    def failed(self, cell: Cell, repeat: int, error: Exception) -> Row:
        return Row(
            cell=cell,
            environment=self.environment,
            repeat=repeat,
            status="oom" if out_of_memory(error) else "failed",
            reason=reason_of(error),
            run_id=self.run_id,
            command=self.command,
        )


def keep(store: Store, row: Row, measurement: Measurement | None) -> None:
    """Stores a row, its side tables first."""
    if measurement is not None:
        store.write_side("requests", row, measurement.log.side_columns())
        if measurement.steps:
            store.write_side("steps", row, measurement.steps)
        if measurement.samples:
            store.write_side("samples", row, measurement.samples)
    store.append(row)


def out_of_memory(error: Exception) -> bool:
    """Device or host memory ran out (torch's error is known by name: this module must not import torch)."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "out of memory" in str(error).lower()


def reason_of(error: Exception) -> str:
    """An error on one line, with its type unless it is one of ours."""
    text = " ".join(str(error).split())
    text = text if len(text) <= MAX_REASON else text[: MAX_REASON - 1] + "…"
    ours = isinstance(error, ValueError) and type(error).__module__.startswith("trtllm_")
    return text if ours and text else f"{type(error).__name__}: {text}"
