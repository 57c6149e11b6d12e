"""`OpSpec`: everything about an op but how it computes, in one place and without torch.

The compiler, the cost model, the memory planner, the lowerings and the documentation all read the same specification, so that an op is
added by its own files alone: the specification (`dialect/ops`), the reference (`references`), the lowering (`lowering`) and its kernels.
The schema is text in torch's own notation: torch registers the op with it, and names of arguments are parsed from it here.

Rejected: a table per question (is it a GEMM, what may it overwrite, what does it cost), each in the module that asks. Ten such tables had
to be extended for one op.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Literal

from trtllm_kernels.dialect.model_shape import ModelTensors
from trtllm_kernels.dialect.types import Attr, TensorSpec
from trtllm_kernels.dialect.work import OpInStep, Work
from trtllm_kernels.errors import KernelError

Kind = Literal["gemm", "attention", "rows", "communication"]
"""What bounds an op: `gemm` multiplies by a matrix of weights (its arguments are x, weight and optionally bias, residual, scales and
zero points), `attention` reads keys and values, `rows` moves rows of activations and computes next to nothing, `communication` exchanges
rows with other ranks."""


class Trait(StrEnum):
    """Properties of an op that passes, the verifier and the cost model ask for."""

    LAYER = "layer"
    """It is a whole layer of the model and takes the layer's name; other ops add their own to it."""
    ACTIVATION = "activation"
    """A GEMM that ends in an activation, whose name it has."""
    SAMPLES = "samples"
    """A GEMM whose logits are sampled."""
    PICKS_ROWS = "picks rows"
    """It reads only some rows of its matrix."""
    READS_CACHE = "reads KV cache"
    WRITES_CACHE = "writes KV cache"
    ADDITIVE = "additive"
    """It adds its arguments, so that summands of them give a summand of the result."""
    COLUMNWISE = "columnwise"
    """A column (or head) of the result needs only the same of the arguments, so that it works on one rank's."""
    ROWWISE = "rowwise"
    """A row of the results needs only the same row of the arguments that have as many, so that it works on some of them."""
    NORM = "norm"
    REDUCES = "reduces"
    """It sums its first argument over the ranks of a group."""


ExampleCall = tuple[Sequence[TensorSpec | None], Sequence[TensorSpec], Mapping[str, Attr]]
"""(inputs, outputs, attributes)"""

_ARGUMENT = re.compile(r'(?P<type>\w+(?:\[\])?(?:\(\w!\))?\??) (?P<name>\w+)(?:=["\w.+-]+)?')
_SCHEMA = re.compile(r"(?P<name>\w+)\((?P<arguments>.*)\) -> (?P<results>.+)")


@dataclass(frozen=True)
class Argument:
    """`type` without the mark of an optional (`?`) or of one that is written to (`(a!)`)."""

    name: str
    type: str
    optional: bool
    mutated: bool

    @property
    def is_tensor(self) -> bool:
        return self.type == "Tensor"


@dataclass(frozen=True)
class OpSpec:
    """Specification of one op."""

    schema: str
    """In the notation of `torch.library`: `add(Tensor a, Tensor b) -> Tensor`."""
    summary: str
    """One line for the table of ops."""
    work: Callable[[OpInStep], Work]
    """FLOP and bytes of one call."""
    examples: Callable[[ModelTensors], Iterable[ExampleCall]] = lambda tensors: ()
    """Calls at a model's shapes, with symbolic leading dimensions: what the catalogue compiles. None for an op that does not lower."""
    kind: Kind = "rows"
    traits: frozenset[Trait] = frozenset()
    in_place: str = ""
    """The argument whose memory the first result may take: most of it stays as it is, or each element of the result needs that element of
    the argument alone. The op itself is functional; whether the argument may be given up is for the memory planner to know."""
    by_row: str = ""
    """The op that is this one with `quantize_rows` of its first result in place of that."""
    of_sum: str = ""
    """The op that is this one of the sum of `x`, `residual` and `addend` in place of `x`, and whose second result is that sum."""
    alone: str = ""
    """What an op in which ranks exchange data is on one rank; "" also where that is its first argument as it is."""
    state: tuple[str, ...] = ()
    """Tensors that outlive a step and of which a call touches a part; `work` counts that part."""
    same_shape: tuple[str, ...] = ()
    """Tensors that must agree in shape."""
    untuned: tuple[str, ...] = ()
    """Tensors that no tactic depends on: a call with them takes what was tuned without."""
    own_dtype: tuple[str, ...] = ()
    """Floating-point tensors, besides scales, whose dtype is not that of the others."""

    def __post_init__(self) -> None:
        unknown = {self.in_place, *self.state, *self.same_shape, *self.untuned, *self.own_dtype} - {"", *self.tensors}
        if unknown:
            raise KernelError(f"specification of op {self.name} names {sorted(unknown)}; its tensors are {', '.join(self.tensors)}")

    @cached_property
    def _parts(self) -> re.Match[str]:
        if match := _SCHEMA.fullmatch(self.schema):
            return match
        raise KernelError(f"schema {self.schema!r} is malformed; write 'name(Tensor x, int n) -> Tensor'")

    @property
    def name(self) -> str:
        return self._parts["name"]

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """In schema order."""
        parsed = []
        for text in filter(None, self._parts["arguments"].split(", ")):
            match = _ARGUMENT.fullmatch(text)
            if match is None:
                raise KernelError(f"schema of op {self.name}: argument {text!r} is malformed; write 'Tensor? bias=None'")
            type_name = re.sub(r"\(\w!\)|\?", "", match["type"])
            parsed.append(Argument(match["name"], type_name, "?" in match["type"], "!" in match["type"]))
        return tuple(parsed)

    @cached_property
    def tensors(self) -> tuple[str, ...]:
        """Names of the tensor arguments, in schema order."""
        return tuple(argument.name for argument in self.arguments if argument.is_tensor)

    @cached_property
    def optional_tensors(self) -> tuple[str, ...]:
        return tuple(argument.name for argument in self.arguments if argument.is_tensor and argument.optional)

    @cached_property
    def attrs(self) -> tuple[str, ...]:
        """Names of the other arguments, in schema order."""
        return tuple(argument.name for argument in self.arguments if not argument.is_tensor)

    @cached_property
    def mutates(self) -> tuple[str, ...]:
        """Names of the tensors that the op writes to."""
        return tuple(argument.name for argument in self.arguments if argument.mutated)

    @cached_property
    def scales(self) -> tuple[str, ...]:
        """Quantization scales, whose dtype is their own whatever the op computes in: by convention all tensors whose names end in
        `scale`. They are fp32, but for `group_scale`."""
        return tuple(name for name in self.tensors if name.endswith("scale"))

    @property
    def results(self) -> str:
        """Types of the results, in the schema's notation."""
        return self._parts["results"]


OP_SPECS: dict[str, OpSpec] = {}
"""Every registered specification by name. Import it from `trtllm_kernels.dialect.ops`, which registers the dialect's own."""


def register(spec: OpSpec) -> OpSpec:
    """Adds an op to the dialect. Raises `KernelError` where its name is taken."""
    if spec.name in OP_SPECS:
        raise KernelError(f"op {spec.name} is registered twice; choose another name")
    OP_SPECS[spec.name] = spec
    return spec
