"""Library routines of a bound program: GEMMs by cuBLASLt, or by torch where every row has a scale of its own.

A launch's arguments in order, with optional ones in brackets: x, weight, [x_scale, weight_scale], [bias: a vector], [residual: a matrix],
y, and [rank, rows it was measured at, version of cuBLASLt] of an algorithm that tuning chose.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

import torch

from trtllm_kernels.dialect.types import Dim, Launch
from trtllm_kernels.errors import KernelError
from trtllm_kernels.launch import cublaslt
from trtllm_kernels.launch.cublaslt import Descriptor, Gemm, Shape

Resolve = Callable[[str], torch.Tensor]
"""Name of a value, weight or workspace -> its tensor at the profile's maximum size. Bound programs keep the tensors alive."""
Views = dict[tuple[int, int, tuple[int, ...], torch.dtype], torch.Tensor]
Index = Callable[[Dim], int]
"""Position of a symbolic number's value among those of a step."""
ROUTINES = ("matmul", "scaled_matmul")

_SCRATCH_BYTES = {9: 64 << 20}
_LEAST_SCRATCH_BYTES = 32 << 20
_ONE, _ZERO = ctypes.c_float(1.0), ctypes.c_float(0.0)
_scratch: dict[tuple[int, int], torch.Tensor] = {}


class LibraryCall(Protocol):
    """One bound call. `rows` is the position of its number of rows among a step's values."""

    rows: int

    def resize(self, values: Sequence[int], views: Views) -> None: ...

    def run(self) -> None: ...


@dataclass(frozen=True)
class Operands:
    x: torch.Tensor
    weight: torch.Tensor
    y: torch.Tensor
    x_scale: torch.Tensor | None = None
    weight_scale: torch.Tensor | None = None
    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None

    @classmethod
    def of(cls, launch: Launch, resolve: Resolve) -> Operands:
        x, weight, *others, y = (resolve(str(arg.value)) for arg in launch.args if arg.kind == "tensor")
        named: dict[str, torch.Tensor] = {}
        if launch.library == "scaled_matmul":
            named["x_scale"], named["weight_scale"], *others = others
        for one in others:
            named["bias" if one.dim() == 1 else "residual"] = one
        return cls(x, weight, y, **named)

    @property
    def by_row(self) -> bool:
        return self.weight_scale is not None and self.weight_scale.dim() == 2


class LibraryCalls:
    """Binds the library calls of one program, which share layouts, algorithms, scratch memory and a stream."""

    def __init__(self) -> None:
        self.stream = ctypes.c_void_p()
        self._gemms: dict[tuple[object, ...], Gemm] = {}

    def bind(self, launch: Launch, resolve: Resolve, index: Index) -> LibraryCall:
        if launch.library not in ROUTINES:
            raise KernelError(f"unknown library routine {launch.library!r} in the plan; known: {', '.join(ROUTINES)}")
        operands = Operands.of(launch, resolve)
        if operands.by_row:
            return RowScaledMatmul(operands, index(launch.grid[0]))
        return LtMatmul(self, operands, launch, index)

    def gemm(self, key: tuple[object, ...], shape: Shape, example: Descriptor, scratch: torch.Tensor) -> Gemm:
        """The `Gemm` of this shape whose rows and algorithm are the same numbers in every step."""
        if (shape, *key) not in self._gemms:
            device = scratch.device.index or 0
            self._gemms[(shape, *key)] = Gemm(cublaslt.library(), device, shape, example, scratch.numel())
        return self._gemms[(shape, *key)]


class LtMatmul:
    """y[:rows] = (x_scale * x[:rows]) @ (weight_scale * weight).T (+ bias) (+ residual[:rows]), rounded once. y may be the residual."""

    def __init__(self, calls: LibraryCalls, operands: Operands, launch: Launch, index: Index) -> None:
        lt = cublaslt.library()
        x, weight, y, bias, residual = operands.x, operands.weight, operands.y, operands.bias, operands.residual
        scratch = _scratch_of(y)
        operation = cublaslt.operation(lt, bias, operands.weight_scale, operands.x_scale)
        added = y if residual is None else residual
        shape = Shape(weight.shape[0], weight.shape[1], x.dtype, y.dtype, bias is not None, _alignments(weight, x, added, y, bias))
        self.rows = index(launch.grid[0])
        self._choice = _choice(launch, lt.version, index)
        gemm = calls.gemm((self.rows, *self._choice), shape, operation, scratch)
        self._gemm = gemm
        self._keep = (operands, operation, scratch)
        self._call: Callable[[], int] = partial(
            lt.entry.cublasLtMatmul,
            lt.handle(scratch.device.index or 0),
            operation.pointer,
            ctypes.byref(_ONE),
            _pointer(weight),
            gemm.weight.pointer,
            _pointer(x),
            gemm.x.pointer,
            ctypes.byref(_ZERO if residual is None else _ONE),
            _pointer(added),
            gemm.y.pointer,
            _pointer(y),
            gemm.y.pointer,
            ctypes.byref(gemm.algorithm),
            _pointer(scratch),
            ctypes.c_size_t(scratch.numel()),
            calls.stream,
        )

    def resize(self, values: Sequence[int], views: Views) -> None:
        self._gemm.resize(values[self.rows], *(values[at] for at in self._choice))

    def run(self) -> None:
        if status := self._call():
            shape = tuple(self._keep[0].weight.shape)
            raise KernelError(f"cuBLASLt refused to multiply by a weight of {shape}: {cublaslt.status_name(status)}")


class RowScaledMatmul:
    """y[:rows] = (x_scale[:rows] * x[:rows]) @ (weight_scale * weight).T (+ bias), with a scale per row of x and per row of the weight [N,
    1].

    Computed by torch, on views made once per step.
    """

    def __init__(self, operands: Operands, rows: int) -> None:
        x_scale, weight_scale = operands.x_scale, operands.weight_scale
        if x_scale is None or weight_scale is None or operands.residual is not None:
            raise KernelError("a GEMM with row-wise scales needs scales of both operands and takes no residual")
        self.rows, self._operands = rows, operands
        self._weight, self._weight_scale, self._x_scale = operands.weight.t(), weight_scale.t(), x_scale
        self._x_rows, self._x_scale_rows, self._y_rows = operands.x, x_scale, operands.y

    def resize(self, values: Sequence[int], views: Views) -> None:
        rows = values[self.rows]
        self._x_rows = _first(self._operands.x, rows, views)
        self._x_scale_rows = _first(self._x_scale, rows, views)
        self._y_rows = _first(self._operands.y, rows, views)

    def run(self) -> None:
        y = self._y_rows
        scales = self._x_scale_rows, self._weight_scale
        bias = self._operands.bias
        torch._scaled_mm(self._x_rows, self._weight, *scales, bias=bias, out_dtype=y.dtype, use_fast_accum=True, out=y)


def _first(tensor: torch.Tensor, rows: int, views: Views) -> torch.Tensor:
    """The first rows of a tensor. Layers share buffers, so most views are made once."""
    key = (rows, tensor.data_ptr(), tuple(tensor.shape), tensor.dtype)
    if key not in views:
        views[key] = tensor[:rows]
    return views[key]


def _choice(launch: Launch, version: int, index: Index) -> tuple[int, ...]:
    """Positions of (the algorithm's number, the rows it was proposed for) among a step's values; empty if tuning chose none."""
    numbers = [arg.value for arg in launch.args if arg.kind == "i32"]
    if not numbers:
        return ()
    rank, asked, measured = (value for value in numbers if not isinstance(value, float))
    if measured not in (0, version):
        _report_once(
            f"cuBLASLt algorithms were chosen with version {measured} and this is {version}, so the library's own choices are used"
        )
        return ()
    return index(rank), index(asked)


@lru_cache(maxsize=8)
def _report_once(note: str) -> None:
    print(f"note: {note}", file=sys.stderr)


def _pointer(tensor: torch.Tensor) -> Any:
    return ctypes.c_void_p(tensor.data_ptr())


def _alignments(*tensors: torch.Tensor | None) -> tuple[int, ...]:
    alignments = []
    for tensor in tensors:
        address = cublaslt.ALIGNMENT if tensor is None else tensor.data_ptr()
        if tensor is not None and not tensor.is_contiguous():
            raise KernelError(f"a GEMM needs contiguous matrices, got shape {tuple(tensor.shape)} and strides {tensor.stride()}")
        alignments.append(min(cublaslt.ALIGNMENT, address & -address))
    return tuple(alignments)


def _scratch_of(tensor: torch.Tensor) -> torch.Tensor:
    """The library's workspace, one per stream that programs are bound on: calls on one stream run one after another."""
    device = tensor.device
    stream = torch.cuda.current_stream().cuda_stream
    key = (device.index or 0, stream)
    if key not in _scratch:
        major = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
        _scratch[key] = torch.empty(_SCRATCH_BYTES.get(major, _LEAST_SCRATCH_BYTES), dtype=torch.uint8, device=device)
    return _scratch[key]
