"""Starting the ranks of an engine, however many there are: one in this process, several as processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch

from trtllm_engines.checkpoints.write import weight_bytes
from trtllm_engines.compiler.fingerprint import CPU
from trtllm_engines.engine.fits import check_weights_room
from trtllm_engines.engine.folder import Engine
from trtllm_engines.errors import EngineError
from trtllm_engines.memory import allocating
from trtllm_engines.runtime.batch import StepRunner
from trtllm_engines.runtime.host_ranks import Recorder
from trtllm_engines.runtime.hosts import Hosts
from trtllm_engines.runtime.memory import free_bytes
from trtllm_engines.runtime.observer import StepObserver
from trtllm_engines.runtime.rank import CacheSize

if TYPE_CHECKING:
    from trtllm_engines.runtime.cpu import CpuRunner
    from trtllm_engines.runtime.cuda import CudaRunner
    from trtllm_engines.runtime.group import RankGroup, StageLink


class Ranks(StepRunner, Protocol):
    """All ranks of an engine as one runner."""

    num_pages: int
    """Pages of KV cache: as many as the rank with the fewest has."""

    def observe(self, observer: StepObserver) -> None: ...

    def close(self) -> None:
        """Ends ranks that are processes; no step may follow."""


def start_ranks(
    engine: Engine,
    cache: CacheSize,
    *,
    cuda_graphs: bool,
    max_graph_batch: int,
    progress: Callable[[str, int, int], None],
    replica: int | None = None,
    check_logits: bool = False,
    hosts: Hosts | None = None,
    recorder: Recorder = "none",
    detail: str = "off",
) -> Ranks:
    """`progress` is told (stage, done, of how many). `replica`: which copy of the engine this is, where several run side by side; its ranks
    are processes then, on the GPUs after those of the copies before it. `check_logits` is `CudaRunner`'s, of an engine of one rank.
    `hosts`: the others that run ranks, each as many as this one. `recorder` and `detail` are `RankProcesses`'.

    Raises `EngineError`, also for more ranks than there are GPUs."""
    count, nnodes = engine.plan.parallel.ranks, 1 if hosts is None else hosts.nnodes
    first_gpu = count * (replica or 0)
    if count == nnodes == 1 and replica is None:
        return start_rank(
            engine,
            cache,
            cuda_graphs=cuda_graphs,
            max_graph_batch=max_graph_batch,
            captured=lambda done, total: progress("graphs", done, total),
            check_logits=check_logits,
        )
    if engine.arch != CPU and nnodes != (built := engine.plan.parallel.nnodes):
        raise EngineError(f"{engine.path} was built for --nnodes {built}, not {nnodes}; build another engine, with --nnodes {nnodes}")
    if engine.arch != CPU and (here := torch.cuda.device_count()) < first_gpu + count // nnodes:
        what = f"{engine.path} runs on {count} GPUs" if replica is None else f"replica {replica + 1} of {engine.path} needs GPU {first_gpu}"
        more = "build it with a smaller --tp or --pp, or run it elsewhere" if replica is None else "ask for fewer --replicas"
        raise EngineError(f"{what} and this machine has {here}; {more}")
    from trtllm_engines.runtime.rank_processes import RankProcesses

    progress("ranks", 0, count)
    ranks = RankProcesses(
        engine.path,
        engine.plan,
        engine.arch,
        cache,
        cuda_graphs=cuda_graphs,
        max_graph_batch=max_graph_batch,
        first_gpu=first_gpu,
        hosts=hosts,
        recorder=recorder,
        detail=detail,
    )
    progress("ranks", count, count)
    return ranks


def start_rank(
    engine: Engine,
    cache: CacheSize,
    *,
    cuda_graphs: bool = True,
    max_graph_batch: int,
    captured: Callable[[int, int], None] | None = None,
    group: RankGroup | None = None,
    link: StageLink | None = None,
    check_logits: bool = False,
) -> CpuRunner | CudaRunner:
    """Loads this rank's weights onto its device and makes it ready to run steps; its CUDA graphs are captured ahead.

    `captured` is told (graphs captured, of how many). `check_logits` is `CudaRunner`'s. Raises `EngineError`.
    """
    rank = 0 if group is None else group.rank
    device = torch.device("cpu" if engine.arch == "cpu" else "cuda")
    check_weights_room(engine.plan, weight_bytes(engine.plan.weights) + weight_bytes(engine.plan.constants), free_bytes(device))
    if engine.arch == "cpu":
        from trtllm_engines.runtime.cpu import CpuRunner

        with allocating(f"loading {engine.path}"):
            tensors = engine.tensors("cpu", rank)
            return CpuRunner(engine.plan, tensors, cache.num_pages, kv_cache_fraction=cache.fraction, group=group, link=link)
    from trtllm_engines.runtime.cuda import CudaRunner

    runner = CudaRunner(
        engine.plan,
        engine.arch,
        engine.tensors("cuda", rank),
        engine.cubin,
        kv_cache_fraction=cache.fraction,
        num_pages=cache.num_pages,
        cuda_graphs=cuda_graphs,
        max_graph_batch=max_graph_batch,
        group=group,
        link=link,
        check_logits=check_logits,
    )
    runner.capture(captured)
    return runner
