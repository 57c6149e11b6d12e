"""What a lowering sees of an op, and how it writes a launch down.

A lowering is a pure function of an `OpCall`: it reads shapes, chooses tiles and states launches. `Builder` turns "these parameters, this
grid" into the pair of `KernelSpec` and `Launch`, so that order, types and alignment of the two cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trtllm_kernels.dialect.dtypes import OLDEST_CAPABILITY
from trtllm_kernels.dialect.types import Arg, Attr, Dim, KernelSpec, Launch, Lowered, TensorSpec
from trtllm_kernels.errors import KernelError

_POINTERS = {
    "fp32": "*fp32",
    "fp16": "*fp16",
    "bf16": "*bf16",
    "fp8": "*fp8e4nv",
    "int8": "*i8",
    "int4": "*u8",
    "fp4": "*u8",
    "nf4": "*u8",
    "int32": "*i32",
    "int64": "*i64",
    "uint8": "*u8",
}
FLOATS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Operand:
    """A tensor of the op: its specification and its name in launches."""

    name: str
    spec: TensorSpec
    index: int | None = None

    @property
    def shape(self) -> tuple[Dim, ...]:
        return self.spec.shape

    @property
    def dtype(self) -> str:
        return self.spec.dtype

    def size(self, dim: int) -> int:
        """A dimension that must be known when the engine is built. Raises `KernelError` for a symbol."""
        size = self.spec.shape[dim]
        if not isinstance(size, int):
            raise KernelError(f"dimension {dim} of {self.name!r} must be a number at build time, got {size!r}")
        return size

    def slice(self, index: int) -> Operand:
        """Slice `index` along the first dimension, such as a layer of the KV cache."""
        return replace(self, index=index)


@dataclass(frozen=True)
class I32:
    value: Dim


@dataclass(frozen=True)
class F32:
    value: float


@dataclass(frozen=True)
class Tma:
    """A matrix, or the rows of a tensor, passed as a host-made TMA descriptor with boxes of [rows, columns].

    `interleaved`: a box's rows come in the order of `load_interleaved_box` (`hopper.cuh`), and the matrix has rows for a box that begins at
    the last one in use.
    """

    operand: Operand
    rows: int
    columns: int
    interleaved: bool = False


@dataclass(frozen=True)
class Bytes:
    """A tensor of fp8 as its bits, which a kernel decodes: Triton knows fp8 only on GPUs that compute with it. Others as they are."""

    operand: Operand


Parameter = Operand | I32 | F32 | Tma | Bytes


@dataclass(frozen=True)
class Normed:
    """The RMS norm that a product takes itself, in steps of 1 to `to` tokens, which it reads at `x` in place of the norm's result.

    `weight`: as long as a row of `x`. `out_scale`: of the result's codes; None where the product reads it wide.
    """

    x: Operand
    weight: Operand
    out_scale: Operand | None
    eps: float
    to: int


@dataclass(frozen=True)
class OpCall:
    op: str
    inputs: Mapping[str, Operand | None]
    outputs: tuple[Operand, ...]
    attrs: Mapping[str, Attr]
    arch: str
    tactic: Mapping[str, int]
    in_place: bool = False
    rotated: Dim = 0
    """Of `rope_kv_write`: how many of the first tokens attention rotates and writes itself."""
    rotation: Operand | None = None
    """Of `paged_attention`, if it does that: the table of cosines and sines."""
    interleaved: bool = False
    """Whether that rotation pairs neighbouring dimensions, rather than one of each half of the head."""
    normed: Normed | None = None
    """Of a product: the norm of its rows that it takes itself in steps of few tokens."""
    skip_to: int = 0
    """Of that norm: only rows of steps of more tokens are normalized."""

    def __getitem__(self, name: str) -> Operand:
        operand = self.inputs.get(name)
        if operand is None:
            raise KernelError(f"op {self.op} needs its argument {name!r}")
        return operand

    def get(self, name: str) -> Operand | None:
        """An optional argument."""
        return self.inputs.get(name)

    @property
    def quantized(self) -> bool:
        """Whether a GEMM multiplies codes, both operands of which have scales."""
        return self["x"].dtype in ("fp8", "int8")

    @property
    def by_row(self) -> bool:
        """Whether each row of a GEMM's operands has a scale of its own."""
        return self.quantized and len(self["weight_scale"].shape) == 2

    @property
    def activation(self) -> int:
        """Number of the activation that a GEMM ends in (`ACT` of kernels, `cuda_kernels/activations.cuh`); 0 for none."""
        return {"gate_up_silu": 1, "linear_gelu": 2}.get(self.op, 0)

    @property
    def sm_count(self) -> int:
        """Number of SMs of the architecture's data-centre GPU (A100, L40S, H100): how many programs fill it."""
        return {80: 108, 89: 142, 90: 132}.get(self.capability, 128)

    def integer(self, name: str) -> int:
        value = self.attrs.get(name)
        if not isinstance(value, int):
            raise KernelError(f"op {self.op}: attribute {name!r} must be an integer, got {value!r}")
        return int(value)

    def number(self, name: str) -> float:
        value = self.attrs.get(name)
        if not isinstance(value, int | float):
            raise KernelError(f"op {self.op}: attribute {name!r} must be a number, got {value!r}")
        return float(value)

    def tuned(self, **defaults: int) -> dict[str, int]:
        """The tile configuration: the tactic's values over the defaults. Raises `KernelError` for an unknown key in the tactic."""
        unknown = self.tactic.keys() - defaults.keys()
        if unknown:
            raise KernelError(f"tactic of {self.op} sets {sorted(unknown)}, which it does not have; it has {sorted(defaults)}")
        return {**defaults, **self.tactic}

    @property
    def capability(self) -> int:
        return capability(self.arch)


def capability(arch: str) -> int:
    """`sm_90` -> 90."""
    digits = arch.removeprefix("sm_").rstrip("a")
    if not arch.startswith("sm_") or not digits.isdigit() or int(digits) < OLDEST_CAPABILITY:
        raise KernelError(f"unknown architecture {arch!r}; use sm_80 or later, such as sm_80, sm_89 or sm_90")
    return int(digits)


def shared_limit(arch: str) -> int:
    """Bytes of shared memory that a block may use (CUDA C++ programming guide, table of compute capabilities)."""
    number = capability(arch)
    return 227 * 1024 if number in (90, 100, 103) else 163 * 1024 if number in (80, 87) else 99 * 1024


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def power_of_2(name: str, value: int, least: int, most: int) -> int:
    if value != next_power_of_2(value) or not least <= value <= most:
        raise KernelError(f"{name} must be a power of two from {least} to {most} for the GPU kernels, got {value}")
    return value


@dataclass
class Builder:
    """Collects the launches, kernels and workspaces of one op."""

    call: OpCall
    launches: list[Launch] = field(default_factory=list)
    kernels: dict[str, KernelSpec] = field(default_factory=dict)
    workspaces: dict[str, TensorSpec] = field(default_factory=dict)

    def workspace(self, suffix: str, shape: tuple[Dim, ...], dtype: str = "fp32") -> Operand:
        """Adds scratch memory, named after the op's first result so that names stay unique in an engine. The colon keeps them apart from
        names of weights, which may be a result's with a suffix, too."""
        operand = Operand(f"{self.call.outputs[0].name}:{suffix}", TensorSpec(shape, dtype))
        self.workspaces[operand.name] = operand.spec
        return operand

    def launch(
        self,
        kernel: str,
        parameters: Mapping[str, Parameter],
        *,
        grid: tuple[Dim, ...],
        constexprs: Mapping[str, Any],
        warps: int,
        stages: int = 3,
        concurrent: bool = False,
        serialize_next: bool = False,
        cuda: bool = False,
    ) -> None:
        """Adds a launch. `parameters` are in the kernel's order; `concurrent` and `serialize_next` are `Launch`'s.

        `kernel` is `module.function` under `trtllm_kernels.triton_kernels` or, with `cuda`, `trtllm_kernels.cuda_kernels`. Every Triton
        kernel also takes PDL: whether the architecture can start it before the kernel before it has ended.
        """
        module, function = kernel.split(".")
        signature: dict[str, str] = {}
        aligned: list[str] = []
        arguments: list[Arg] = []
        for name, parameter in parameters.items():
            match parameter:
                case Operand():
                    signature[name] = _POINTERS[parameter.dtype]
                    aligned.append(name)
                    arguments.append(Arg("tensor", parameter.name, index=parameter.index))
                case Bytes(operand):
                    signature[name] = "*u8" if operand.dtype == "fp8" else _POINTERS[operand.dtype]
                    aligned.append(name)
                    arguments.append(Arg("tensor", operand.name, index=operand.index))
                case Tma(operand, box_rows, box_columns, interleaved):
                    order = ",interleaved" if interleaved else ""
                    signature[name] = f"tensordesc<{_POINTERS[operand.dtype].removeprefix('*')}[{box_rows},{box_columns}]{order}>"
                    arguments.append(Arg("tma", operand.name, box=(box_rows, box_columns), index=operand.index))
                case I32(value):
                    signature[name] = "i32"
                    if isinstance(value, int) and value % 16 == 0:
                        aligned.append(name)
                    arguments.append(Arg("i32", value))
                case F32(value):
                    signature[name] = "fp32"
                    arguments.append(Arg("fp32", value))
        spec = KernelSpec(
            module=f"trtllm_kernels.{'cuda' if cuda else 'triton'}_kernels.{module}",
            function=function,
            signature=signature,
            constexprs=constexprs if cuda else {**constexprs, "PDL": self.call.capability >= 90},
            aligned=tuple(aligned),
            num_warps=warps,
            num_stages=stages,
        )
        self.kernels[spec.key] = spec
        x, y, z = (*grid, 1, 1)[:3]
        self.launches.append(
            Launch(kernel=spec.key, grid=(x, y, z), args=tuple(arguments), concurrent=concurrent, serialize_next=serialize_next)
        )

    def finish(self) -> Lowered:
        return Lowered(tuple(self.launches), tuple(self.kernels.values()), dict(self.workspaces))
