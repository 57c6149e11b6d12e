"""A sweep over a cluster: one job for each target, precision and layout of the grid, submitted by submitit.

A job is a sweep of its part of the grid, into a store of its own below the sweep's folder, `jobs/<name>`. So what holds of a sweep holds
of a job: every cell is on disk as soon as it ends, and a job that is preempted, or reaches its time limit, is requeued by submitit and
goes on behind its last cell. The process that submits only looks: at the queue, through submitit, and at the jobs' stores. It adds their
rows to the sweep's store when all have ended, and says why cells are missing where a job failed. When it is stopped it cancels what it
submitted.

`local` runs the same jobs on this machine, one after another: two at a time would measure each other.

Rejected: an array of jobs, whose members cannot ask for different numbers of GPUs; and one store for all jobs, since file locks between
hosts are not to be trusted on every cluster's file system.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.measure.rows import RowMaker, cell_of
from trtllm_bench.spec.measurement import EngineSpec, safe_target
from trtllm_bench.sweep.jobs import LOCAL, LOGS, SLURM, Cluster, JobPart, job_parts
from trtllm_bench.sweep.spec import GridPoint, SweepSpec
from trtllm_bench.sweep.submit import submit, why_ended
from trtllm_bench.targets.registry import Identity, target_kind
from trtllm_results.record.row import Row
from trtllm_results.store.layout import ROWS
from trtllm_results.store.table import Store, merge_store

if TYPE_CHECKING:
    from submitit import Job

POLL_S = {SLURM: 2.0, LOCAL: 0.2}
CANCEL_S = 5.0


def check(spec: SweepSpec) -> None:
    """Raises `BenchError` and the components' errors for what no machine can measure. Jobs find out what their own machines can do."""
    from trtllm_bench.measure.workload import workload_of

    if "api_key" in spec.values:
        raise BenchError("--api-key would be kept in the jobs' files; give the key in $OPENAI_API_KEY, which jobs inherit")
    for one in {point.spec.target: point.spec for point in spec.points}.values():
        if not target_kind(one.target).names_its_model:
            _check_engine(one.engine)
    for one in {point.spec.workload.dataset: point.spec for point in spec.points if point.spec.workload.dataset}.values():
        workload_of(one)


def _check_engine(engine: EngineSpec) -> None:
    from trtllm_engines.engine.folder import load_engine
    from trtllm_engines.models.presets import resolve_model

    if engine.engine_dir is not None:
        load_engine(engine.engine_dir)
    elif engine.model is not None:
        resolve_model(engine.model)


class View(Protocol):
    """Sees the jobs go by."""

    def submitted(self, part: JobPart, job_id: str) -> None: ...
    def state(self, part: JobPart, state: str) -> None: ...
    def row(self, part: JobPart, row: Row) -> None: ...
    def ended(self, part: JobPart, reason: str) -> None: ...


@dataclass
class ClusterSweep:
    """A sweep about to be submitted. `command`: as rows name it."""

    spec: SweepSpec
    cluster: Cluster
    folder: Path
    view: View
    maker: RowMaker

    def __post_init__(self) -> None:
        self.parts = job_parts(self.spec, self.folder)
        self._running: dict[str, Job[None]] = {}
        self._known: dict[str, set[str]] = {part.name: {row.row_id for row in part.rows()} for part in self.parts}
        self._earlier = {name: set(ids) for name, ids in self._known.items()}
        self._stamps: dict[str, int] = {}

    def run(self) -> list[Row]:
        """Submits the jobs, waits for all, merges their stores into the sweep's; returns the rows of its cells, those of earlier runs
        included. However it ends, what was measured is in the sweep's store and no job is left behind."""
        waiting = [part for part in self.parts if not self._complete(part)]
        missing: list[Row] = []
        try:
            while waiting or self._running:
                while waiting and (self.cluster.kind == SLURM or not self._running):
                    missing += self._submit(waiting.pop(0))
                for part in self.parts:
                    if part.name in self._running:
                        missing += self._look(part)
                if waiting or self._running:
                    time.sleep(POLL_S[self.cluster.kind])
        finally:
            try:
                self._cancel()
            finally:
                self._merge(missing)
        return [*(row for part in self.parts for row in self._rows_of(part)), *missing]

    def _complete(self, part: JobPart) -> bool:
        """Whether an earlier run measured all of it."""
        return len({(row.key, row.repeat) for row in part.rows() if row.status == "ok"}) >= part.cells

    def _rows_of(self, part: JobPart) -> list[Row]:
        """Rows of this run, and earlier ones that are not measured again."""
        return [row for row in part.rows() if row.status == "ok" or row.row_id not in self._earlier[part.name]]

    def _submit(self, part: JobPart) -> list[Row]:
        part.folder.mkdir(parents=True, exist_ok=True)
        part.spec.save(part.folder)
        try:
            job = submit(self.cluster, part, self.maker.command)
        except RunFailure as error:
            return self._failed(part, str(error))
        self._running[part.name] = job
        self.view.submitted(part, job.job_id)
        return []

    def _look(self, part: JobPart) -> list[Row]:
        """Tells the view what is new of a job; returns rows of the cells that it has left out, where it has ended."""
        job = self._running[part.name]
        ended = job.done()
        self._tell_rows(part)
        if not ended:
            self.view.state(part, job.state)
            return []
        del self._running[part.name]
        error = job.exception()
        if error is None and len(self._rows_of(part)) >= part.cells:
            self.view.ended(part, "")
            return []
        return self._failed(part, why_ended(job, error))

    def _tell_rows(self, part: JobPart) -> None:
        table = part.folder / ROWS
        stamp = table.stat().st_mtime_ns if table.exists() else 0
        if stamp == self._stamps.get(part.name, 0):
            return
        self._stamps[part.name] = stamp
        for row in part.rows():
            if row.row_id not in self._known[part.name]:
                self._known[part.name].add(row.row_id)
                self.view.row(part, row)

    def _failed(self, part: JobPart, reason: str) -> list[Row]:
        self.view.ended(part, reason)
        error = RunFailure(f"the job of {part.name} failed: {reason}; its output is in {part.folder / LOGS}")
        left = list(_in_order(part))[len(self._rows_of(part)) :]
        return [
            self.maker.failed(point.spec, cell_of(point.spec, Identity(safe_target(point.spec.target)), None), repeat, error)
            for point, repeat in left
        ]

    def _cancel(self) -> None:
        """Ends the jobs that have not ended."""
        running = list(self._running.values())
        for job in running:
            job.cancel(check=False)
        until = time.monotonic() + CANCEL_S
        while self.cluster.kind == LOCAL and time.monotonic() < until and not all(job.done() for job in running):
            time.sleep(0.05)

    def _merge(self, missing: Sequence[Row]) -> None:
        store = Store(self.folder)
        for part in self.parts:
            if (part.folder / ROWS).exists():
                merge_store(store, part.folder)
        store.append(*missing)


def _in_order(part: JobPart) -> Iterator[tuple[GridPoint, int]]:
    """Cells and repeats in the order in which a sweep measures them."""
    for points in part.spec.engines():
        for repeat, point in itertools.product(range(part.spec.repeats), points):
            yield point, repeat
