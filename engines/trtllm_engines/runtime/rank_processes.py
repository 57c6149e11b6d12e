"""The ranks of an engine as processes: one per GPU, on one host or several, driven by the process that schedules.

That process has no CUDA context of its own. It sends each step once, through shared memory (`step_ring`) to all ranks of its host and over
TCP (`hosts`) to each other host, and takes the tokens that the first rank of the last stage leaves; what ranks exchange among themselves is
in the plan's ops. A rank that hangs would be noticed by nobody, since the others wait for it on the device: so every step is given a time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from trtllm_engines.compiler.plan import Plan
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime import rank_trace, wire
from trtllm_engines.runtime.batch import StepBatch, StepOutput
from trtllm_engines.runtime.host_ranks import HostRanks, RankOrder, Recorder
from trtllm_engines.runtime.hosts import Hosts, free_port
from trtllm_engines.runtime.observer import StepObserver
from trtllm_engines.runtime.rank import CacheSize
from trtllm_engines.runtime.step_ring import SLOTS

STEP_S = 10.0
"""Most time between a step's launch and its tokens, or the tokens of the step before it. The largest step of a 70B takes under a second."""
START_S = 900.0
WRITE_S = 60.0
"""Most time that ranks take to write what they have recorded."""
NOTICE_S = 3.0
"""How long a host may take to notice that one of its ranks has died, and to say so (once a second), after those of another have failed of
it."""


@dataclass(frozen=True)
class RemoteHandle:
    """A step in flight on the ranks."""

    ranks: RankProcesses
    number: int

    def done(self) -> bool:
        return self.ranks.answered(self.number)

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
        first_gpu: int = 0,
        hosts: Hosts | None = None,
        recorder: Recorder = "none",
        detail: str = "off",
    ) -> None:
        """`folder`: the engine's, the same path on every host. `first_gpu`: index of the first rank's GPU among those visible; the others
        follow it. `hosts`: the others, each of which runs as many ranks as this one; stages and their groups follow in order of hosts.
        `recorder`: what `record` makes them use, `none` where it is not called. `detail`: of the ranks' own NVTX ranges."""
        self.plan = plan
        parallel, nnodes = plan.parallel, 1 if hosts is None else hosts.nnodes
        if parallel.pp > SLOTS:
            raise EngineError(f"{folder} has {parallel.pp} pipeline stages and at most {SLOTS} can have a step; use a smaller --pp")
        if parallel.ranks % nnodes:
            raise EngineError(f"{folder} has {parallel.ranks} ranks, which do not divide among {nnodes} hosts; use another --nnodes")
        message_bytes, answer_bytes = wire.most_bytes(plan.profile)
        order = RankOrder(
            engine=str(folder if hosts is None else folder.absolute()),
            arch=arch,
            tp=parallel.tp,
            ranks=parallel.ranks // nnodes,
            message_bytes=message_bytes,
            answer_bytes=answer_bytes,
            kv_cache_fraction=cache.fraction,
            num_pages=cache.num_pages,
            max_graph_batch=max_graph_batch if cuda_graphs else 0,
            first_gpu=first_gpu,
            nnodes=nnodes,
            recorder=recorder,
            detail=detail,
        )
        self._others = [] if hosts is None else hosts.gather()
        if hosts is not None:
            order = replace(order, endpoint=f"{hosts.address}:{free_port(hosts.address)}")
        self._here = HostRanks(order) if hosts is None else HostRanks(order, hosts.interface)
        self._agent, self.ring = self._here.agent, self._here.ring
        self._answers_at = (parallel.pp - 1) * parallel.tp // order.ranks
        """The host whose rank answers."""
        try:
            for other in self._others:
                other.start(replace(order, node_rank=other.node_rank))
            self._await_start()
        except BaseException:
            self.close()
            raise
        self.num_pages = self.ring.num_pages

    def _await_start(self) -> None:
        began = time.monotonic()
        while not (self._here.ready() and all(other.ready() for other in self._others)):
            self._check()
            if time.monotonic() - began > START_S:
                raise EngineError(f"the ranks were not ready after {START_S:g} s: {self._here.whereabouts()}")
            time.sleep(0.05)

    def observe(self, observer: StepObserver) -> None:
        """Ranks run elsewhere: what happens inside their steps is not seen here."""

    def launch(self, batch: StepBatch) -> RemoteHandle:
        deadline = time.monotonic() + STEP_S
        message = wire.encode(batch)
        for other in self._others:
            other.send(message)
        return RemoteHandle(self, self.ring.send(message, lambda: self._in_time(deadline)))

    def record(self) -> None:
        """Has every rank record its steps from here on (`rank_trace`). Only where no step is in flight."""
        self._obeyed(rank_trace.order(None))

    def write_traces(self, folder: Path) -> list[Path]:
        """Ends `record`; the trace of every rank, in order, written into `folder`. Raises `EngineError` when one is not written in time."""
        self._obeyed(rank_trace.order(folder))
        files = [rank_trace.trace_file(folder, rank) for rank in range(self.plan.parallel.ranks)]
        deadline = time.monotonic() + WRITE_S
        while missing := [file for file in files if not file.exists()]:
            self._check()
            if time.monotonic() > deadline:
                raise EngineError(f"{missing[0].stem} wrote no trace within {WRITE_S:g} s")
            time.sleep(0.02)
        return files

    def _obeyed(self, message: bytes) -> None:
        deadline = time.monotonic() + WRITE_S
        for other in self._others:
            other.send(message)
        number = self.ring.send(message, lambda: self._in_time(deadline))
        while not self.answered(number):
            self._in_time(deadline)
            time.sleep(0.001)

    def answered(self, number: int) -> bool:
        return self.ring.answered(number) if self._answers_at == 0 else self._others[self._answers_at - 1].answered(number)

    def answer(self, number: int) -> StepOutput:
        deadline = time.monotonic() + STEP_S
        if self._answers_at == 0:
            return wire.decode_output(self.ring.answer(number, lambda: self._in_time(deadline)))
        return wire.decode_output(self._others[self._answers_at - 1].answer(number, lambda: self._in_time(deadline)))

    def _in_time(self, deadline: float) -> None:
        if time.monotonic() > deadline:
            self._check()
            raise EngineError(f"a step was not done after {STEP_S:g} s: a rank hangs; {self._here.whereabouts()}")
        if int(time.monotonic() * 1e4) % 100 == 0:
            self._check()

    def _check(self) -> None:
        """Raises `EngineError` when a rank or a host has failed or died. All hosts are heard: where one rank died, those of other hosts
        fail, maybe first. Deaths are told before failures, all of them."""
        errors, until = self._errors(), time.monotonic() + NOTICE_S
        while errors and len(errors) <= len(self._others) and time.monotonic() < until:
            time.sleep(0.05)
            errors = self._errors()
        if errors:
            deaths = [str(error) for error in errors if _is_death(error)]
            raise EngineError("; ".join(deaths)) if deaths else errors[0]

    def _errors(self) -> list[EngineError]:
        errors = []
        for check in (*(other.check for other in self._others), self._here.check):
            try:
                check()
            except EngineError as error:
                errors.append(error)
        return errors

    def stacks(self) -> list[str]:
        """`HostRanks.stacks`, of the ranks of this host."""
        return self._here.stacks()

    def close(self) -> None:
        """Ends the processes, whatever they are doing."""
        for other in self._others:
            other.stop()
        self._here.close()
        for other in self._others:
            other.await_stop()


def _is_death(error: EngineError) -> bool:
    return "without a word" in str(error) or "is gone" in str(error)
