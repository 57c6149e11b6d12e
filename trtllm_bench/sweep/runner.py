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
from dataclasses import dataclass
from typing import Protocol

from trtllm_bench.measure.rows import RowMaker, cell_of, keep
from trtllm_bench.measure.session import Identity, Load, Measurement, Session
from trtllm_bench.measure.spec import mean_lengths, rate_of
from trtllm_bench.sweep.spec import GridCase, SweepSpec
from trtllm_results.errors import ResultsError
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Cell, Row, cell_key
from trtllm_results.store.table import Store
from trtllm_workloads.request import Workload


class Watcher(Protocol):
    """Sees the sweep go by; the terminal's live view is one."""

    def preparing(self, precision: str) -> None: ...
    def started(self, case: GridCase, repeat: int, requests: int) -> None: ...
    def requests_done(self, done: int) -> None: ...
    def finished(self, case: GridCase, row: Row, seconds: float) -> None: ...
    def skipped(self, case: GridCase, repeat: int) -> None: ...


@dataclass
class Sweep:
    """A sweep about to run. `open_session(precision)` and `make_workload(case)` are the only ways out to a target."""

    spec: SweepSpec
    store: Store
    open_session: Callable[[str], Session]
    make_workload: Callable[[GridCase], Workload]
    watcher: Watcher
    environment: Environment
    command: str = ""

    def __post_init__(self) -> None:
        self._rows = RowMaker(self.environment, uuid.uuid4().hex[:12], self.command)
        self.no_telemetry = ""

    def run(self) -> list[Row]:
        """Runs to the end; returns the rows of this sweep's cells, those of earlier runs included."""
        rows: list[Row] = []
        for precision in self.spec.precision:
            rows += self._run_precision(precision, [case for case in self.spec.cases() if case.precision == precision])
        return rows

    def _run_precision(self, precision: str, cases: list[GridCase]) -> Iterator[Row]:
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

    def _run_cell(self, session: Session, identity: Identity, case: GridCase, repeat: int, finished: dict[tuple[str, int], Row]) -> Row:
        cell = self._cell(case, identity)
        try:
            workload = self.make_workload(case)
            cell = self._cell(case, identity, workload)
            earlier = finished.get((cell_key(cell, self.environment), repeat))
            if earlier is not None:
                self.watcher.skipped(case, repeat)
                return earlier
            session.ready()
            self.watcher.started(case, repeat, len(workload))
            began = time.perf_counter()
            measurement: Measurement | None = session.measure(workload, self._load(case), self.watcher.requests_done)
        except Exception as error:
            if isinstance(error, ResultsError):
                raise
            measurement, row = None, self._rows.failed(cell, repeat, error)
        if measurement is None:
            # Only now: until the handler ends, the error's traceback holds on to what the cell had allocated.
            session.recover()
            return self._keep(case, row, 0.0)
        self.no_telemetry = measurement.no_telemetry
        return self._keep(case, self._rows.measured(cell, repeat, measurement), time.perf_counter() - began, measurement)

    def _load(self, case: GridCase) -> Load:
        open_loop = self.spec.workload_wish(case).open_loop
        spec = self.spec
        bound = 0 if open_loop else case.batch
        return Load(bound, open_loop, spec.warmup_of(case), spec.warmup_seconds, spec.slo_ms, spec.max_lag_ms)

    def _cell(self, case: GridCase, identity: Identity, workload: Workload | None = None) -> Cell:
        wish = self.spec.workload_wish(case)
        isl, osl, rate = case.isl, case.osl, case.request_rate
        if workload is not None:
            rate = rate_of(wish, workload)
            if wish.dataset is not None:
                isl, osl = mean_lengths(workload)
        settings = {"warmup": self.spec.warmup_of(case), "burstiness": self.spec.burstiness if case.request_rate else None}
        return cell_of(
            self.spec.model,
            case.precision,
            identity,
            workload,
            batch=case.batch,
            isl=isl,
            osl=osl,
            request_rate=rate,
            settings={
                **settings,
                "arrivals": self.spec.arrivals,
                "warmup_seconds": self.spec.warmup_seconds or None,
                "open_loop": wish.open_loop or None,
                "slo_ms": self.spec.slo_ms or None,
            },
        )

    def _all_failed(self, cases: list[GridCase], error: Exception) -> Iterator[Row]:
        """The engine of a precision could not be made: each of its cells says so."""
        identity = Identity(target=self.spec.target)
        for case in cases:
            for repeat in range(self.spec.repeats):
                yield self._keep(case, self._rows.failed(self._cell(case, identity), repeat, error), 0.0)

    def _keep(self, case: GridCase, row: Row, seconds: float, measurement: Measurement | None = None) -> Row:
        keep(self.store, row, measurement)
        self.watcher.finished(case, row, seconds)
        return row
