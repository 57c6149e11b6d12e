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

import contextlib
import itertools
import os
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.measure.rows import MAX_REASON, RowMaker, cell_of
from trtllm_bench.spec.measurement import EngineSpec, MeasurementSpec, safe_target
from trtllm_bench.sweep.spec import GridPoint, SweepSpec
from trtllm_bench.targets.registry import Identity, is_own, runs_on_gpu, target_kind
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store, merge_store

if TYPE_CHECKING:
    from submitit import Job

SLURM, LOCAL = "slurm", "local"
JOBS = "jobs"
LOGS = "log"
"""Below a job's folder: what submitit writes of it, its output included."""
OF_A_JOB = ("target", "precision", "tp", "pp", "replicas")
"""Knobs of which a job has one value each."""
GENERAL = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "stderr_to_stdout")
"""submitit's parameters of every cluster; others are one cluster's."""
TIMEOUT_MIN = 240
SBATCH_REFUSALS = {"account": "account", "partition": "partition", "qos": "qos", "time limit": "timeout-min"}
"""Words of sbatch's errors, and what they are about; the first counts, since an account may be refused a partition."""
TO_GIVE = {
    "account": "one that sacctmgr show associations lists for you",
    "partition": "one that sinfo lists",
    "qos": "one that sacctmgr show qos lists",
    "timeout-min": "no more than the TIMELIMIT that sinfo lists",
}
POLL_S = {SLURM: 2.0, LOCAL: 0.2}
CANCEL_S = 5.0


@dataclass(frozen=True)
class Cluster:
    """Where jobs run and what they ask for. `options`: further parameters of submitit's Slurm executor, or of sbatch."""

    kind: str
    partition: str | None = None
    account: str | None = None
    gpus_per_node: int | None = None
    """None: as many as a job's layout takes."""
    timeout_min: int = TIMEOUT_MIN
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in (SLURM, LOCAL):
            raise BenchError(f"--cluster is '{self.kind}'; choose {SLURM} or {LOCAL}")
        given = {"--partition": self.partition, "--account": self.account, "--cluster-option": self.options}
        for flag in (flag for flag, value in given.items() if value and self.kind == LOCAL):
            raise BenchError(f"{flag} is for Slurm; leave it out with --cluster {LOCAL}")

    @classmethod
    def of(
        cls,
        kind: str | None,
        partition: str | None,
        account: str | None,
        gpus_per_node: int | None,
        timeout_min: int | None,
        options: Sequence[str] | None,
    ) -> Cluster | None:
        """From the flags of `sweep`; None without `--cluster`. Raises `BenchError` naming the flag."""
        given = {
            "--partition": partition,
            "--account": account,
            "--gpus-per-node": gpus_per_node,
            "--timeout-min": timeout_min,
            "--cluster-option": options,
        }
        if kind is None:
            for flag in (flag for flag, value in given.items() if value):
                raise BenchError(f"{flag} is of jobs on a cluster; add --cluster {SLURM} or {LOCAL}")
            return None
        read: dict[str, Any] = {}
        for text in options or ():
            name, equals, value = text.partition("=")
            if not equals or not name:
                raise BenchError(f"--cluster-option {text}: write NAME=VALUE, such as qos=high")
            read[name.replace("-", "_")] = int(value) if value.isdecimal() else value
        return cls(kind, partition, account, gpus_per_node, timeout_min or TIMEOUT_MIN, read)

    @property
    def flags(self) -> str:
        """What gives this cluster again on a command line."""
        options = [f"--cluster-option {name}={value}" for name, value in self.options.items()]
        timeout = None if self.timeout_min == TIMEOUT_MIN else self.timeout_min
        given = {"partition": self.partition, "account": self.account, "gpus-per-node": self.gpus_per_node, "timeout-min": timeout}
        words = [f"--cluster {self.kind}", *(f"--{name} {value}" for name, value in given.items() if value is not None), *options]
        return " ".join(shlex.quote(part) for word in words for part in word.split(" ", 1))


@dataclass(frozen=True)
class JobPart:
    """One job's part of a sweep. `folder` is its store."""

    name: str
    spec: SweepSpec
    folder: Path

    @property
    def cells(self) -> int:
        return len(self.spec.points) * self.spec.repeats

    @property
    def first(self) -> MeasurementSpec:
        return self.spec.points[0].spec

    def rows(self) -> list[Row]:
        return Store(self.folder).rows() if self.folder.is_dir() else []


def job_parts(spec: SweepSpec, folder: Path) -> list[JobPart]:
    """The sweep's jobs, in the order of the grid. Together they have its cells, each once."""
    split = [name for name in OF_A_JOB if name in spec.values]
    parts: dict[str, JobPart] = {}
    for combination in itertools.product(*(spec.values[name] for name in split)):
        chosen = dict(zip(split, combination, strict=True))
        part = replace(spec, values={name: (chosen[name],) if name in chosen else values for name, values in spec.values.items()})
        name = base = _name({name: value for name, value in chosen.items() if name in spec.axes} or chosen)
        for number in itertools.count(2):
            if name not in parts:
                break
            name = f"{base}-{number}"
        parts[name] = JobPart(name, part, folder / JOBS / name)
    return list(parts.values())


def _name(chosen: Mapping[str, Any]) -> str:
    """A name for a job and its folder: `fp8-tp2`."""
    said = {"target": safe_target(str(chosen.get("target", ""))), "precision": str(chosen.get("precision", ""))}
    words = [word for name, word in said.items() if name in chosen]
    words += [f"{name}{chosen[name]}" for name in ("tp", "pp", "replicas") if name in chosen]
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")[:80] or "all"


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
        table = part.folder / "results.parquet"
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
            if (part.folder / "results.parquet").exists():
                merge_store(store, part.folder)
        store.append(*missing)


def _in_order(part: JobPart) -> Iterator[tuple[GridPoint, int]]:
    """Cells and repeats in the order in which a sweep measures them."""
    for points in part.spec.engines():
        for repeat, point in itertools.product(range(part.spec.repeats), points):
            yield point, repeat


def why_ended(job: Job[None], error: Exception | None) -> str:
    """One sentence: the error that the job raised, else the last line of its output."""
    trace = [
        line.strip() for line in str(error or "").splitlines() if re.match(r"^[\w.]+(Error|Exception|Failure|Interrupt)\b", line.strip())
    ]
    state = str(job.state).lower()
    if trace and "UncompletedJob" not in trace[-1]:
        kind, _, text = trace[-1].partition(": ")
        return (text if kind.startswith("trtllm_") and text else trace[-1])[:MAX_REASON]
    last = next((line.strip() for line in reversed((job.stderr() or "").splitlines()) if line.strip()), "")
    return f"job {job.job_id} ended ({state}) without a result" + (f"; its last line is: {last[:MAX_REASON]}" if last else "")


def submit(cluster: Cluster, part: JobPart, command: str) -> Job[None]:
    """Raises `RunFailure` where the cluster does not take the job."""
    from trtllm_bench.sweep.cluster_job import SweepJob

    executor = executor_of(cluster, part)
    (part.folder / LOGS).mkdir(exist_ok=True)
    try:
        with _errors_into(part.folder / LOGS / "submit.err"):
            return executor.submit(SweepJob(str(part.folder.absolute()), command))
    except Exception as error:  # submitit raises what sbatch said, and what subprocess did
        raise RunFailure(f"it was not taken: {why_not_taken(str(error), cluster)}") from error


def why_not_taken(said: str, cluster: Cluster) -> str:
    """What sbatch said of a job, each line once without its prefix, and what to do where one of its flags is the reason."""
    lines = dict.fromkeys(
        re.sub(r"^sbatch: (error|fatal): (Batch job submission failed: )?", "", line.strip()) for line in said.splitlines()
    )
    reason = "; ".join(line for line in lines if line)[:MAX_REASON]
    name = next((name for words, name in SBATCH_REFUSALS.items() if words in reason.lower()), None)
    if name is None or cluster.kind != SLURM:
        return reason
    value = {"partition": cluster.partition, "account": cluster.account, "timeout-min": cluster.timeout_min}.get(name)
    flag = f"--{name}" if name != "qos" and name not in cluster.options else f"--cluster-option {name}"
    value = value or cluster.options.get(name)
    return f"{reason}; {flag} {'was not given' if value is None else f'is {value}'}; give {TO_GIVE[name]}"


@contextlib.contextmanager
def _errors_into(path: Path) -> Iterator[None]:
    """For processes that are started meanwhile: what watches a local job says how it was cancelled, to whom nobody asked."""
    own = os.dup(2)
    with open(path, "ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(own, 2)
        os.close(own)


def executor_of(cluster: Cluster, part: JobPart) -> Any:
    """submitit's executor with this job's parameters. Raises `BenchError` for parameters that submitit refuses."""
    submitit = submitit_module()
    logs = part.folder / LOGS
    gpus = cluster.gpus_per_node if cluster.gpus_per_node is not None else gpus_of(cluster, part)
    if cluster.kind == LOCAL:
        executor = submitit.LocalExecutor(logs)
        visible = _visible(gpus)
        executor.update_parameters(timeout_min=cluster.timeout_min, gpus_per_node=len(visible), visible_gpus=visible)
        return executor
    try:
        executor = submitit.AutoExecutor(logs, cluster=SLURM)
    except RuntimeError:
        raise BenchError(f"--cluster {SLURM}: there is no srun here; run it on a host that submits to Slurm, or use {LOCAL}") from None
    known = submitit.SlurmExecutor._valid_parameters()
    parameters: dict[str, Any] = {"name": f"trtllm-bench {part.name}", "timeout_min": cluster.timeout_min}
    parameters |= {"gpus_per_node": gpus or None, "slurm_partition": cluster.partition, "slurm_account": cluster.account}
    parameters |= {
        name if name in GENERAL else f"slurm_{name}": value for name, value in cluster.options.items() if name in {*GENERAL, *known}
    }
    if others := {name.replace("_", "-"): value for name, value in cluster.options.items() if name not in {*GENERAL, *known}}:
        parameters["slurm_additional_parameters"] = others
    try:
        executor.update_parameters(**parameters)
    except (NameError, ValueError, TypeError, AssertionError) as error:
        raise BenchError(f"--cluster-option: submitit refuses it: {' '.join(str(error).split())[:MAX_REASON]}") from None
    return executor


def submitit_module() -> Any:
    """Raises `BenchError` where submitit is not installed."""
    try:
        import submitit
    except ImportError:
        raise BenchError("--cluster needs submitit; install it with: python3 -m pip install 'trtllm-bench[cluster]'") from None
    return submitit


def gpus_of(cluster: Cluster, part: JobPart) -> int:
    """GPUs that the job's layout takes; 0 where no GPU takes part. A host that submits to Slurm need have none itself."""
    here = cluster.kind == LOCAL
    takes = runs_on_gpu(part.first) if here else is_own(part.first.target) and part.first.engine.device != "cpu"
    return part.first.engine.gpus if takes else 0


def _visible(gpus: int) -> list[int]:
    """Numbers of the first GPUs of those that this process may use; fewer where it has fewer, which the job then says."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None or not gpus:
        return list(range(gpus))
    parts = [part.strip() for part in named.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise BenchError(f"CUDA_VISIBLE_DEVICES is '{named}', and local jobs take GPUs by number; write numbers, such as 0,1")
    return [int(part) for part in parts][:gpus]
