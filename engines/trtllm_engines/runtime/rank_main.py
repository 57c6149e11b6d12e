"""One rank's process: loads its part of an engine, then runs the steps it is sent. Started by `rank_processes`, several by torchrun.

Steps stay one ahead of the device: the next is launched before the tokens of the one before are waited for.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
import time
from collections import deque
from pathlib import Path
from typing import get_args

import torch
import torch.distributed as dist

from trtllm_engines.compiler.fingerprint import CPU, detect_target
from trtllm_engines.engine.folder import load_engine
from trtllm_engines.runtime import rank_trace, wire
from trtllm_engines.runtime.batch import StepHandle, StepRunner
from trtllm_engines.runtime.group import group_for, link_for
from trtllm_engines.runtime.host_ranks import Recorder
from trtllm_engines.runtime.nccl_watch import NcclWatch
from trtllm_engines.runtime.rank import CacheSize
from trtllm_engines.runtime.rank_trace import RankTrace
from trtllm_engines.runtime.ranks import start_rank
from trtllm_engines.runtime.step_ring import StepRing


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trtllm_engines.runtime.rank_main")
    parser.add_argument("engine", type=Path)
    parser.add_argument("arch")
    parser.add_argument("--tp", type=int, required=True, help="ranks of a stage; as many follow as there are processes")
    parser.add_argument("--first-gpu", type=int, default=0, help="index of the first rank's GPU among those visible")
    parser.add_argument("--ring", required=True)
    parser.add_argument("--message-bytes", type=int, required=True)
    parser.add_argument("--answer-bytes", type=int, required=True)
    parser.add_argument("--kv-cache-fraction", type=float, required=True)
    parser.add_argument("--num-pages", type=int)
    parser.add_argument("--max-graph-batch", type=int, required=True)
    parser.add_argument("--recorder", choices=get_args(Recorder), default="none")
    parser.add_argument("--detail", default="off")
    parser.add_argument("--controller", type=int, required=True)
    options = parser.parse_args()
    local = int(os.environ["LOCAL_RANK"])
    ring = StepRing.attach(options.ring, int(os.environ["LOCAL_WORLD_SIZE"]), options.message_bytes, options.answer_bytes)
    faulthandler.register(signal.SIGUSR1)  # before the ring has this process, which may then be asked (`HostRanks.stacks`)
    ring.enter(local, os.getpid())
    try:
        _run(options, int(os.environ["RANK"]), local, int(os.environ["WORLD_SIZE"]), ring)
    except BaseException as error:
        ring.fail(local, f"{type(error).__name__}: {' '.join(str(error).split())}")
        raise


def _run(options: argparse.Namespace, rank: int, local: int, size: int, ring: StepRing) -> None:
    """`rank` of `size` in all; `local`: its number on this host, under which the ring knows it."""
    on_gpu = options.arch != CPU
    gpu = options.first_gpu + local
    if on_gpu:
        torch.cuda.set_device(gpu)
    if size > 1:
        dist.init_process_group("gloo")
    trace = RankTrace(rank, on_gpu, options.recorder, options.detail)
    tp = options.tp
    engine = load_engine(options.engine, detect_target(gpu) if on_gpu else None, verify="sizes", stage=rank // tp)
    layout = engine.plan.parallel
    watch = NcclWatch(lambda reason: ring.fail(local, reason)) if on_gpu and layout.nnodes > 1 else None
    runner = start_rank(
        engine,
        CacheSize(options.kv_cache_fraction, options.num_pages),
        cuda_graphs=options.max_graph_batch > 0,
        max_graph_batch=max(1, options.max_graph_batch),
        group=group_for(layout, on_gpu) if size > 1 else None,
        link=link_for(layout, on_gpu),
    )
    trace.observe(runner)
    if size > 1:
        dist.barrier()
    ring.ready(local, runner.num_pages)
    _serve(ring, local, runner, trace, Ancestors(options.controller), answers=rank == size - tp)
    if watch is not None:
        watch.stop()
    if size > 1:
        dist.destroy_process_group()


def _serve(ring: StepRing, local: int, runner: StepRunner, trace: RankTrace, ancestors: Ancestors, answers: bool) -> None:
    """Runs the steps that come, and obeys what the recorder is told between them, until no more come. `answers`: whether this is the
    first rank of the last stage, which alone is listened to."""
    flights: deque[tuple[int, StepHandle]] = deque()
    number = 0

    def land(all_of_them: bool = False) -> None:
        """Answers steps that are done."""
        while flights and (all_of_them or flights[0][1].done()):
            landed, handle = flights.popleft()
            output = handle.result()
            if answers:
                ring.reply(landed, wire.encode_output(output))

    def wait() -> None:
        land()
        if ancestors.gone():
            sys.exit("the process that started this rank is gone")

    while (message := ring.receive(local, wait)) is not None:
        if message.startswith(rank_trace.MAGIC):
            land(all_of_them=True)
            trace.obey(message)
            if answers:
                ring.reply(number, b"")
            number += 1
            continue
        batch = wire.decode(message)
        trace.launch_begins(number, batch)
        flights.append((number, runner.launch(batch)))
        trace.launch_ends()
        number += 1
        land()
        while len(flights) > 2:
            land()
            time.sleep(20e-6)
    land(all_of_them=True)


class Ancestors:
    """The process that steps this rank (`controller`) and the one that started it: torchrun's agent, which outlives a controller that was
    killed, or the controller itself."""

    def __init__(self, controller: int) -> None:
        self._parent, self._controller = os.getppid(), controller
        self._looked = 0.0

    def gone(self) -> bool:
        """Whether either process is gone. The agent's parent is looked up at most once a second."""
        if os.getppid() != self._parent:
            return True
        if self._parent == self._controller or time.monotonic() - self._looked < 1:
            return False
        self._looked = time.monotonic()
        return parent_of(self._parent) != self._controller


def parent_of(process: int) -> int:
    """Id of the parent of `process`; 0 where `process` is gone."""
    try:
        stat = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return 0
    return int(stat.rpartition(b")")[2].split()[1])


if __name__ == "__main__":
    main()
