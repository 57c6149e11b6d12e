"""NCCL as a C library: what ranks exchange that do not share memory, as launches of the plan on its own stream.

A call is made of arguments that were bound once, like the library's GEMMs, and is captured in CUDA graphs like any launch; torch takes no
part in it. The library is the one that torch has loaded. Numbers of types, operations and results are those of nccl.h, which only ever
adds to them. Rejected: torch.distributed, whose calls between launches would have a stream, a watchdog and a Python frame of their own, and
a kernel over the network, which NCCL has already.

An all-reduce gives every rank the same bits: whatever algorithm NCCL takes, each element is summed in one place or in one order, and the
sum is passed on (`tests/gpu/test_ranks_gpu.py` compares them). NVLink multicast is off (`runtime.host_ranks`).

A call returns when it is enqueued. Where a rank is gone, the others' kernels wait for it for ever, in a graph too, and no call fails: so a
thread asks `trouble` of all `communicators` (`runtime.nccl_watch`), which is safe beside calls, and ends the process.
"""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch

from trtllm_kernels.dialect.types import Launch
from trtllm_kernels.errors import KernelError
from trtllm_kernels.launch.gemm import Index, Resolve, Views
from trtllm_kernels.launch.shared_library import first_that_loads, mapped

JOIN_S = 60.0
"""How long ranks may take to join a communicator and to connect, which NCCL does in the first call that needs a connection."""
_CUDA = torch.device("cuda")
ROUTINES = ("nccl_sum", "nccl_largest", "nccl_send", "nccl_receive")
_TYPES = {torch.uint8: 1, torch.int32: 2, torch.int64: 4, torch.float16: 6, torch.float32: 7, torch.bfloat16: 9}
"""ncclDataType_t"""
_BYTES = 1
_SUM, _MAX = 0, 2
"""ncclRedOp_t"""
_IN_PROGRESS = 7
_RESULTS = {
    1: "ncclUnhandledCudaError",
    2: "ncclSystemError",
    3: "ncclInternalError",
    4: "ncclInvalidArgument",
    5: "ncclInvalidUsage",
    6: "ncclRemoteError",
    8: "ncclTimeout",
}
"""ncclResult_t"""


class UniqueId(ctypes.Structure):
    """ncclUniqueId, passed by value."""

    _fields_ = (("internal", ctypes.c_uint8 * 128),)


class Library:
    """The loaded library. `call` raises `KernelError` with the name of any result but success."""

    def __init__(self, entry: Any) -> None:
        self.entry = entry
        entry.ncclGetLastError.restype = ctypes.c_char_p
        entry.ncclGetLastError.argtypes = [ctypes.c_void_p]
        version = ctypes.c_int()
        self.call("ncclGetVersion", ctypes.byref(version))
        self.version = version.value
        """23007 is 2.30.7."""

    def call(self, function: str, *args: Any) -> None:
        if result := getattr(self.entry, function)(*args):
            raise KernelError(f"NCCL refused {function}: {self.reason(result)}")

    def reason(self, result: int, communicator: ctypes.c_void_p | None = None) -> str:
        """Name of a result, and what the library says of its last error."""
        said = (self.entry.ncclGetLastError(communicator) or b"").decode(errors="replace").strip()
        return f"{_RESULTS.get(result, f'result {result}')}{f' ({said[:160]})' if said else ''}"


@lru_cache(maxsize=1)
def library() -> Library:
    """The library that torch has loaded, else that of the wheel that torch's CUDA builds bring. Raises `KernelError` if there is none."""
    if entry := first_that_loads(_candidates()):
        return Library(entry)
    raise KernelError("ranks of several hosts need NCCL (libnccl.so.2), which is not here; install a CUDA build of torch")


def _candidates() -> list[str]:
    try:
        wheel = importlib.util.find_spec("nvidia.nccl")
    except ModuleNotFoundError:
        wheel = None
    folders = [] if wheel is None else wheel.submodule_search_locations or []
    return [*mapped("libnccl.so"), *(f"{folder}/lib/libnccl.so.2" for folder in folders), "libnccl.so.2"]


def unique_id() -> bytes:
    """Of a communicator to be: made by one rank and given to all of it."""
    made = UniqueId()
    library().call("ncclGetUniqueId", ctypes.byref(made))
    return bytes(made.internal)


class Communicator:
    """One rank's end, on the current device. Every rank makes it together, and then calls the same methods in the same order.

    Methods enqueue on the current stream and return. All raise `KernelError`.
    """

    def __init__(self, rank: int, size: int, identity: bytes, apart: int = 0, device: torch.device = _CUDA) -> None:
        """Connected when it returns: with the ranks `apart` below and above, which it will receive from and send to, or, for 0, as sums
        need it."""
        self.rank, self.size = rank, size
        self.handle = ctypes.c_void_p()
        self._connected = False
        self._library, self._began = library(), time.monotonic()
        self.number = next(_numbers)
        _COMMUNICATORS[self.number] = self
        made = UniqueId.from_buffer_copy(identity)
        self._library.call("ncclCommInitRank", ctypes.byref(self.handle), ctypes.c_int(size), made, ctypes.c_int(rank))
        self._connect(apart, torch.zeros(1, dtype=torch.int64, device=device))
        self._connected = True

    def _connect(self, apart: int, word: torch.Tensor) -> None:
        count, kind = ctypes.c_size_t(1), ctypes.c_int(_TYPES[word.dtype])
        if not apart:
            arguments = _pointer(word), _pointer(word), count, kind, ctypes.c_int(_SUM), self.handle, _stream()
            self._library.call("ncclAllReduce", *arguments)
        for function, peer in (("ncclRecv", self.rank - apart), ("ncclSend", self.rank + apart)):
            if apart and 0 <= peer < self.size:
                self._library.call(function, _pointer(word), count, kind, ctypes.c_int(peer), self.handle, _stream())
        if word.is_cuda:
            torch.cuda.synchronize()

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """[size, *x.shape]: `x` of every rank, in rank order."""
        x = x.contiguous()
        gathered = torch.empty(self.size, *x.shape, dtype=x.dtype, device=x.device)
        arguments = _pointer(x), _pointer(gathered), ctypes.c_size_t(x.nbytes), ctypes.c_int(_BYTES), self.handle, _stream()
        self._library.call("ncclAllGather", *arguments)
        return gathered

    def trouble(self) -> str:
        """What keeps this communicator from going on, as a sentence; empty where nothing does. May be asked on any thread."""
        if not self._connected and time.monotonic() - self._began > JOIN_S:
            return f"NCCL did not connect the ranks within {JOIN_S:g} s; see whether hosts reach each other on every port"
        if not self.handle:
            return ""
        state = ctypes.c_int()
        result = int(self._library.entry.ncclCommGetAsyncError(self.handle, ctypes.byref(state))) or state.value
        if result in (0, _IN_PROGRESS):
            return ""
        return f"NCCL cannot go on: {self._library.reason(result, self.handle)}"


_COMMUNICATORS: dict[int, Communicator] = {}
_numbers = itertools.count(1)


def communicators() -> list[Communicator]:
    """Those of this process, also such as are being joined."""
    return list(_COMMUNICATORS.values())


def group_of(communicator: Communicator, device: torch.device) -> torch.Tensor:
    """The op argument `group` (`dialect/group.py`)."""
    return torch.tensor([communicator.rank, communicator.number, *[0] * (communicator.size - 2)], dtype=torch.int32, device=device)


def pipe_of(communicator: Communicator, tp: int, device: torch.device) -> torch.Tensor:
    """The op argument `pipe`: stages of `tp` ranks each, of a communicator of all ranks."""
    return torch.tensor([tp, communicator.number], dtype=torch.int32, device=device)


class NcclCall:
    """One bound call: `rows` first rows of its tensors. `rows` is the position of their number among a step's values."""

    serialize_next = True
    """A kernel after it does not begin before its end: NCCL's own kernels say nothing of when the next may."""

    def __init__(self, launch: Launch, resolve: Resolve, index: Index, stream: ctypes.c_void_p) -> None:
        """`stream` is filled in before each run."""
        if launch.library not in ROUTINES:
            raise KernelError(f"unknown routine of NCCL {launch.library!r} in the plan; known: {', '.join(ROUTINES)}")
        *tensors, place = (resolve(str(arg.value)) for arg in launch.args)
        first, number = place[:2].tolist()
        communicator = _COMMUNICATORS[number]
        self._keep = tensors
        self.rows = index(launch.grid[0])
        self._elements = index(launch.grid[1])
        self._count = ctypes.c_size_t()
        x = tensors[0]
        if launch.library in ("nccl_sum", "nccl_largest"):
            self._function, self._width = "ncclAllReduce", 1
            if x.dtype not in _TYPES:
                raise KernelError(f"NCCL has no sum of {x.dtype}; choose another --precision, or ranks of one host")
            how = ctypes.c_int(_TYPES[x.dtype]), ctypes.c_int(_SUM if launch.library == "nccl_sum" else _MAX)
            arguments: Sequence[Any] = (_pointer(x), _pointer(tensors[-1]), self._count, *how)
        else:
            sends = launch.library == "nccl_send"
            self._function, self._width = "ncclSend" if sends else "ncclRecv", x.element_size()
            peer = communicator.rank + (first if sends else -first)
            arguments = (_pointer(x), self._count, ctypes.c_int(_BYTES), ctypes.c_int(peer))
        entry = getattr(library().entry, self._function)
        self._call: Callable[[], int] = partial(entry, *arguments, communicator.handle, stream)

    def resize(self, values: Sequence[int], views: Views) -> None:
        self._count.value = values[self.rows] * values[self._elements] * self._width

    def run(self) -> None:
        if result := self._call():
            raise KernelError(f"NCCL refused {self._function}: {library().reason(result)}")


def _stream() -> ctypes.c_void_p:
    return ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)


def _pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
