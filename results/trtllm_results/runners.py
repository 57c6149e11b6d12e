"""The runner that measures: one `trtllm-bench throughput` process a run, of an engine folder or of a revision of this repository.

A process a run, because the run is the sample: whatever a process fixes at its start (memory layout, autotuned libraries, caches) must be
drawn anew each time or it is a bias of the arm. A revision is unpacked with `git archive` into a temporary folder and put first on
PYTHONPATH, so the repository's work tree and its `.git` stay untouched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from trtllm_results.errors import ResultsError
from trtllm_results.gate_run import Arm, RunResult
from trtllm_results.importers.nvidia import own
from trtllm_results.record import Row
from trtllm_results.store import Store

PACKAGE_FOLDERS = ("", "kernels", "engines", "workloads", "results", "dashboards")


@dataclass(frozen=True)
class ArmCommand:
    """How one arm is measured: the command without its report flag, and its environment variables."""

    name: str
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


def arm_command(spec: str, flags: Sequence[str], cleanup: ExitStack) -> ArmCommand:
    """`spec` is an engine folder or a git revision. Raises `ResultsError` if it is neither; temporary folders go with `cleanup`."""
    base = (sys.executable, "-P", "-m", "trtllm_bench", "throughput")
    if (Path(spec) / "engine.json").exists():
        return ArmCommand(Path(spec).name, (*base, "--engine-dir", spec, *flags), {"PYTHONPATH": _search_path()})
    if Path(spec).is_dir():
        raise ResultsError(f"{spec} is a folder without engine.json, so it is not an engine; make one with build, or name a git revision.")
    root = _git("rev-parse", "--show-toplevel")
    revision = _git("rev-parse", "--verify", "--quiet", f"{spec}^{{commit}}")
    if not root or not revision:
        raise ResultsError(f"'{spec}' is neither an engine folder nor a git revision of this repository.")
    folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="trtllm-bench-gate-"))
    archive = subprocess.run(["git", "-C", root, "archive", revision], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    path = os.pathsep.join(str(Path(folder) / part) for part in PACKAGE_FOLDERS)
    return ArmCommand(
        f"{spec} ({revision[:10]})" if not revision.startswith(spec) else revision[:10], (*base, *flags), {"PYTHONPATH": path}
    )


def _search_path() -> str:
    """This process's own import path: with -P the child would otherwise lose the current folder."""
    return os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path if entry is not None)


def _git(*arguments: str) -> str:
    try:
        found = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


class CommandRunner:
    """Runs arms as processes; keeps every row in `store` when there is one. `on_run(arm, row)` reports each."""

    def __init__(self, a: ArmCommand, b: ArmCommand, store: Store | None = None, on_run: Callable[[Arm, Row], None] | None = None) -> None:
        self.arms: Mapping[Arm, ArmCommand] = {"A": a, "B": b}
        self.store, self.on_run = store, on_run
        self.count = 0

    def run(self, arm: Arm) -> RunResult:
        """Measures one arm. Raises `ResultsError` when the process fails, writes no report, or the run is void."""
        side = self.arms[arm]
        with tempfile.TemporaryDirectory(prefix="trtllm-bench-run-") as folder:
            report = Path(folder) / "report.json"
            command = [*side.command, "--report-json", str(report)]
            done = subprocess.run(command, env={**os.environ, **side.variables}, capture_output=True, text=True, check=False)
            try:
                row = own(json.loads(report.read_text())["record"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                if done.returncode != 0:
                    said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
                    raise ResultsError(f"A run of {side.name} ended with exit code {done.returncode}: {said}") from error
                raise ResultsError(f"A run of {side.name} left no report that can be read ({type(error).__name__}).") from error
        row = replace(row, repeat=self.count, extra={**row.extra, "gate_arm": arm, "gate_name": side.name})
        self.count += 1
        if self.store is not None:
            self.store.append(row)
        if self.on_run is not None:
            self.on_run(arm, row)
        if row.status != "ok":
            raise ResultsError(f"A run of {side.name} is {row.status}: {row.reason or 'no reason given'}.")
        return RunResult(row.figures, row.environment, row.warnings)
