"""The sweep: measure every unfinished (cell, repeat), store each as it ends, and let nothing that one cell does stop the others.

Order: one engine after another (each has to be loaded), and within it repeat by repeat over all cells, so that a slow drift of the machine
spreads over the cells and not over the repeats of one. A failing cell becomes a row with its reason. Only Ctrl-C and errors of the store
itself (no space, folder gone) end a sweep early; the rows written until then stay, and `--resume` goes on behind them.

An engine takes as many of the machine's GPUs as its layout needs (tp x pp x replicas), from the first on; engines of other layouts follow
one another. One that needs more than there are was refused when the grid was settled: its cells say so, and nothing is built for it.

Whether a cell is finished is asked of the store by content hash of everything that can change its result; that includes the engine's
fingerprint, so the engine is built (or found built) before anything is skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from trtllm_bench.errors import BenchError
from trtllm_bench.measure.accuracy import Accuracy
from trtllm_bench.measure.rows import RowMaker, cell_of, keep
from trtllm_bench.measure.session import Measurement, Session
from trtllm_bench.measure.workload import of_repeat
from trtllm_bench.spec.measurement import MeasurementSpec
from trtllm_bench.sweep.spec import GridPoint
from trtllm_bench.targets.registry import Identity
from trtllm_results.errors import ResultsError
from trtllm_results.metrics.registry import QUALITY
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import ACCURACY, Row, cell_key
from trtllm_results.store.table import Store
from trtllm_workloads.request import Workload


class Watcher(Protocol):
    """Sees the sweep go by; the terminal's live view is one."""

    def preparing(self, engine: str) -> None: ...
    def started(self, point: GridPoint, repeat: int, requests: int) -> None: ...
    def requests_done(self, done: int) -> None: ...
    def finished(self, point: GridPoint, row: Row, seconds: float) -> None: ...
    def skipped(self, point: GridPoint, repeat: int) -> None: ...


@dataclass
class Sweep:
    """A sweep about to run: the points of each engine, as `SweepSpec.engines` gives them.

    `open_session` and `make_workload` are the only ways out to a target; `environment` tells where a measurement is taken.
    """

    engines: Sequence[Sequence[GridPoint]]
    repeats: int
    store: Store
    open_session: Callable[[MeasurementSpec], Session]
    make_workload: Callable[[MeasurementSpec], Workload]
    watcher: Watcher
    environment: Callable[[MeasurementSpec], Environment]
    command: str = ""
    axes: tuple[str, ...] = ()
    """Names of the knobs that vary over the grid."""
    accuracy: Callable[[Session], Accuracy] | None = None
    """Measures how good a loaded engine's answers are; None where it was not asked for."""
    accuracy_asked: Mapping[str, Any] = field(default_factory=dict)
    """What rows say of it."""

    def __post_init__(self) -> None:
        self.no_telemetry = ""
        self.measured: dict[str, MeasurementSpec] = {}
        """What was asked for, by cell key."""

    def run(self) -> list[Row]:
        """Runs to the end; returns the rows of this sweep's cells, those of earlier runs included."""
        rows = {row.row_id: row for points in self.engines for row in self._run_engine(points)}
        return list(rows.values())

    def _run_engine(self, points: Sequence[GridPoint]) -> Iterator[Row]:
        session: Session | None = None
        maker = RowMaker(self.environment(points[0].spec), self.command, self.axes)
        for point in points:
            if point.refused:
                yield from self._all_failed(maker, [point], BenchError(point.refused))
        points = [point for point in points if not point.refused]
        if not points:
            return
        try:
            self.watcher.preparing(points[0].engine_label)
            try:
                session = self.open_session(points[0].spec)
                identity = session.identity()
            except Exception as error:
                yield from self._all_failed(maker, points, error)
                return
            finished = {(row.key, row.repeat): row for row in self.store.rows() if row.status == "ok"}
            quality = _Quality(self.accuracy, self.accuracy_asked, list(finished.values()), identity)
            for repeat in range(self.repeats):
                for point in points:
                    row = self._run_point(session, maker, identity, point, repeat, finished, quality)
                    if row.status == "ok":
                        finished[row.key, repeat] = row
                    yield row
        finally:
            if session is not None:
                session.close()

    def _run_point(
        self,
        session: Session,
        maker: RowMaker,
        identity: Identity,
        point: GridPoint,
        repeat: int,
        finished: dict[tuple[str, int], Row],
        quality: _Quality,
    ) -> Row:
        spec = point.spec
        cell = cell_of(spec, identity, None)
        try:
            workload = self.make_workload(spec)
            cell = cell_of(spec, identity, workload)
            key = cell_key(cell, maker.environment)
            self.measured[key] = spec
            earlier = finished.get((key, repeat))
            if earlier is not None:
                self.watcher.skipped(point, repeat)
                return earlier
            session.ready()
            quality.measure(session)
            self.watcher.started(point, repeat, len(workload))
            began = time.perf_counter()
            measurement: Measurement | None = session.measure(of_repeat(workload, spec.workload, repeat), spec, self.watcher.requests_done)
        except Exception as error:
            if isinstance(error, ResultsError):
                raise
            measurement, row = None, maker.failed(spec, cell, repeat, error)
        if measurement is None:
            # Only now: until the handler ends, the error's traceback holds on to what the cell had allocated.
            session.recover()
            return self._keep(point, row, 0.0)
        self.no_telemetry = measurement.no_telemetry
        row = quality.beside(maker.measured(spec, cell, repeat, measurement))
        return self._keep(point, row, time.perf_counter() - began, measurement)

    def _all_failed(self, maker: RowMaker, points: Sequence[GridPoint], error: Exception) -> Iterator[Row]:
        """Cells that cannot be measured, as when their engine could not be made: each says so."""
        for point in points:
            identity = Identity(target=point.spec.target, places=(point.spec.engine.max_batch_size or 0) * point.spec.engine.replicas)
            for repeat in range(self.repeats):
                yield self._keep(point, maker.failed(point.spec, cell_of(point.spec, identity, None), repeat, error), 0.0)

    def _keep(self, point: GridPoint, row: Row, seconds: float, measurement: Measurement | None = None) -> Row:
        keep(self.store, row, measurement)
        self.watcher.finished(point, row, seconds)
        return row


class _Quality:
    """Accuracy of one engine: measured before its first cell, or taken from a row of the same engine that says the same was asked."""

    def __init__(
        self, measure: Callable[[Session], Accuracy] | None, asked: Mapping[str, Any], finished: Sequence[Row], identity: Identity
    ) -> None:
        self._measure = measure
        self._known: Accuracy | None = None
        engine = (identity.engine_fingerprint, identity.weights_hash)
        for row in finished:
            details = row.extra.get(ACCURACY, {})
            same = (row.cell.engine_fingerprint, row.cell.weights_hash) == engine and asked.items() <= details.items()
            if measure is not None and asked and same:
                self._known = Accuracy({name: value for name, value in row.figures.items() if name in QUALITY}, details)

    def measure(self, session: Session) -> None:
        """Unless it is known."""
        if self._measure is not None and self._known is None:
            self._known = self._measure(session)

    def beside(self, row: Row) -> Row:
        """The row with the engine's accuracy."""
        if self._known is None:
            return row
        return replace(row, figures={**row.figures, **self._known.figures}, extra={**row.extra, ACCURACY: dict(self._known.details)})
