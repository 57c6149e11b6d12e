"""The sweep: measure every unfinished (cell, repeat), store each as it ends, and let nothing that one cell does stop the others.

Order: one precision after another (each needs its engine loaded), and within it repeat by repeat over all cells, so that a slow drift of
the machine spreads over the cells and not over the repeats of one. A failing cell becomes a row with its reason. Only Ctrl-C and errors of
the store itself (no space, folder gone) end a sweep early; the rows written until then stay, and `--resume` goes on behind them.

Whether a cell is finished is asked of the store by content hash of everything that can change its result; that includes the engine's
fingerprint, so the engine is built (or found built) before anything is skipped.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from trtllm_bench.measure import Identity, Load, Measurement, Session
from trtllm_bench.sweep.spec import Case, SweepSpec
from trtllm_results.environment import Environment
from trtllm_results.errors import ResultsError
from trtllm_results.record import Cell, Row, Status, cell_key
from trtllm_results.store import Store
from trtllm_workloads.request import Workload


class Watcher(Protocol):
    """Sees the sweep go by; the terminal's live view is one."""

    def preparing(self, precision: str) -> None: ...
    def started(self, case: Case, repeat: int, requests: int) -> None: ...
    def requests_done(self, done: int) -> None: ...
    def finished(self, case: Case, row: Row, seconds: float) -> None: ...
    def skipped(self, case: Case, repeat: int) -> None: ...


@dataclass
class Sweep:
    """A sweep about to run. `open_session(precision)` and `make_workload(case, requests)` are the only ways out to a target."""

    spec: SweepSpec
    store: Store
    open_session: Callable[[str], Session]
    make_workload: Callable[[Case, int], Workload]
    watcher: Watcher
    environment: Environment
    command: str = ""

    def __post_init__(self) -> None:
        self.run_id = uuid.uuid4().hex[:12]

    def run(self) -> list[Row]:
        """Runs to the end; returns the rows of this sweep's cells, those of earlier runs included."""
        rows: list[Row] = []
        for precision in self.spec.precision:
            rows += self._run_precision(precision, [case for case in self.spec.cases() if case.precision == precision])
        return rows

    def _run_precision(self, precision: str, cases: list[Case]) -> Iterator[Row]:
        session: Session | None = None
        try:
            self.watcher.preparing(precision)
            try:
                session = self.open_session(precision)
                identity = session.identity()
            except Exception as error:
                yield from self._all_failed(cases, error)
                return
            finished = {(row.key, row.repeat): row for row in self.store.rows() if row.status == "ok"}
            for repeat in range(self.spec.repeats):
                for case in cases:
                    yield self._run_cell(session, identity, case, repeat, finished)
        finally:
            if session is not None:
                session.close()

    def _run_cell(self, session: Session, identity: Identity, case: Case, repeat: int, finished: dict[tuple[str, int], Row]) -> Row:
        requests = self.spec.requests_of(case)
        cell = self._cell(case, identity)
        try:
            workload = self.make_workload(case, requests)
            requests = len(workload)
            cell = self._cell(case, identity, workload)
            earlier = finished.get((cell_key(cell, self.environment), repeat))
            if earlier is not None:
                self.watcher.skipped(case, repeat)
                return earlier
            self.watcher.started(case, repeat, requests)
            began = time.perf_counter()
            measurement = session.measure(workload, self._load(case), self.watcher.requests_done)
        except Exception as error:
            if isinstance(error, ResultsError):
                raise
            session.recover()
            return self._keep(case, self._failed(cell, repeat, error), 0.0)
        return self._keep(case, self._measured(cell, repeat, measurement), time.perf_counter() - began, measurement)

    def _load(self, case: Case) -> Load:
        open_loop = case.request_rate > 0
        return Load(concurrency=0 if open_loop else case.batch, open_loop=open_loop, warmup=self.spec.warmup)

    def _cell(self, case: Case, identity: Identity, workload: Workload | None = None) -> Cell:
        settings = {**identity.settings, "warmup": self.spec.warmup, "burstiness": self.spec.burstiness if case.request_rate else None}
        return Cell(
            model=self.spec.model,
            precision=case.precision,
            batch=case.batch,
            isl=case.isl,
            osl=case.osl,
            kv_dtype=identity.kv_dtype,
            num_requests=len(workload) if workload is not None else self.spec.requests_of(case),
            request_rate=case.request_rate,
            workload=workload.name if workload is not None else "",
            workload_hash=workload.content_hash if workload is not None else "",
            target=identity.target,
            target_version=identity.target_version,
            engine_fingerprint=identity.engine_fingerprint,
            weights_hash=identity.weights_hash,
            settings={name: value for name, value in settings.items() if value is not None},
        )

    def _row(self, cell: Cell, repeat: int, status: Status) -> Row:
        return Row(cell=cell, environment=self.environment, repeat=repeat, status=status, run_id=self.run_id, command=self.command)

    def _measured(self, cell: Cell, repeat: int, measurement: Measurement) -> Row:
        row = self._row(cell, repeat, "void" if measurement.void else "ok")
        return replace(row, figures=measurement.figures, warnings=measurement.warnings, reason=measurement.void)

    def _failed(self, cell: Cell, repeat: int, error: Exception) -> Row:
        return replace(self._row(cell, repeat, "oom" if out_of_memory(error) else "failed"), reason=reason_of(error))

    def _all_failed(self, cases: list[Case], error: Exception) -> Iterator[Row]:
        """The engine of a precision could not be made: each of its cells says so."""
        identity = Identity(target=self.spec.target)
        for case in cases:
            for repeat in range(self.spec.repeats):
                yield self._keep(case, self._failed(self._cell(case, identity), repeat, error), 0.0)

    def _keep(self, case: Case, row: Row, seconds: float, measurement: Measurement | None = None) -> Row:
        if measurement is not None:
            self.store.write_side("requests", row, measurement.log.side_columns())
            if measurement.steps:
                self.store.write_side("steps", row, measurement.steps)
            if measurement.samples:
                self.store.write_side("samples", row, measurement.samples)
        self.store.append(row)
        self.watcher.finished(case, row, seconds)
        return row


def out_of_memory(error: Exception) -> bool:
    """Device or host memory ran out (torch's error is known by name: this module must not import torch)."""
    return isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "out of memory" in str(error).lower()


def reason_of(error: Exception) -> str:
    """The first sentence of an error, with its type unless it is one of ours."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else text[:299] + "…"
    ours = isinstance(error, ValueError) and type(error).__module__.startswith("trtllm_")
    return text if ours and text else f"{type(error).__name__}: {text}"
