"""Carries out launches: cubins through the CUDA driver, GEMMs through `launch/gemm.py`, NCCL through `launch/nccl.py`.

An engine's launches never change, only the sizes of the step do, so everything is bound once. Each launch has a prebuilt array of pointers
to its parameters. Addresses of tensors are fixed, and an integer that depends on the step is one shared ctypes object, rewritten once per
step for every launch that uses it. What is left of a launch in Python is one call of `cuLaunchKernelEx` with a prebuilt configuration.
Launches go to torch's current stream, so they are ordered with torch's work and captured by `torch.cuda.graph`. Triton is not imported.

Programmatic dependent launch (PDL). Kernels that wait for their predecessors themselves (`triton_kernels/pdl.py`) are launched as
programmatic dependents, in a capture too, where the dependency becomes an edge of the graph. Exceptions are the first launch of a run and
the one after a launch with `serialize_next`. So whatever came before a run is complete and visible before any kernel of the run begins:
weights that were just drawn, refitted or copied are the constants that kernels take them for. A `concurrent` launch is a programmatic
dependent that does not wait; the launches around such a pair are serialized. What follows the pair has to wait for both, and on a stream it
does. A graph may have its edge from the second alone, so steps with such a pair must not be captured (engines capture only decode steps).

Triton's ABI, which this must match: parameters in the signature's order; a TMA descriptor is the 128-byte map, then its two sizes as i32
and two strides as i64; two scratch pointers (unused here) come last, and kernels in CUDA C++ do not declare them.
"""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from cuda.bindings import driver as cuda

from trtllm_kernels.compile.cubin import Cubin
from trtllm_kernels.dialect.expr import StepFunction, compile_all
from trtllm_kernels.dialect.types import SKINNY_TOKENS, Arg, Dim, Launch, Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.launch import nccl
from trtllm_kernels.launch.gemm import LibraryCall, LibraryCalls, Resolve, Views
from trtllm_kernels.launch.nccl import NcclCall

_SUCCESS = cuda.CUresult.CUDA_SUCCESS
_DEFAULT_SHARED_BYTES = 48 * 1024
_HOST_ELEMENT_TYPE = {8: 10, 9: 8, 10: 9}
"""Triton's device numbering of TMA element types that differs from the driver's."""

_Loaded = tuple[Any, Any]
"""A module and its function."""
_functions: dict[tuple[int, bytes, int], tuple[_Loaded, _Loaded]] = {}
"""By device, code and shared memory: two launches of the same code may ask for different amounts."""


def _check(result: tuple[Any, ...], doing: str) -> Any:
    if result[0] != _SUCCESS:
        raise KernelError(f"the CUDA driver refused to {doing}: {result[0].name}")
    return result[1] if len(result) > 1 else None


def load_functions(cubin: Cubin) -> tuple[Any, Any]:
    """(function for steps of up to `SKINNY_TOKENS` tokens, function for larger steps) of a cubin, loaded once per process and device.

    They are the same function if the kernel does not overlap with its predecessor. An SM changes how its memory is split between L1 and
    shared memory only when it is empty (docs/facts/decode-steps.md, not proven). So a kernel with another split than the one before it
    cannot begin on an SM before that one has left. In steps of up to `SKINNY_TOKENS` kernels overlap from end to end, and all ask for the
    largest shared memory. In larger steps the library's GEMMs, which nothing overlaps, stand in between, and the CUDA driver chooses: the
    largest split cost them a little in bf16 and nothing in fp8.
    """
    device = torch.cuda.current_device()
    key = (device, hashlib.sha256(cubin.code).digest(), cubin.info.shared_bytes)
    if key not in _functions:
        torch.cuda.current_stream().synchronize()  # makes torch create the primary context and bind it to this thread
        skinny = large = _load(cubin)
        if cubin.info.waits:
            skinny = _load(cubin)
            all_shared = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100
            _check(cuda.cuFuncSetAttribute(skinny[1], *all_shared), f"let kernel {cubin.info.entry} overlap with others")
        _functions[key] = skinny, large
    skinny, large = _functions[key]
    return skinny[1], large[1]


def _load(cubin: Cubin) -> _Loaded:
    name = f"load kernel {cubin.info.entry} ({cubin.info.arch})"
    module = _check(cuda.cuModuleLoadData(cubin.code), name)
    function = _check(cuda.cuModuleGetFunction(module, cubin.info.entry.encode()), name)
    if cubin.info.shared_bytes > _DEFAULT_SHARED_BYTES:
        attribute = cuda.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        _check(cuda.cuFuncSetAttribute(function, attribute, cubin.info.shared_bytes), f"{name} with {cubin.info.shared_bytes} B shared")
    return module, function


def _bindable(tensor: torch.Tensor) -> bool:
    """Kernels are compiled with the promise that every pointer is divisible by 16. Pinned memory has one address for host and device."""
    return (tensor.is_cuda or tensor.is_pinned()) and tensor.is_contiguous() and tensor.data_ptr() % 16 == 0


class _Symbolic:
    """The distinct expressions of a program and their current values. Integers used as parameters have one ctypes object each."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._parameters: dict[tuple[str, int], Any] = {}
        self._function: StepFunction | None = None
        self.values: tuple[int, ...] = ()

    def index(self, dim: Dim) -> int:
        return self._index.setdefault(str(dim), len(self._index))

    def parameter(self, kind: str, dim: Dim) -> Any:
        key = (kind, self.index(dim))
        if key not in self._parameters:
            self._parameters[key] = ctypes.c_int32() if kind == "i32" else ctypes.c_int64()
        return self._parameters[key]

    def evaluate(self, *sizes: int) -> tuple[int, ...]:
        if self._function is None:
            self._function = compile_all(list(self._index))
        return self._function(*sizes)

    def update(self, *sizes: int) -> None:
        self.values = self.evaluate(*sizes)
        for (_, index), parameter in self._parameters.items():
            parameter.value = self.values[index]


def _launch_config(threads: int, shared_bytes: int) -> Any:
    """A launch configuration without grid and stream. Its one attribute takes effect when `numAttrs` is 1."""
    attribute = cuda.CUlaunchAttribute()
    attribute.id = cuda.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    attribute.value.programmaticStreamSerializationAllowed = 1
    config = cuda.CUlaunchConfig()
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = shared_bytes
    config.attrs = [attribute]
    config.numAttrs = 0
    return config


class _Kernel:
    """One bound launch of a cubin."""

    def __init__(self, launch: Launch, cubin: Cubin, resolve: Resolve, symbolic: _Symbolic) -> None:
        self._skinny_function, self._large_function = load_functions(cubin)
        self.function = self._large_function
        self.name = launch.kernel
        self.waits = cubin.info.waits
        self.concurrent, self.serialize_next = launch.concurrent, launch.serialize_next
        self.config = _launch_config(32 * cubin.info.num_warps, cubin.info.shared_bytes)
        self.grid = tuple(symbolic.index(dim) for dim in launch.grid)
        self._keep: list[Any] = []
        descriptions = iter(cubin.info.tensordesc)
        addresses: list[int] = []
        for arg in launch.args:
            addresses += self._bind(arg, resolve, symbolic, descriptions)
        for _ in range(2):
            addresses.append(self._hold(ctypes.c_void_p(0)))
        array = (ctypes.c_void_p * len(addresses))(*addresses)
        self.parameters = self._hold(array)

    def size(self, x: int, y: int, z: int) -> None:
        """Sets the grid of the next launches."""
        self.config.gridDimX, self.config.gridDimY, self.config.gridDimZ = x, y, z

    def set_skinny_step(self, skinny: bool) -> None:
        """Whether the next launches belong to a step of up to `SKINNY_TOKENS` tokens."""
        self.function = self._skinny_function if skinny else self._large_function

    def set_dependent(self, dependent: bool) -> None:
        """Whether the next launches may begin before the kernel before them has ended."""
        self.config.numAttrs = int(dependent)

    def _hold(self, value: Any) -> int:
        self._keep.append(value)
        return ctypes.addressof(value)

    def _bind(self, arg: Arg, resolve: Resolve, symbolic: _Symbolic, descriptions: Any) -> list[int]:
        if arg.kind in ("i32", "i64"):
            if isinstance(arg.value, float):
                raise KernelError(f"launch of {self.name}: integer argument is {arg.value!r}")
            return [self._hold(symbolic.parameter(arg.kind, arg.value))]
        if arg.kind == "fp32":
            return [self._hold(ctypes.c_float(float(arg.value)))]
        tensor = resolve(str(arg.value))
        if arg.index is not None:
            tensor = tensor[arg.index]
        if not _bindable(tensor):
            raise KernelError(
                f"launch of {self.name}: {arg.value!r} must be a contiguous tensor in CUDA or pinned memory at an address divisible by 16"
            )
        self._keep.append(tensor)
        if arg.kind == "tensor":
            return [self._hold(ctypes.c_void_p(tensor.data_ptr()))]
        tensor = tensor.view(-1, tensor.shape[-1])
        rows, columns = tensor.shape
        sizes = (ctypes.c_int32(rows), ctypes.c_int32(columns), ctypes.c_int64(columns), ctypes.c_int64(1))
        return [self._tensor_map(tensor, next(descriptions)), *(self._hold(size) for size in sizes)]

    def _tensor_map(self, tensor: torch.Tensor, description: Mapping[str, Any]) -> int:
        """Address of a 64-byte aligned copy of the TMA descriptor of a row-major matrix (CUDA driver API, cuTensorMapEncodeTiled).

        An interleaved box has its rows in the order of `load_interleaved_box`: the row is the sum of the coordinates i, q, h and b times 1,
        4, 2 and 16, and TMA compares only that of i with its size, so the last rows of a box are left out of it.
        """
        rows, columns = tensor.shape
        element_type = description["elem_type"]
        box_rows, box_columns = description["block_size"]
        pitch = columns * tensor.element_size()
        sizes, pitches, box = [columns, rows], [pitch], [box_columns, box_rows]
        if description.get("interleaved"):
            sizes, box = [columns, rows - box_rows + 2, 4, 2, box_rows // 16], [box_columns, 2, 4, 2, box_rows // 16]
            pitches = [pitch, 4 * pitch, 2 * pitch, 16 * pitch]
        encoded = _check(
            cuda.cuTensorMapEncodeTiled(
                cuda.CUtensorMapDataType(_HOST_ELEMENT_TYPE.get(element_type, element_type)),
                len(sizes),
                tensor.data_ptr(),
                [cuda.cuuint64_t(size) for size in sizes],
                [cuda.cuuint64_t(pitch) for pitch in pitches],
                [cuda.cuuint32_t(size) for size in box],
                [cuda.cuuint32_t(1)] * len(sizes),
                cuda.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                cuda.CUtensorMapSwizzle(description["swizzle"]),
                cuda.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                cuda.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            ),
            f"describe a {rows} x {columns} matrix to TMA for {self.name}",
        )
        storage = ctypes.create_string_buffer(128 + 64)
        address = (self._hold(storage) + 63) // 64 * 64
        ctypes.memmove(address, encoded.getPtr(), 128)
        return address


class BoundProgram:
    """Launches bound to memory. Call `set_symbols` with the step's sizes, then `run` as often as needed on torch's current stream."""

    def __init__(self, lowered: Iterable[Lowered], resolve: Resolve, cubins: Mapping[str, Cubin], *, pdl: bool = True) -> None:
        """`cubins` by kernel key. `pdl`: kernels that support it may begin before the one before them has ended; no result depends on it.

        Raises KernelError for a kernel that is missing or cannot be loaded, or memory that cannot be bound.
        """
        self._pdl = pdl
        self._symbolic = _Symbolic()
        self._library = LibraryCalls()
        self._steps: list[_Kernel | LibraryCall] = []
        for launch in (launch for one in lowered for launch in one.launches):
            if launch.library in nccl.ROUTINES:
                self._steps.append(NcclCall(launch, resolve, self._symbolic.index, self._library.stream))
            elif launch.library:
                self._steps.append(self._library.bind(launch, resolve, self._symbolic.index))
            elif launch.kernel not in cubins:
                raise KernelError(f"the plan launches kernel {launch.kernel}, which was not compiled; rebuild the engine")
            else:
                self._steps.append(_Kernel(launch, cubins[launch.kernel], resolve, self._symbolic))
        self._symbols: tuple[int, ...] | None = None
        self._active: list[LibraryCall | _Kernel] = []
        self._stream: int | None = None

    def sizes(self, *, T: int, R: int, D: int, S: int, C: int, L: int = 0) -> tuple[int, ...]:
        """What a step with these symbols launches: the sizes of all grids and all integer arguments."""
        return self._symbolic.evaluate(T, R, D, S, C, L)

    def set_symbols(self, *, T: int, R: int, D: int, S: int, C: int, L: int = 0) -> None:
        """Sizes of the next step: tokens, sequences, decode sequences, rows whose logits are needed, continued context sequences, and keys
        of the longest decode sequence."""
        symbols = (T, R, D, S, C, L)
        if self._symbols == symbols:
            return
        self._symbolic.update(*symbols)
        values = self._symbolic.values
        views: Views = {}
        self._active = []
        concurrent: set[int] = set()
        for before, step in zip((None, *self._steps), self._steps, strict=False):
            if not isinstance(step, _Kernel):
                if values[step.rows] > 0:
                    step.resize(values, views)
                    self._active.append(step)
            else:
                x, y, z = (values[index] for index in step.grid)
                if x > 0 and y > 0 and z > 0:
                    if step.concurrent and self._active and before is self._active[-1]:
                        concurrent.add(len(self._active))
                    step.size(x, y, z)
                    step.set_skinny_step(T <= SKINNY_TOKENS)
                    self._active.append(step)
        if self._pdl:
            serialized = True
            for at, step in enumerate(self._active):
                if isinstance(step, _Kernel):
                    serialize = serialized or at - 1 in concurrent or at + 1 in concurrent
                    step.set_dependent(at in concurrent or (step.waits and not serialize))
                serialized = isinstance(step, _Kernel | NcclCall) and step.serialize_next
        self._symbols = symbols

    def run(self, first: int = 0, end: int | None = None) -> None:
        """Launches all of the step, or launches [first, end) of those that it makes."""
        if self._symbols is None:
            raise KernelError("set_symbols must be called before run")
        stream = torch.cuda.current_stream().cuda_stream
        self._library.stream.value = stream
        self._use(stream)
        launch = cuda.cuLaunchKernelEx
        whole = first == 0 and end is None
        for step in self._active if whole else self._active[first:end]:
            if not isinstance(step, _Kernel):
                step.run()
                continue
            (error,) = launch(step.config, step.function, step.parameters, 0)
            if error != _SUCCESS:
                grid = (step.config.gridDimX, step.config.gridDimY, step.config.gridDimZ)
                raise KernelError(f"the CUDA driver refused to launch {step.name} on grid {grid}: {error.name}")

    def _use(self, stream: int) -> None:
        """Directs the launches to `stream`. A capture has a stream of its own; otherwise it is always the same one."""
        if stream != self._stream:
            for step in self._steps:
                if isinstance(step, _Kernel):
                    step.config.hStream = stream
            self._stream = stream
