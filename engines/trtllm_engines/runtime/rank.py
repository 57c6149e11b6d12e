"""The memory of one rank: a device, its part of the weights, and its KV cache. What an engine has once for each GPU it runs on.

A rank runs a plan of its own over memory of its own; the scheduler, requests and tokens belong to the engine. Between the two there is only
`StepRunner`: step batches in, sampled tokens out. An engine of one rank has it in its own process; of several, each is a process
(`rank_processes`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from trtllm_engines.compiler.plan import Plan
from trtllm_engines.runtime.device_state import DeviceState, pages_within
from trtllm_engines.runtime.memory import check_room, free_bytes, step_bytes
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.dialect.types import TensorSpec

if TYPE_CHECKING:
    from trtllm_engines.runtime.group import RankGroup, StageLink

CPU_CACHE_BYTES = 4 << 30
"""Most memory the KV cache takes on a CPU."""


@dataclass(frozen=True)
class CacheSize:
    """`fraction` of the memory left after weights and arena, unless `num_pages` says how many pages of KV cache a rank takes."""

    fraction: float = 0.9
    num_pages: int | None = None


class RankMemory:
    """All memory of one rank, allocated once, in this order: `tensors` (weights and constants, given), `arena`, what stages receive
    into, `state` with the KV cache.

    Raises `EngineError` when not one sequence's cache fits.
    """

    def __init__(
        self,
        plan: Plan,
        device: torch.device | str,
        tensors: Mapping[str, torch.Tensor],
        cache: CacheSize,
        group: RankGroup | None = None,
        link: StageLink | None = None,
    ) -> None:
        self.plan = plan
        self.device = torch.device(device)
        self.tensors = tensors
        self.group = group
        arena_bytes = plan.arena_bytes if self.device.type == "cuda" else 0
        check_room(plan, arena_bytes, cache.num_pages, free_bytes(self.device))
        self.arena = torch.zeros(arena_bytes, dtype=torch.uint8, device=self.device) if group is None else group.arena(arena_bytes)
        """Of activations; the CPU's references allocate their own."""
        pipe, hidden = (None, None) if link is None else link.join(plan)
        self.num_pages = pages_within(plan, self._free_bytes(cache.fraction)) if cache.num_pages is None else cache.num_pages
        if group is not None:
            self.num_pages = group.least(self.num_pages)
        self.state = DeviceState(plan, self.num_pages, self.device, None if group is None else group.join(plan), pipe, hidden)

    def _free_bytes(self, fraction: float) -> int:
        left = free_bytes(self.device) - step_bytes(self.plan.profile)
        return int(left * fraction) if self.device.type == "cuda" else min(CPU_CACHE_BYTES, int(left * fraction))

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Logits [S, V] of which this rank's op gave `x`, its columns."""
        return x if self.group is None else self.group.columns(x)

    def view(self, name: str, spec: TensorSpec) -> torch.Tensor:
        """All rows of value `name` that its buffer in the arena has room for."""
        buffer, dtype = self.plan.buffers[name], DTYPES[spec.dtype]
        row = [int(dim) for dim in spec.shape[1:]]
        count = buffer.nbytes // (math.prod(row) * dtype.itemsize)
        return self.arena[buffer.offset :].view(dtype)[: count * math.prod(row)].view(count, *row)
