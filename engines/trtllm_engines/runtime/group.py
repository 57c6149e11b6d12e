"""A rank's membership in its tensor-parallel group and its place in a pipeline: shared memory, agreement, and exchange outside the plan.

What ranks exchange in every step is ops of the plan. What is here happens when an engine is loaded, and in steps whose sampling takes whole
rows of logits (filters, penalties, log-probabilities).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist

from trtllm_engines.compiler.plan import HIDDEN, ParallelLayout, Plan
from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.dialect.group import Way, group_words
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.references.communication import communicate, connect


class RankGroup(Protocol):
    """One rank's end of a group. Every rank calls each method at the same point."""

    @property
    def rank(self) -> int: ...

    def arena(self, nbytes: int) -> torch.Tensor:
        """uint8 [nbytes] that the other ranks reach. Called once, before `join`."""

    def join(self, plan: Plan) -> torch.Tensor:
        """The plan's step input `group`."""

    def least(self, count: int) -> int:
        """The smallest count of all ranks of the engine."""

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, columns] of every rank side by side."""


class StageLink(Protocol):
    """One rank's ends of the pipeline: the residual stream from the same rank of the stage before, and to that of the next."""

    def join(self, plan: Plan) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The plan's step inputs `pipe` and `hidden`, the latter where the stage before writes it. Every rank calls it together."""


class CpuLink(Protocol):
    """What `joined` makes a `StageLink` of: it is what the ops send and receive through."""

    def receive(self, hidden: torch.Tensor) -> None: ...

    def send(self, hidden: torch.Tensor) -> None: ...


def joined(link: CpuLink, plan: Plan) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`StageLink.join` on a CPU."""
    spec = plan.step_inputs.get(HIDDEN)
    rows = (plan.profile.max_num_tokens, plan.config.hidden_size)
    return connect(link), None if spec is None else torch.zeros(rows, dtype=DTYPES[spec.dtype])


class ProcessLink:
    """Between ranks that are processes on CPUs. Stage s of groups of `tp` ranks has ranks s * tp to (s + 1) * tp - 1."""

    def __init__(self, tp: int) -> None:
        self._before, self._next = dist.get_rank() - tp, dist.get_rank() + tp

    def join(self, plan: Plan) -> tuple[torch.Tensor, torch.Tensor | None]:
        return joined(self, plan)

    def receive(self, hidden: torch.Tensor) -> None:
        dist.recv(hidden, src=self._before)

    def send(self, hidden: torch.Tensor) -> None:
        dist.send(hidden.contiguous(), dst=self._next)


class GpuLink:
    """Between ranks that are processes on GPUs of one host: they write into each other's memory."""

    def __init__(self, tp: int) -> None:
        self._tp = tp

    def join(self, plan: Plan) -> tuple[torch.Tensor, torch.Tensor | None]:
        from trtllm_kernels.launch.peers import PipeMemory

        dtype, rows, columns = plan.quant.wide_dtype, plan.profile.max_num_tokens, plan.config.hidden_size
        memory = PipeMemory(dist.get_rank(), dist.get_world_size(), self._tp, lambda data: _exchanged(data, dist.get_world_size(), None))
        pipe = memory.join(bytes_of(columns, dtype), rows)
        if HIDDEN not in plan.step_inputs:
            return pipe, None
        return pipe, memory.inbox.view(DTYPES[dtype]).view(-1, columns)[:rows]


class NcclLink:
    """Between ranks on GPUs of several hosts. What a stage receives lands where its first op reads it, so there is no inbox."""

    def __init__(self, tp: int) -> None:
        self._tp = tp

    def join(self, plan: Plan) -> tuple[torch.Tensor, torch.Tensor | None]:
        from trtllm_kernels.launch.nccl import Communicator, pipe_of, unique_id

        rank, size = dist.get_rank(), dist.get_world_size()
        made = unique_id() if rank == 0 else bytes(128)
        communicator = Communicator(rank, size, _exchanged(made, size, None)[0], apart=self._tp)
        return pipe_of(communicator, self._tp, torch.device("cuda")), None


def _exchanged(data: bytes, size: int, group: dist.ProcessGroup | None) -> list[bytes]:
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    parts = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(parts, own, group=group)
    return [bytes(part.numpy()) for part in parts]


@dataclass(frozen=True)
class GlooCommunicator:
    """What ops on a CPU exchange through (`references.communication`)."""

    rank: int
    size: int
    group: dist.ProcessGroup | None

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return parts


class ProcessGroup:
    """Ranks that are processes on CPUs, joined by torch.distributed; on GPUs what happens when an engine is loaded goes through it too."""

    def __init__(self, tp: int) -> None:
        """Every `tp` ranks in order are a group."""
        self.rank, self.size = dist.get_rank() % tp, tp
        self._own = self._group_of_stage() if tp < dist.get_world_size() else None

    def _group_of_stage(self, backend: str | None = None) -> dist.ProcessGroup:
        firsts = range(0, dist.get_world_size(), self.size)
        groups = [dist.new_group(list(range(first, first + self.size)), backend=backend) for first in firsts]
        own: dist.ProcessGroup = groups[dist.get_rank() // self.size]
        return own

    def arena(self, nbytes: int) -> torch.Tensor:
        return torch.zeros(nbytes, dtype=torch.uint8)

    def join(self, plan: Plan) -> torch.Tensor:
        return communicate(GlooCommunicator(self.rank, self.size, self._own))

    def least(self, count: int) -> int:
        counted = torch.tensor([count])
        dist.all_reduce(counted, dist.ReduceOp.MIN)
        return int(counted)

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.size == 1 else self._side_by_side(x, self._own)

    def _side_by_side(self, x: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=group)
        return torch.cat(parts, dim=1)

    def _exchange(self, data: bytes) -> list[bytes]:
        return _exchanged(data, self.size, self._own)


class PeerGroup(ProcessGroup):
    """Ranks on GPUs of one host, which reach each other's memory."""

    def __init__(self, tp: int) -> None:
        super().__init__(tp)
        self._logits = self._group_of_stage("nccl") if tp > 1 else None
        self._peers: object = None

    def arena(self, nbytes: int) -> torch.Tensor:
        if self.size == 1:
            return torch.zeros(nbytes, dtype=torch.uint8, device="cuda")
        from trtllm_kernels.launch.peers import PeerMemory

        self._peers = PeerMemory(self.rank, self.size, self._exchange)
        return self._peers.allocate(nbytes)

    def join(self, plan: Plan) -> torch.Tensor:
        if self.size == 1:
            return torch.zeros(group_words(1), dtype=torch.int64, device="cuda")
        from trtllm_kernels.launch.peers import PeerMemory

        assert isinstance(self._peers, PeerMemory)
        return self._peers.join(bytes_of(plan.config.hidden_size, plan.quant.wide_dtype), plan.profile.max_batch_size)

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.size == 1 else self._side_by_side(x, self._logits)


class NcclGroup(ProcessGroup):
    """Ranks on GPUs of several hosts."""

    def arena(self, nbytes: int) -> torch.Tensor:
        from trtllm_kernels.launch.nccl import Communicator, unique_id

        made = unique_id() if self.rank == 0 else bytes(128)
        self._communicator = Communicator(self.rank, self.size, self._exchange(made)[0])
        return torch.zeros(nbytes, dtype=torch.uint8, device="cuda")

    def join(self, plan: Plan) -> torch.Tensor:
        from trtllm_kernels.launch.nccl import group_of

        return group_of(self._communicator, torch.device("cuda"))

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._communicator.all_gather(x).unbind(), dim=1)


def group_for(layout: ParallelLayout, on_gpu: bool) -> ProcessGroup:
    """This rank's, in an engine of this layout."""
    if not on_gpu:
        return ProcessGroup(layout.tp)
    groups: dict[Way, type[ProcessGroup]] = {"memory": PeerGroup, "nccl": NcclGroup}
    return groups[layout.group_way](layout.tp)


def link_for(layout: ParallelLayout, on_gpu: bool) -> StageLink | None:
    """This rank's ends of the pipeline, where there is one."""
    if layout.pp == 1:
        return None
    if not on_gpu:
        return ProcessLink(layout.tp)
    return GpuLink(layout.tp) if layout.pipe_way == "memory" else NcclLink(layout.tp)
