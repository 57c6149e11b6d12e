"""cuBLASLt as a C library: unlike torch, it adds a matrix to the GEMM's result and lets the caller choose the algorithm.

    y[:rows] = (x_scale * x[:rows]) @ (weight_scale * weight).T + residual[:rows] + bias

Row-major matrices are column-major ones transposed, so the library is asked for D [N, rows] = op(A) B + C with A the weight (K x N, to be
transposed), B the activations (K x rows), C the residual and D the result. No leading dimension depends on the rows, so a step changes only
the number of columns of two layouts. A `Gemm` holds these layouts and the algorithm for all launches of one shape: they are rewritten in
place once per step, and a launch is one call on arguments made when it was bound, so ctypes has nothing to convert.

The library is the one that torch has loaded, so one version serves both. Numbers of types and attributes are those of cublasLt.h, the same
in versions 12 and 13. Every algorithm that the heuristic proposes for a number of rows is kept for the life of the process.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from trtllm_kernels.errors import KernelError
from trtllm_kernels.launch.shared_library import first_that_loads, mapped

_DATA_TYPE = {torch.float32: 0, torch.float16: 2, torch.bfloat16: 14, torch.float8_e4m3fn: 28}
"""cudaDataType"""
_COMPUTE_32F, _OP_T, _EPILOGUE_BIAS = 68, 1, 4
_TRANSA, _EPILOGUE, _BIAS_POINTER, _A_SCALE_POINTER, _B_SCALE_POINTER, _FAST_ACCUM, _BIAS_DATA_TYPE = 3, 7, 8, 17, 18, 25, 26
"""cublasLtMatmulDescAttributes_t"""
_COLUMNS = 3
"""cublasLtMatrixLayoutAttribute_t"""
_MAX_WORKSPACE_BYTES, _MIN_ALIGNMENT_BYTES = 1, (5, 6, 7, 8)
"""cublasLtMatmulPreferenceAttributes_t; alignments of A, B, C and D"""
_STATUS = {
    1: "NOT_INITIALIZED",
    3: "ALLOC_FAILED",
    7: "INVALID_VALUE",
    8: "ARCH_MISMATCH",
    11: "MAPPING_ERROR",
    13: "EXECUTION_FAILED",
    14: "INTERNAL_ERROR",
    15: "NOT_SUPPORTED",
    16: "LICENSE_ERROR",
}
ALIGNMENT = 256
"""Bytes beyond which alignment does not change the choice of algorithm."""
Algorithm = ctypes.c_uint64 * 8


class _HeuristicResult(ctypes.Structure):
    _fields_ = (
        ("algorithm", Algorithm),
        ("workspace_bytes", ctypes.c_size_t),
        ("state", ctypes.c_int),
        ("waves", ctypes.c_float),
        ("reserved", ctypes.c_int * 4),
    )


def status_name(status: int) -> str:
    return f"CUBLAS_STATUS_{_STATUS[status]}" if status in _STATUS else f"status {status}"


class Library:
    """The loaded library. `call` raises `KernelError` with the name of any status but success."""

    def __init__(self, entry: Any) -> None:
        self.entry = entry
        entry.cublasLtGetVersion.restype = ctypes.c_size_t
        self.version = int(entry.cublasLtGetVersion())
        self._handles: dict[int, ctypes.c_void_p] = {}

    def call(self, function: str, *args: Any) -> None:
        status = getattr(self.entry, function)(*args)
        if status:
            raise KernelError(f"cuBLASLt {self.version} refused {function}: {status_name(status)}")

    def handle(self, device: int) -> ctypes.c_void_p:
        if device not in self._handles:
            handle = ctypes.c_void_p()
            self.call("cublasLtCreate", ctypes.byref(handle))
            self._handles[device] = handle
        return self._handles[device]


@lru_cache(maxsize=1)
def library() -> Library:
    """The library that torch has loaded. Raises `KernelError` if there is none."""
    if entry := first_that_loads(_candidates()):
        return Library(entry)
    raise KernelError("GEMMs need cuBLASLt (libcublasLt.so), which this torch has not loaded; install a CUDA build of torch")


def _candidates() -> list[str]:
    """Paths to try: the file mapped into this process, then the name that torch links."""
    major = (torch.version.cuda or "").partition(".")[0]
    return [*mapped("libcublasLt.so"), *([f"libcublasLt.so.{major}"] if major else [])]


class Descriptor:
    """An object of the library (`MatmulDesc`, `MatrixLayout`, `MatmulPreference`), destroyed together with this one."""

    def __init__(self, lt: Library, kind: str, *args: Any) -> None:
        self._lt, self._set = lt, f"cublasLt{kind}SetAttribute"
        self.pointer = ctypes.c_void_p()
        lt.call(f"cublasLt{kind}Create", ctypes.byref(self.pointer), *args)
        weakref.finalize(self, getattr(lt.entry, f"cublasLt{kind}Destroy"), self.pointer).atexit = False

    def set(self, attribute: int, value: Any) -> None:
        self._lt.call(self._set, self.pointer, attribute, ctypes.byref(value), ctypes.c_size_t(ctypes.sizeof(value)))


def layout(lt: Library, dtype: torch.dtype, rows: int, columns: int) -> Descriptor:
    """Layout of a dense column-major matrix."""
    return Descriptor(lt, "MatrixLayout", _DATA_TYPE[dtype], ctypes.c_uint64(rows), ctypes.c_uint64(columns), ctypes.c_int64(rows))


def operation(lt: Library, bias: torch.Tensor | None, weight_scale: torch.Tensor | None, x_scale: torch.Tensor | None) -> Descriptor:
    """What one launch computes: its bias, its scales (of one element, on the device) and, with scales, fast accumulation."""
    description = Descriptor(lt, "MatmulDesc", _COMPUTE_32F, _DATA_TYPE[torch.float32])
    description.set(_TRANSA, ctypes.c_int32(_OP_T))
    if weight_scale is not None and x_scale is not None:
        description.set(_A_SCALE_POINTER, ctypes.c_void_p(weight_scale.data_ptr()))
        description.set(_B_SCALE_POINTER, ctypes.c_void_p(x_scale.data_ptr()))
        description.set(_FAST_ACCUM, ctypes.c_int8(1))
    if bias is not None:
        description.set(_EPILOGUE, ctypes.c_uint32(_EPILOGUE_BIAS))
        description.set(_BIAS_POINTER, ctypes.c_void_p(bias.data_ptr()))
        description.set(_BIAS_DATA_TYPE, ctypes.c_int32(_DATA_TYPE[bias.dtype]))
    return description


@dataclass(frozen=True)
class Shape:
    """What the choice of algorithm depends on, besides the rows. `alignments`: bytes, of weight, x, residual, y and bias."""

    n: int
    k: int
    x: torch.dtype
    y: torch.dtype
    biased: bool
    alignments: tuple[int, ...]


_algorithms: dict[tuple[object, ...], bytes] = {}


class Gemm:
    """Layouts and algorithm of all GEMMs of a program with one shape and number of rows; their launches point here."""

    def __init__(self, lt: Library, device: int, shape: Shape, example: Descriptor, workspace_bytes: int) -> None:
        """`example`: any one of the operations."""
        self._lt, self._device, self._shape, self._example, self._workspace_bytes = lt, device, shape, example, workspace_bytes
        self.weight = layout(lt, shape.x, shape.k, shape.n)
        self.x = layout(lt, shape.x, shape.k, 1)
        self.y = layout(lt, shape.y, shape.n, 1)
        self.algorithm = Algorithm()
        self._preference = Descriptor(lt, "MatmulPreference")
        self._preference.set(_MAX_WORKSPACE_BYTES, ctypes.c_uint64(workspace_bytes))
        for attribute, alignment in zip(_MIN_ALIGNMENT_BYTES, shape.alignments, strict=False):
            self._preference.set(attribute, ctypes.c_uint32(alignment))
        self._current: tuple[int, ...] = ()

    def resize(self, rows: int, rank: int = 0, asked: int = 0) -> None:
        """Sets the number of rows and takes the heuristic's first algorithm, or algorithm `rank` of its proposals for `asked` rows if that
        fits."""
        if self._current == (rows, rank, asked):
            return
        key = (self._lt.version, self._device, self._shape, self._workspace_bytes, rows, rank, asked)
        if key not in _algorithms:
            _algorithms[key] = bytes(self._chosen(rows, rank, asked))
        self._set_rows(rows)
        ctypes.memmove(self.algorithm, _algorithms[key], ctypes.sizeof(Algorithm))
        self._current = (rows, rank, asked)

    def _set_rows(self, rows: int) -> None:
        self._current = ()
        for matrix in (self.x, self.y):
            matrix.set(_COLUMNS, ctypes.c_uint64(rows))

    def _chosen(self, rows: int, rank: int, asked: int) -> Any:
        if rank > 0:
            proposed = self.proposals(asked, rank + 1)
            if len(proposed) > rank and self._runs(proposed[rank], rows):
                return proposed[rank]
        proposed = self.proposals(rows, 1)
        if not proposed:
            shape = self._shape
            raise KernelError(f"cuBLASLt {self._lt.version} has no algorithm for {rows} x {shape.k} by {shape.n} x {shape.k} in {shape.x}")
        return proposed[0]

    def proposals(self, rows: int, count: int) -> list[Any]:
        """Algorithms that the heuristic expects to be fast, best first."""
        self._set_rows(rows)
        results, returned = (_HeuristicResult * count)(), ctypes.c_int(0)
        self._lt.call(
            "cublasLtMatmulAlgoGetHeuristic",
            *self._problem(),
            self._preference.pointer,
            count,
            results,
            ctypes.byref(returned),
        )
        return [one.algorithm for one in results[: returned.value] if one.state == 0]

    def _runs(self, algorithm: Any, rows: int) -> bool:
        """Whether the library can run an algorithm proposed for other rows."""
        self._set_rows(rows)
        result = _HeuristicResult()
        status = self._lt.entry.cublasLtMatmulAlgoCheck(*self._problem(), ctypes.byref(algorithm), ctypes.byref(result))
        return bool(status == 0 and result.state == 0 and result.workspace_bytes <= self._workspace_bytes)

    def _problem(self) -> tuple[Any, ...]:
        matrices = (self.weight, self.x, self.y, self.y)
        return (self._lt.handle(self._device), self._example.pointer, *(matrix.pointer for matrix in matrices))
