"""A rank's membership in its tensor-parallel group and its place in a pipeline: shared memory, agreement, and exchange outside the plan.

What ranks exchange in every step is ops of the plan. What is here happens when an engine is loaded, and in steps whose sampling takes whole
rows of logits (filters, penalties, log-probabilities).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist

from trtllm_engines.compiler.plan import Plan
from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.references.communication import communicate


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

    def receive(self, hidden: torch.Tensor) -> None:
        """Fills `hidden` with what the stage before sent of its next step."""

    def send(self, hidden: torch.Tensor) -> None: ...


class ProcessLink:
    """Between ranks that are processes on CPUs. Stage s of groups of `tp` ranks has ranks s * tp to (s + 1) * tp - 1."""

    def __init__(self, tp: int) -> None:
        self._before, self._next = dist.get_rank() - tp, dist.get_rank() + tp

    def receive(self, hidden: torch.Tensor) -> None:
        dist.recv(hidden, src=self._before)

    def send(self, hidden: torch.Tensor) -> None:
        dist.send(hidden.contiguous(), dst=self._next)


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
    """Ranks that are processes, joined by torch.distributed: gloo on CPUs and for what hosts exchange, NCCL for logits on GPUs."""

    def __init__(self, device: torch.device, tp: int) -> None:
        """Every `tp` ranks in order are a group."""
        self.rank, self.size = dist.get_rank() % tp, tp
        self._own: dist.ProcessGroup | None = None
        if tp < dist.get_world_size():
            groups = [dist.new_group(list(range(first, first + tp))) for first in range(0, dist.get_world_size(), tp)]
            self._own = groups[dist.get_rank() // tp]
        self._device = device
        self._logits = dist.new_group(backend="nccl") if device.type == "cuda" else self._own
        self._peers: object = None

    def arena(self, nbytes: int) -> torch.Tensor:
        if self._device.type == "cpu":
            return torch.zeros(nbytes, dtype=torch.uint8)
        from trtllm_kernels.launch.peers import PeerMemory

        self._peers = PeerMemory(self.rank, self.size, self._exchange)
        return self._peers.allocate(nbytes)

    def join(self, plan: Plan) -> torch.Tensor:
        if self._device.type == "cpu":
            return communicate(GlooCommunicator(self.rank, self.size, self._own))
        from trtllm_kernels.launch.peers import PeerMemory

        assert isinstance(self._peers, PeerMemory)
        return self._peers.join(bytes_of(plan.config.hidden_size, plan.quant.wide_dtype), plan.profile.max_batch_size)

    def least(self, count: int) -> int:
        counted = torch.tensor([count])
        dist.all_reduce(counted, dist.ReduceOp.MIN)
        return int(counted)

    def columns(self, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self._logits)
        return torch.cat(parts, dim=1)

    def _exchange(self, data: bytes) -> list[bytes]:
        own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own, group=self._own)
        return [bytes(part.numpy()) for part in parts]
