"""The ranks of an engine that are processes of this host: torchrun's agent, and the ring through which they are told their steps.

The process that schedules has one of these, and so has each further host (`host_agent`). torchrun starts several ranks, and ends the others
when one dies; a single one, as a replica of an engine of one GPU is, needs nobody beside it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.step_ring import FAILED, READY, StepRing

Recorder = Literal["none", "torch", "nsys"]
"""What records the steps of ranks: torch.profiler, or Nsight Systems, under which the process that schedules runs then."""
PF_EXITING = 0x4
"""Flag of a process in /proc, from the first thing that its end does (linux/sched.h)."""
NO_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1", "NVSHMEM_DISABLE_NVLS": "1"}
"""No NVLink multicast, whatever a library would choose."""
NO_REGISTRATION = {"NCCL_GRAPH_REGISTER": "0"}
"""Capturing a graph asks nothing of other ranks: NCCL would register the buffers it finds in one with its peers."""
SAY_WHO_IS_ENDED = {"LOGLEVEL": "WARNING"}
"""Makes torchrun's agent log which ranks it ends, also where a user has asked for errors alone."""
MEETING_S = 60
"""How long torchrun's agents of several hosts wait for each other."""
LOG_BYTES = 65536
"""How much of the end of the processes' output is read."""
STACK_S = 1.0
"""How long a rank may take to print where its threads are. One that is stopped, or in the driver's uninterruptible calls, never does."""
_ENDED = re.compile(r"Sending process (\d+) closing signal")
"""What torchrun's agent logs before it ends a rank because another has ended."""
_FRAME = re.compile(r'File ".*?(?P<file>[^/"]+)", line (?P<line>\d+) in (?P<function>\S+)')


@dataclass(frozen=True)
class RankOrder:
    """What the ranks of one host are started with; the same on all hosts but for `node_rank`."""

    engine: str
    arch: str
    tp: int
    ranks: int
    """Of this host."""
    message_bytes: int
    answer_bytes: int
    kv_cache_fraction: float
    num_pages: int | None
    max_graph_batch: int
    """0: no CUDA graphs."""
    first_gpu: int = 0
    """Index of the first rank's GPU among those visible; the others follow it."""
    nnodes: int = 1
    node_rank: int = 0
    recorder: Recorder = "none"
    """What records their steps when they are asked to (`rank_trace`)."""
    detail: str = "off"
    """Of their NVTX ranges (`ranges`)."""
    endpoint: str = ""
    """host:port where torchrun's agents meet, of several hosts."""


class HostRanks:
    """Raises `EngineError` when they cannot be started."""

    def __init__(self, order: RankOrder, interface: str = "lo") -> None:
        """`interface` is `rank_environment`'s."""
        self.order = order
        self.ring = StepRing.create(order.ranks, order.message_bytes, order.answer_bytes)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (kept as long as the processes)
        command = [sys.executable, "-m", "trtllm_engines.runtime.rank_main", order.engine, order.arch]
        command += ["--tp", str(order.tp), "--first-gpu", str(order.first_gpu), "--ring", self.ring.name]
        command += ["--message-bytes", str(order.message_bytes), "--answer-bytes", str(order.answer_bytes)]
        command += ["--kv-cache-fraction", str(order.kv_cache_fraction), "--max-graph-batch", str(order.max_graph_batch)]
        command += [] if order.num_pages is None else ["--num-pages", str(order.num_pages)]
        command += ["--detail", order.detail, "--recorder", order.recorder, "--controller", str(os.getpid())]
        environment = rank_environment(interface)
        if order.ranks == order.nnodes == 1:
            environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        else:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(order.ranks), *self._meeting()]
            launcher += ["--log-dir", os.devnull]  # else it makes a folder for logs in each run, and leaves it
            command = [*launcher, "--no-python", *command]
        self.agent = subprocess.Popen(
            command, env=environment, stdout=self._log, stderr=self._log, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def _meeting(self) -> list[str]:
        order = self.order
        if order.nnodes == 1:
            return ["--standalone"]
        where = ["--rdzv-backend", "static", "--rdzv-endpoint", order.endpoint, "--rdzv-conf", f"timeout={MEETING_S}"]
        return ["--nnodes", str(order.nnodes), "--node-rank", str(order.node_rank), *where]

    @property
    def first_rank(self) -> int:
        return self.order.node_rank * self.order.ranks

    def ready(self) -> bool:
        return all(state == READY for state in self.ring.states())

    def check(self) -> None:
        """Raises `EngineError` when a rank has failed or died. A death is reported before the failures of others that it caused. Ranks that
        torchrun ended do not count as dead, however late this is called."""
        failed = [rank for rank, state in enumerate(self.ring.states()) if state == FAILED]
        ended = self.agent.poll()
        if not failed and ended is None:
            return
        processes = self.ring.processes()
        dead = [rank for rank, process in enumerate(processes) if process and rank not in failed and not _lives(process)]
        torchrun_ended = {
            int(process) for process in _ENDED.findall(self._output())
        }  # read after `dead`: the agent logs a rank before it ends it
        gone = [rank for rank in dead if processes[rank] not in torchrun_ended]
        if gone:
            which = " and ".join(f"rank {self.first_rank + rank}" for rank in gone)
            noun = "process" if len(gone) == 1 else "processes"
            raise EngineError(f"the {noun} of {which} ended without a word, as when it is killed; {self.last_words()}")
        if failed:
            raise EngineError(f"rank {self.first_rank + failed[0]} failed: {self.ring.reason(failed[0])[:300]}")
        raise EngineError(f"the ranks' processes ended (exit code {ended}); {self.last_words()}")

    def last_words(self) -> str:
        """Of the processes' output, the last line that says something."""
        lines = [line.strip() for line in self._output().splitlines()]
        said = [line for line in lines if "Error" in line or "error" in line] or [line for line in lines if line]
        return f"they said last: {said[-1][:300]}" if said else "they said nothing"

    def _output(self) -> str:
        """The end of what the processes have printed. Read without a seek, since they write at the file's position."""
        log = self._log.fileno()
        return os.pread(log, LOG_BYTES, max(0, os.fstat(log).st_size - LOG_BYTES)).decode(errors="replace")

    def stacks(self) -> list[str]:
        """Where the threads of every rank are in Python, as its faulthandler prints it; empty of one that does not answer."""
        return [self._stack(process) if process and _lives(process) else "" for process in self.ring.processes()]

    def _stack(self, process: int) -> str:
        log = self._log.fileno()
        begin = end = os.fstat(log).st_size
        os.kill(process, signal.SIGUSR1)
        deadline = time.monotonic() + STACK_S
        while time.monotonic() < deadline:
            time.sleep(0.05)
            before, end = end, os.fstat(log).st_size
            if end == before > begin:
                break
        return os.pread(log, end - begin, begin).decode(errors="replace")  # not by a seek: the processes write at the file's position

    def whereabouts(self) -> str:
        """In which line each rank is, for the sentence that tells of a hang."""
        return ", ".join(f"rank {self.first_rank + rank} {_place(stack)}" for rank, stack in enumerate(self.stacks()))

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        if self._log.closed:
            return
        processes = [process for process in self.ring.processes() if process and _lives(process)]
        if self.agent.poll() is None:
            self.ring.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.agent.wait(3.0)
        else:
            self.ring.close()
        if self.agent.poll() is None:
            for end in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.agent.pid, end)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.agent.wait(3.0)
                    break
        for process in (self.agent.pid, *processes):  # torchrun's workers have sessions of their own, and outlive it when they hang
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._log.close()


def _place(stack: str) -> str:
    """Of faulthandler's text: the innermost line of the engine's own in the thread that runs steps, else of that thread."""
    threads = [thread for thread in stack.split("\n\n") if "rank_main.py" in thread]
    frames = [(line, frame) for line in (threads[0].splitlines() if threads else ()) if (frame := _FRAME.search(line))]
    own = [frame for line, frame in frames if "/trtllm_" in line]
    if not frames:
        return "does not answer"
    return "is in {function} ({file}:{line})".format(**(own[0] if own else frames[0][1]).groupdict())


def rank_environment(interface: str = "lo") -> dict[str, str]:
    """For processes of ranks. `interface`: the network interface on which they meet; those of one host meet on `lo`, whatever its name
    resolves to."""
    own = {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return {"OMP_NUM_THREADS": "1", **os.environ, **NO_MULTICAST, **NO_REGISTRATION, **SAY_WHO_IS_ENDED, **own}


def _lives(process: int) -> bool:
    """Whether a process runs or could; one that is about to end does not, nor one that ended and was not waited for.

    A process that was killed closes its sockets before it is a zombie, and others fail of that: its flag tells it apart until then.
    """
    try:
        fields = Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return False
    return fields[0] not in (b"Z", b"X") and not int(fields[6]) & PF_EXITING
