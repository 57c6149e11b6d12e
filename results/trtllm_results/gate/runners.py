"""The runner that measures: `trtllm-bench throughput` processes, of an engine folder or of a revision of this repository.

A process a run, because the run is the sample: whatever a process fixes at its start (memory layout, autotuned libraries, caches) must be
drawn anew each time or it is a bias of the arm. Where loading costs more than measuring, `keep_loaded` holds one process an arm instead,
both on the device at once, and the report says what that leaves out. A revision is unpacked with `git archive` into a temporary folder
and put first on PYTHONPATH, so the repository's work tree and its `.git` stay untouched.

Every process is the leader of its own group, so that a signal to the gate (`stoppable`) ends the whole group and the temporary folders go
with it, whatever the process started itself.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Self

from trtllm_results.errors import ResultsError
from trtllm_results.gate.run import Arm, RunResult
from trtllm_results.importers.nvidia import own
from trtllm_results.record.row import Row
from trtllm_results.store.document import read_document
from trtllm_results.store.table import Store
from trtllm_results.versions import WARMUP

PACKAGE_FOLDERS = ("", "kernels", "engines", "workloads", "results", "dashboards")
GRACE_S = 5.0
"""How long a process may take to end when asked."""
KEPT = "each arm was one process throughout: what a process draws at its start (memory layout, clocks of its first run) counts as the arm's"


@dataclass(frozen=True)
class ArmCommand:
    """How one arm is measured: the command without its report flag, and its environment variables."""

    name: str
    command: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)


def arm_command(spec: str, flags: Sequence[str], cleanup: ExitStack) -> ArmCommand:
    """`spec` is an engine folder, a checkout's folder, or a git revision; what is unpacked of a revision goes with `cleanup`.

    Raises `ResultsError` if it is none of them.
    """
    command = (sys.executable, "-P", "-m", "trtllm_bench", "throughput")
    folder = Path(spec)
    if (folder / "engine.json").exists():
        return ArmCommand(folder.name, (*command, "--engine-dir", spec, *flags), {"PYTHONPATH": _search_path()})
    if (folder / "trtllm_bench" / "__init__.py").exists():
        return ArmCommand(os.path.basename(os.path.realpath(folder)), (*command, *flags), {"PYTHONPATH": _packages_of(folder)})
    if folder.is_dir():
        raise ResultsError(f"{spec} holds neither an engine (engine.json; make one with build) nor a checkout (trtllm_bench/)")
    root = _git("rev-parse", "--show-toplevel")
    revision = _git("rev-parse", "--verify", "--quiet", f"{spec}^{{commit}}")
    if not root or not revision:
        raise ResultsError(f"'{spec}' is neither an engine folder, nor a checkout, nor a git revision of this repository")
    if _git("cat-file", "-t", f"{revision}:trtllm_bench/__init__.py") != "blob":
        raise ResultsError(
            f"'{spec}' is a revision of {root}, which does not hold trtllm-bench (no trtllm_bench/ at its top); both arms would be the "
            "installed tool, so run this in a checkout of trtllm-bench, or name engine folders"
        )
    unpacked = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="trtllm-bench-gate-"))
    archive = subprocess.run(["git", "-C", root, "archive", revision], capture_output=True, check=True)
    subprocess.run(["tar", "-x", "-C", unpacked], input=archive.stdout, check=True)
    name = revision[:10] if revision.startswith(spec) else f"{spec} ({revision[:10]})"
    return ArmCommand(name, (*command, *flags), {"PYTHONPATH": _packages_of(Path(unpacked))})


def named_apart(a: ArmCommand, b: ArmCommand, a_spec: str, b_spec: str) -> tuple[ArmCommand, ArmCommand]:
    """Both with names a reader can tell apart: as they are, else as they were given, else with the arm's letter."""
    if a.name != b.name:
        return a, b
    if a_spec != b_spec:
        return replace(a, name=f"{a.name} ({a_spec})"), replace(b, name=f"{b.name} ({b_spec})")
    return replace(a, name=f"{a.name} as A"), replace(b, name=f"{b.name} as B")


class Stopped(SystemExit):
    """A signal asked the gate to end; the exit code is the shell's, 128 + signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


class _Signals:
    """Turns signals into exceptions, but not between a process's start and the first line that knows the process."""

    def __init__(self) -> None:
        self.earlier: dict[int, Any] = {}
        self.starting = False
        self.pending: tuple[int, FrameType | None] | None = None

    def arrived(self, number: int, frame: FrameType | None) -> None:
        if self.starting:
            self.pending = (number, frame)
            return
        before = self.earlier.get(number)
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)
        raise Stopped(number)

    @contextmanager
    def held_back(self) -> Iterator[None]:
        self.starting = True
        try:
            yield
        finally:
            self.starting = False
        if self.pending is not None:
            (number, frame), self.pending = self.pending, None
            self.arrived(number, frame)


_SIGNALS = _Signals()


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it SIGINT, SIGTERM and SIGHUP unwind (`Stopped`, or what the handlers before raise) and leave no process behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(one) is not signal.SIG_IGN:  # nohup
            _SIGNALS.earlier[one] = signal.signal(one, _SIGNALS.arrived)
    try:
        yield
    finally:
        for number, before in _SIGNALS.earlier.items():
            signal.signal(number, before)
        _SIGNALS.earlier.clear()


def _end(process: subprocess.Popen[str]) -> None:
    """Asks the process's group to end, and makes it."""
    for request in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, request)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=GRACE_S)
            break
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _packages_of(checkout: Path) -> str:
    """PYTHONPATH with a checkout's packages before what was on it already."""
    inherited = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    return os.pathsep.join([*(os.path.realpath(checkout / part) for part in PACKAGE_FOLDERS), *inherited])


def _search_path() -> str:
    """This process's own import path: with -P the child would otherwise lose the current folder."""
    return os.pathsep.join(os.path.realpath(entry or ".") for entry in sys.path if entry is not None)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, errors="replace", check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


class FreshProcess:
    """A process a run."""

    def __init__(self, side: ArmCommand) -> None:
        self.side = side

    def measure(self, report: Path) -> str:
        """Writes `report`; returns what the process said of its failure, empty when it ended well."""
        process = None
        try:
            with _SIGNALS.held_back():
                process = subprocess.Popen(
                    [*self.side.command, "--report-json", str(report)],
                    env={**os.environ, **self.side.variables},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,
                )
            said, complained = process.communicate()
        except BaseException:
            if process is not None:
                _end(process)
            raise
        return _failure(process.returncode, complained or said)

    def close(self) -> None:
        pass

    def stop(self) -> None:
        pass


class PersistentProcess:
    """One process for all runs of an arm: told the report's path on its standard input, it measures and answers with it."""

    def __init__(self, side: ArmCommand) -> None:
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [*side.command, "--keep-loaded"],
            env={**os.environ, **side.variables},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            errors="replace",
            start_new_session=True,
        )

    def measure(self, report: Path) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{report}\n")
            self._process.stdin.flush()
            if any(line == f"measured {report}\n" for line in self._process.stdout):
                return ""
        except BrokenPipeError:
            pass
        code = self._process.wait()
        self._said.seek(0)
        return _failure(code, self._said.read()) or "ended before it had measured"

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]
        try:
            self._process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def stop(self) -> None:
        """Ends the process in the middle of whatever it measures."""
        _end(self._process)
        self.close()


def _failure(code: int, said: str) -> str:
    if code == 0:
        return ""
    lines = said.strip().splitlines() or ["no output"]
    ours = [line for line in lines if line.startswith("trtllm-bench: ")]
    return f"ended with exit code {code}: {(ours or lines)[-1]}"


class CommandRunner:
    """Runs arms as processes; keeps every row in `store` when there is one. `on_run(arm, row)` reports each. Close it after use.

    The first `warmup` runs of each arm are marked as such.
    """

    def __init__(
        self,
        a: ArmCommand,
        b: ArmCommand,
        store: Store | None = None,
        on_run: Callable[[Arm, Row], None] | None = None,
        keep_loaded: bool = False,
        warmup: int = 0,
    ) -> None:
        self.warmup_runs = 2 * warmup
        self.arms: Mapping[Arm, ArmCommand] = {"A": a, "B": b}
        self.store, self.on_run = store, on_run
        self.note = KEPT if keep_loaded else ""
        self.count = 0
        self._processes: dict[Arm, FreshProcess | PersistentProcess] = {}
        try:
            for arm, side in self.arms.items():
                with _SIGNALS.held_back():
                    self._processes[arm] = PersistentProcess(side) if keep_loaded else FreshProcess(side)
        except BaseException:
            self.stop()
            raise

    def run(self, arm: Arm) -> RunResult:
        """Measures one arm. Raises `ResultsError` when the process fails, writes no report, or the run is void."""
        side = self.arms[arm]
        with tempfile.TemporaryDirectory(prefix="trtllm-bench-run-") as folder:
            report = Path(folder) / "report.json"
            failure = self._processes[arm].measure(report)
            try:
                row = own(read_document(report)["record"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                if failure:
                    raise ResultsError(f"a run of {side.name} {failure}") from error
                raise ResultsError(f"a run of {side.name} left no report that can be read ({type(error).__name__})") from error
        row = replace(
            row, repeat=self.count, extra={**row.extra, "gate_arm": arm, "gate_name": side.name, WARMUP: self.count < self.warmup_runs}
        )
        self.count += 1
        if self.store is not None:
            self.store.append(row)
        if self.on_run is not None:
            self.on_run(arm, row)
        if row.status != "ok":
            raise ResultsError(f"a run of {side.name} is {row.status}: {row.reason or 'no reason given'}")
        warnings = (*row.warnings, self.note) if self.note else row.warnings
        return RunResult(row.figures, row.environment, warnings)

    def close(self) -> None:
        for process in self._processes.values():
            process.close()

    def stop(self) -> None:
        for process in self._processes.values():
            process.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *error: object) -> None:
        if error_type is None:
            self.close()
        else:
            self.stop()
