"""GPU memory that the ranks of one host reach in each other, and the `group` argument made of it (`dialect/group.py`).

Memory is plain allocations, exported by CUDA IPC and mapped over NVLink or PCIe: nothing is registered with a library, and NVLink multicast
is not used. Addresses differ from rank to rank, so each rank keeps its own list of where the memory of every rank is.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import torch

from trtllm_kernels.dialect.group import ADDRESSES, INBOXES, ONE_SHOT_ROWS, PIPE_WORDS, TWO_SHOT_BLOCKS, group_words
from trtllm_kernels.dialect.types import EMPTY_WORD
from trtllm_kernels.errors import KernelError

ABSENT = -(1 << 31)
"""As int32, the word of a one-shot buffer that nothing was sent to yet (`cuda_kernels/all_reduce.cuh`)."""
_COUNTER_BYTES = 128
"""A counter has a cache line of its own: another GPU writes it while this one polls it."""
Exchange = Callable[[bytes], list[bytes]]
"""Gives every rank the bytes of each, in rank order."""


class PeerMemory:
    """One rank's memory for its peers. `allocate` comes first, then `join`, which every rank calls together."""

    def __init__(self, rank: int, size: int, exchange: Exchange) -> None:
        self.rank, self.size = rank, size
        self._exchange = exchange
        self._arena: torch.Tensor | None = None
        self._pointers: list[int] = []

    def allocate(self, nbytes: int) -> torch.Tensor:
        """The arena: uint8 [nbytes], zeros, on the current device."""
        self._arena = _allocated(max(nbytes, 1))
        return self._arena

    def join(self, row_bytes: int, most_rows: int) -> torch.Tensor:
        """The group, int64 on the device. `row_bytes`: of what is reduced; `most_rows`: sampled in a step.

        Raises `KernelError` where GPUs cannot reach each other's memory.
        """
        if self._arena is None:
            raise KernelError("the arena must be allocated before ranks join")
        own = {
            "arena": self._arena,
            "buffer": _allocated(3 * self.size * ONE_SHOT_ROWS * row_bytes),
            "flags": _allocated(2 * TWO_SHOT_BLOCKS * self.size * 4),
            "words": _allocated(3 * self.size * most_rows * 8),
        }
        own["buffer"].view(torch.int32).fill_(ABSENT)
        own["words"].view(torch.int64).fill_(EMPTY_WORD)
        torch.cuda.synchronize()
        self._own = own
        exported = b"".join(_export(own[name]) for name in ADDRESSES)
        addresses = {name: [0] * self.size for name in ADDRESSES}
        for rank, handles in enumerate(self._exchange(exported)):
            for index, name in enumerate(ADDRESSES):
                handle = handles[64 * index : 64 * (index + 1)]
                addresses[name][rank] = own[name].data_ptr() if rank == self.rank else self._map(handle, rank)
        header = struct.pack("<12I", self.rank, 0, 0, 0, 0, 0, 0, ONE_SHOT_ROWS, 0, 0, 0, 0)
        packed = header + b"".join(struct.pack(f"<{self.size}Q", *addresses[name]) for name in ADDRESSES)
        assert len(packed) == 8 * group_words(self.size)
        group = torch.frombuffer(bytearray(packed), dtype=torch.int64).to(self._arena.device)
        torch.cuda.synchronize()
        self._exchange(b"joined")  # none writes into another's memory before that is ready
        return group

    def _map(self, handle: bytes, rank: int) -> int:
        pointer = _mapped(handle, rank)
        self._pointers.append(pointer)
        return pointer

    def close(self) -> None:
        """Unmaps the others' memory."""
        from cuda.bindings import runtime

        for pointer in self._pointers:
            runtime.cudaIpcCloseMemHandle(pointer)
        self._pointers.clear()


class PipeMemory:
    """One rank's ends of a pipeline: the inbox here, that of the same rank of the next stage, and counters (`cuda_kernels/pipe.cuh`).

    Stage s has ranks s * tp to (s + 1) * tp - 1 of `size`. `exchange` is of all of them.
    """

    def __init__(self, rank: int, size: int, tp: int, exchange: Exchange) -> None:
        self.rank, self.size, self._tp = rank, size, tp
        self._exchange = exchange
        self._mapped: list[int] = []

    def join(self, row_bytes: int, most_rows: int) -> torch.Tensor:
        """The pipe, int64 on the device. Every rank calls it together. Raises `KernelError` as `PeerMemory.join`."""
        first, last = self.rank < self._tp, self.rank >= self.size - self._tp
        self.inbox = _allocated(1 if first else INBOXES * most_rows * row_bytes)
        """uint8 [inboxes * most_rows * row_bytes] that the stage before writes; of one byte where there is none."""
        self._counters = _allocated(2 * _COUNTER_BYTES)
        torch.cuda.synchronize()
        exported = self._exchange(_export(self.inbox) + _export(self._counters))
        arrived, taken = self._counters.data_ptr(), self._counters.data_ptr() + _COUNTER_BYTES
        next_inbox = next_arrived = before_taken = 0
        if not last:
            handles = exported[self.rank + self._tp]
            next_inbox, next_arrived = (self._map(handles[at : at + 64], self.rank + self._tp) for at in (0, 64))
        if not first:
            before_taken = self._map(exported[self.rank - self._tp][64:128], self.rank - self._tp) + _COUNTER_BYTES
        packed = struct.pack("<4I", 0, 0, 0, most_rows)
        packed += struct.pack("<6Q", self.inbox.data_ptr(), next_inbox, arrived, next_arrived, taken, before_taken)
        assert len(packed) == 8 * PIPE_WORDS
        pipe = torch.frombuffer(bytearray(packed), dtype=torch.int64).cuda()
        torch.cuda.synchronize()
        self._exchange(b"joined")
        return pipe

    def _map(self, handle: bytes, rank: int) -> int:
        pointer = _mapped(handle, rank)
        self._mapped.append(pointer)
        return pointer


class _Raw:
    """Device memory as torch takes it over."""

    def __init__(self, pointer: int, nbytes: int) -> None:
        self.__cuda_array_interface__ = {"shape": (nbytes,), "typestr": "|u1", "data": (pointer, False), "version": 3}


def _allocated(nbytes: int) -> torch.Tensor:
    """Zeros in an allocation of their own, which torch's allocator would not give and IPC wants; kept until the process ends."""
    from cuda.bindings import runtime

    torch.cuda.current_stream()  # the device's context
    error, pointer = runtime.cudaMalloc(nbytes)
    if int(error):
        raise torch.cuda.OutOfMemoryError(f"{nbytes / 2**30:.1f} GiB of device memory for peers could not be allocated ({error.name})")
    tensor = torch.as_tensor(_Raw(int(pointer), nbytes), device="cuda")
    return tensor.zero_()


def _mapped(handle: bytes, rank: int) -> int:
    """Address here of memory that `rank` has exported."""
    from cuda.bindings import runtime

    described = runtime.cudaIpcMemHandle_t()
    described.reserved = handle
    error, pointer = runtime.cudaIpcOpenMemHandle(described, runtime.cudaIpcMemLazyEnablePeerAccess)
    if int(error):
        raise KernelError(
            f"the memory of rank {rank}'s GPU cannot be mapped here ({error.name}); ranks of one host need GPUs with peer access: "
            f"see nvidia-smi topo -p2p r"
        )
    return int(pointer)


def _export(tensor: torch.Tensor) -> bytes:
    from cuda.bindings import runtime

    error, handle = runtime.cudaIpcGetMemHandle(tensor.data_ptr())
    if int(error):
        raise KernelError(f"device memory cannot be exported to other processes ({error.name}); CUDA IPC is needed for several ranks")
    reserved: Any = handle.reserved
    return bytes(reserved)
