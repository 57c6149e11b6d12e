"""Hands a job to the cluster through submitit, and says in one sentence why the cluster did not take it, or why it ended."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.measure.rows import MAX_REASON
from trtllm_bench.sweep.jobs import LOCAL, LOGS, SLURM, Cluster, JobPart
from trtllm_bench.targets.registry import is_own, runs_on_gpu

if TYPE_CHECKING:
    from submitit import Job

GENERAL = ("name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "stderr_to_stdout")
"""submitit's parameters of every cluster; others are one cluster's."""
SBATCH_REFUSALS = {"account": "account", "partition": "partition", "qos": "qos", "time limit": "timeout-min"}
"""Words of sbatch's errors, and what they are about; the first counts, since an account may be refused a partition."""
TO_GIVE = {
    "account": "one that sacctmgr show associations lists for you",
    "partition": "one that sinfo lists",
    "qos": "one that sacctmgr show qos lists",
    "timeout-min": "no more than the TIMELIMIT that sinfo lists",
}


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


def check_submits(cluster: Cluster) -> None:
    """Raises `BenchError` where this host submits no jobs to the cluster, or submitit is not installed."""
    submitit = submitit_module()
    if cluster.kind == SLURM and submitit.SlurmExecutor.affinity() < 0:
        raise BenchError(f"--cluster {SLURM}: there is no srun here; run it on a host that submits to Slurm, or use {LOCAL}")


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
    executor = submitit.AutoExecutor(logs, cluster=SLURM)
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
