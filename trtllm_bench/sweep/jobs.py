"""A cluster's job of a sweep: which part of the grid it measures, in which folder, and what is asked of the cluster for it."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trtllm_bench.errors import BenchError
from trtllm_bench.spec.measurement import MeasurementSpec, safe_target
from trtllm_bench.spec.named_values import named_values
from trtllm_bench.sweep.spec import SweepSpec
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store

SLURM, LOCAL = "slurm", "local"
JOBS = "jobs"
LOGS = "log"
"""Below a job's folder: what submitit writes of it, its output included."""
OF_A_JOB = ("target", "precision", "tp", "pp", "replicas")
"""Knobs of which a job has one value each."""
TIMEOUT_MIN = 240


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
        given_options = named_values("--cluster-option", options, "NAME=VALUE, such as qos=high")
        read: dict[str, Any] = {}
        for name, value in given_options.items():
            key = name.replace("-", "_")
            if key in read:
                raise BenchError(f"--cluster-option {name} is given twice, as {read[key]} and {value}; give it once")
            read[key] = int(value) if value.isdecimal() else value
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
