"""The ranks of an engine as processes: one a GPU, driven by the process that schedules.

That process has no CUDA context of its own. It sends each step once, through shared memory (`step_ring`), to all ranks, and takes the
tokens that the first one of the last stage leaves there; what ranks exchange among themselves is in the plan's ops. torchrun starts
several, and ends the others when one dies; a single one, as a replica of an engine of one GPU is, needs nobody beside it. A rank that hangs
would be noticed by nobody, since the others wait for it on the device: so the controller gives every step a time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trtllm_engines.compiler.plan import Plan
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime import wire
from trtllm_engines.runtime.batch import StepBatch, StepOutput
from trtllm_engines.runtime.observer import StepObserver
from trtllm_engines.runtime.rank import CacheSize
from trtllm_engines.runtime.step_ring import FAILED, READY, SLOTS, StepRing

STEP_S = 10.0
"""Most time between a step's launch and its tokens, or the tokens of the step before it. The largest step of a 70B takes under a second."""
START_S = 900.0
PF_EXITING = 0x4
"""Flag of a process in /proc, from the first thing that its end does (linux/sched.h)."""
ENVIRONMENT = {
    "NCCL_NVLS_ENABLE": "0",
    "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1",
    "NVSHMEM_DISABLE_NVLS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "NCCL_SOCKET_IFNAME": "lo",
}
"""No NVLink multicast, whatever a library would choose; and ranks of one host meet there, whatever its name resolves to."""


@dataclass(frozen=True)
class RemoteHandle:
    """A step in flight on the ranks."""

    ranks: RankProcesses
    number: int

    def done(self) -> bool:
        return self.ranks.ring.answered(self.number)

    def result(self) -> StepOutput:
        return self.ranks.answer(self.number)


class RankProcesses:
    """A `StepRunner` whose ranks are processes. Raises `EngineError` when they cannot be started."""

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        arch: str,
        cache: CacheSize,
        *,
        cuda_graphs: bool,
        max_graph_batch: int,
        step_s: float = STEP_S,
        waiting: Callable[[float], None] | None = None,
        first_gpu: int = 0,
    ) -> None:
        """`folder`: the engine's. `step_s`: seconds a step may take. `waiting` is told the seconds the ranks have been starting for.
        `first_gpu`: index of the first rank's GPU among those visible; the others follow it."""
        self.plan, self._step_s = plan, step_s
        count = plan.parallel.ranks
        if plan.parallel.pp > SLOTS:
            raise EngineError(f"{folder} has {plan.parallel.pp} pipeline stages and at most {SLOTS} can have a step; use a smaller --pp")
        message_bytes, answer_bytes = wire.most_bytes(plan.profile)
        self.ring = StepRing.create(count, message_bytes, answer_bytes)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (kept as long as the processes)
        command = [sys.executable, "-m", "trtllm_engines.runtime.rank_main", str(folder), arch]
        command += ["--tp", str(plan.parallel.tp), "--first-gpu", str(first_gpu)]
        command += ["--ring", self.ring.name, "--message-bytes", str(message_bytes), "--answer-bytes", str(answer_bytes)]
        command += ["--kv-cache-fraction", str(cache.fraction), "--max-graph-batch", str(max_graph_batch if cuda_graphs else 0)]
        command += [] if cache.num_pages is None else ["--num-pages", str(cache.num_pages)]
        environment = {"OMP_NUM_THREADS": "1", **os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if count == 1:
            environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
        else:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "--no-python"]
            command = launcher + command
        self._agent = subprocess.Popen(
            command, env=environment, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL, start_new_session=True
        )
        try:
            self._await_start(waiting)
        except BaseException:
            self.close()
            raise
        self.num_pages = self.ring.num_pages

    def _await_start(self, waiting: Callable[[float], None] | None) -> None:
        began = time.monotonic()
        while not all(state == READY for state in self.ring.states()):
            self._check()
            if time.monotonic() - began > START_S:
                raise EngineError(f"the ranks were not ready after {START_S:g} s; {self._last_words()}")
            if waiting is not None:
                waiting(time.monotonic() - began)
            time.sleep(0.05)

    def observe(self, observer: StepObserver) -> None:
        """Ranks run elsewhere: what happens inside their steps is not seen here."""

    def launch(self, batch: StepBatch) -> RemoteHandle:
        deadline = time.monotonic() + self._step_s
        return RemoteHandle(self, self.ring.send(wire.encode(batch), lambda: self._in_time(deadline)))

    def answer(self, number: int) -> StepOutput:
        deadline = time.monotonic() + self._step_s
        return wire.decode_output(self.ring.answer(number, lambda: self._in_time(deadline)))

    def _in_time(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            self._check()
            raise EngineError(f"a step was not done after {self._step_s:g} s: a rank hangs; {self._last_words()}")
        if int(time.monotonic() * 1e4) % 100 == 0:
            self._check()

    def _check(self) -> None:
        """Raises `EngineError` when a rank has failed or died. A death is told before what the others say of it."""
        failed = [rank for rank, state in enumerate(self.ring.states()) if state == FAILED]
        ended = self._agent.poll()
        if not failed and ended is None:
            return
        gone = [rank for rank, process in enumerate(self.ring.processes()) if process and rank not in failed and not _lives(process)]
        if gone and (failed or ended):
            which = " and ".join(f"rank {rank}" for rank in gone)  # torchrun ends the others too: which was first is not known then
            processes = "process" if len(gone) == 1 else "processes"
            raise EngineError(f"the {processes} of {which} ended without a word, as when it is killed; {self._last_words()}")
        if failed:
            raise EngineError(f"rank {failed[0]} failed: {self.ring.reason(failed[0])[:300]}")
        raise EngineError(f"the ranks' processes ended (exit code {ended}); {self._last_words()}")

    def _last_words(self) -> str:
        """Of the processes' output, the last line that says something."""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 16384))
        lines = [line.strip() for line in self._log.read().decode(errors="replace").splitlines()]
        said = [line for line in lines if "Error" in line or "error" in line] or [line for line in lines if line]
        return f"they said last: {said[-1][:300]}" if said else "they said nothing"

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        if self._log.closed:
            return
        processes = [process for process in self.ring.processes() if process and _lives(process)]
        if self._agent.poll() is None:
            self.ring.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._agent.wait(3.0)
        else:
            self.ring.close()
        if self._agent.poll() is None:
            for end in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._agent.pid, end)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._agent.wait(3.0)
                    break
        for process in (self._agent.pid, *processes):  # torchrun's workers have sessions of their own, and outlive it when they hang
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._log.close()


def _lives(process: int) -> bool:
    """Whether a process runs or could; one that is about to end does not, nor one that ended and was not waited for.

    A process that was killed closes its sockets before it is a zombie, and others fail of that: its flag tells it apart until then.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return fields[0] not in ("Z", "X") and not int(fields[6]) & PF_EXITING
