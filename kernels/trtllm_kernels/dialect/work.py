"""What one call of an op must do, in FLOP and bytes: the numerators of roofline figures, stated by each op in its specification.

Counts are of what the op must do and not of what a kernel happens to do: each tensor is moved once, each key and value of a sequence is
read once per step, a gather reads the rows it picks. So a kernel that reads twice scores half, and padding scores nothing. A
multiplication and an addition are two FLOP; element-wise work is counted at the few operations per element of its textbook formula, which
no ceiling ever depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from trtllm_kernels.dialect.dtypes import bits_of, bytes_of, nbytes, num_elements
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.types import Attr, Dim, TensorSpec
from trtllm_kernels.errors import KernelError


class StepNumbers(Protocol):
    """The numbers of a step that work depends on."""

    @property
    def tokens(self) -> int: ...

    @property
    def sequences(self) -> int: ...

    @property
    def num_decodes(self) -> int: ...

    @property
    def kv_tokens(self) -> int:
        """Keys of all sequences together."""

    @property
    def pairs(self) -> int:
        """(query token, key it sees) pairs under the causal mask."""

    @property
    def symbols(self) -> Mapping[str, int]: ...

    def pages(self, page_size: int) -> int:
        """Pages of KV cache that the sequences use."""


@dataclass(frozen=True)
class Work:
    """`rows` is the M of a GEMM. `compute` is the number format of the arithmetic; "" is that of the plan's GEMMs.
    `link_bytes` go from this GPU to others."""

    flop: float = 0.0
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    activation_bytes: float = 0.0
    rows: int = 0
    compute: str = ""
    link_bytes: float = 0.0


@dataclass(frozen=True)
class OpInStep:
    """One op of a plan in one step, as its `work` function sees it."""

    tensors: Mapping[str, TensorSpec]
    """Those present, by argument name."""
    outputs: tuple[TensorSpec, ...]
    attrs: Mapping[str, Attr]
    weights: frozenset[str]
    """Arguments that are weights of the model."""
    state: frozenset[str]
    """Arguments that outlive the step (`OpSpec.state`), whose bytes are not counted whole."""
    in_place: bool
    """Whether the first result takes the memory of the argument `OpSpec.in_place`."""
    precision: str
    """Number format of the plan's GEMMs."""
    step: StepNumbers

    def integer(self, name: str) -> int:
        value = self.attrs[name]
        if not isinstance(value, int):
            raise KernelError(f"attribute {name!r} must be an integer, got {value!r}")
        return value

    def elements(self, spec: TensorSpec) -> int:
        return num_elements(spec, self.step.symbols)

    def bytes_without(self, *names: str) -> float:
        """Of activations, in and out: all but weights, state and the arguments `names`."""
        skipped = {*self.weights, *self.state, *names}
        read = [spec for name, spec in self.tensors.items() if name not in skipped]
        return float(sum(nbytes(spec, self.step.symbols) for spec in (*read, *self.outputs)))

    @property
    def activation_bytes(self) -> float:
        return self.bytes_without()

    @property
    def weight_bytes(self) -> float:
        return float(sum(nbytes(spec, self.step.symbols) for name, spec in self.tensors.items() if name in self.weights - self.state))


def elementwise(flop: int, summands: tuple[str, ...] = ()) -> Callable[[OpInStep], Work]:
    """`flop` per element of the first result, and one more for each optional tensor of `summands` that is present."""

    def work(op: OpInStep) -> Work:
        per_element = flop + sum(name in op.tensors for name in summands)
        return Work(float(per_element * op.elements(op.outputs[0])), op.weight_bytes, 0.0, op.activation_bytes)

    return work


def gemm(op: OpInStep) -> Work:
    """2 M N K for x [M, K] and weight [N, K], whatever is fused around it. The format is that of both operands, else the wider one."""
    x, weight = op.tensors["x"], op.tensors["weight"]
    rows = evaluate(op.outputs[0].shape[0], op.step.symbols)
    flop = 2.0 * rows * size(weight.shape[0]) * size(weight.shape[1])
    compute = x.dtype if bits_of(weight.dtype) <= 8 else weight.dtype
    return Work(flop, op.weight_bytes, 0.0, op.activation_bytes, rows, compute)


def picked_rows(source: str) -> Callable[[OpInStep], Work]:
    """Rows of tensor `source` are copied, by 32-bit numbers; of `source` only those are read."""

    def work(op: OpInStep) -> Work:
        table, elements = op.tensors[source], op.elements(op.outputs[0])
        read = float(bytes_of(elements, table.dtype))
        rows = elements / size(table.shape[1])
        copied = sum(nbytes(spec, op.step.symbols) for spec in op.outputs) + 4 * rows
        is_weight = source in op.weights
        return Work(0.0, read if is_weight else 0.0, 0.0, copied + (0.0 if is_weight else read))

    return work


def size(dim: Dim) -> int:
    """A dimension that is known when the engine is built."""
    if not isinstance(dim, int):
        raise KernelError(f"dimension {dim!r} must be a number when the engine is built")
    return dim
