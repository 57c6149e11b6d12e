"""Bytes and FLOP of every op of a step, counted from the engine's plan: what a kernel's time is judged against.

Counts are of what the op must do and not of what a kernel happens to do: each tensor it needs is moved once, each key and value of
a sequence is read once a step, a gather reads the rows it picks. So a kernel that reads twice scores half, and padding scores nothing.
A multiplication and an addition are two FLOP; element-wise work is counted at the few operations an element of its textbook formula, which
no roof ever depends on. Any op with a matrix of weights is a matrix product (2 M N K), whatever the compiler fused around it.

`costs.py` sums a whole run from request lengths for MFU and MBU; here one step is counted op by op.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from trtllm_engines.compiler.plan import LOGITS, Op, Plan, step_input_specs
from trtllm_engines.quantization import gemm_dtype
from trtllm_kernels.dialect.dtypes import bytes_of, nbytes, num_elements
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.lowering import ARGUMENTS

if TYPE_CHECKING:
    from trtllm_engines.runtime.batch import StepBatch

Kind = Literal["gemm", "attention", "rows"]
IntArray = npt.NDArray[np.int64]

_EIGHT_BIT = ("fp8", "int8")
_ELEMENT_FLOP: Mapping[str, int] = {
    "rms_norm": 4,
    "add_rms_norm": 5,
    "layer_norm": 7,
    "add_layer_norm": 8,
    "rope": 3,
    "rope_kv_write": 3,
    "silu_mul": 5,
    "silu_mul_packed": 5,
    "gelu": 9,
    "add": 1,
    "quantize": 2,
}
"""FLOP an element of the result."""
_ADDEND = {op: arguments.index("addend") for op, arguments in ARGUMENTS.items() if "addend" in arguments}
"""Where an op takes a third summand, one addition more."""
_STATE = ("kv_cache", "block_table", "last_tokens", "token_ring", "argmax_scratch")
_FUSED_PRODUCTS = ("gate_up_silu", "linear_gelu")
_PICKS_ROWS = ("embedding", "gather_rows")


@dataclass(frozen=True)
class StepShape:
    """What one step computes: R sequences, decode sequences first; `samples` rows whose logits are wanted."""

    query_lens: IntArray
    kv_lens: IntArray
    num_decodes: int
    samples: int

    @classmethod
    def of(cls, batch: StepBatch) -> StepShape:
        return cls(batch.query_lens.astype(np.int64), batch.kv_lens.astype(np.int64), batch.num_decodes, int(batch.sampled.sum()))

    @classmethod
    def decode(cls, sequences: int, kv_len: float) -> StepShape:
        """`sequences` decoding at a cache of `kv_len` tokens each, their new one included."""
        return cls(np.ones(sequences, np.int64), np.full(sequences, round(kv_len), np.int64), sequences, sequences)

    @classmethod
    def prefill(cls, sequences: int, length: int) -> StepShape:
        """Whole prompts of `length` tokens."""
        lengths = np.full(sequences, length, np.int64)
        return cls(lengths, lengths, 0, sequences)

    def __add__(self, other: StepShape) -> StepShape:
        """Both in one step; the sequences of `self` must all decode, or `other` must have none that does."""
        lens = np.concatenate([self.query_lens, other.query_lens]), np.concatenate([self.kv_lens, other.kv_lens])
        return StepShape(*lens, self.num_decodes + other.num_decodes, self.samples + other.samples)

    @property
    def tokens(self) -> int:
        return int(self.query_lens.sum())

    @property
    def sequences(self) -> int:
        return len(self.query_lens)

    @property
    def kv_tokens(self) -> int:
        return int(self.kv_lens.sum())

    @property
    def pairs(self) -> int:
        """(query token, key it sees) pairs under the causal mask."""
        q, kv = self.query_lens, self.kv_lens
        return int((q * (kv - q) + q * (q + 1) // 2).sum())

    @property
    def phase(self) -> str:
        if self.num_decodes == self.sequences:
            return "decode"
        return "mixed" if self.num_decodes else "prefill"

    @property
    def decodes(self) -> StepShape:
        """Its decode sequences alone."""
        return self._only(np.arange(self.sequences) < self.num_decodes)

    @property
    def whole_prompts(self) -> StepShape:
        """Its prompts without a cached past alone."""
        return self._only((np.arange(self.sequences) >= self.num_decodes) & (self.kv_lens == self.query_lens))

    @property
    def continued(self) -> StepShape:
        """Its prompts with a cached past alone."""
        return self._only((np.arange(self.sequences) >= self.num_decodes) & (self.kv_lens > self.query_lens))

    def _only(self, chosen: npt.NDArray[np.bool_]) -> StepShape:
        decodes, count = int(chosen[: self.num_decodes].sum()), int(chosen.sum())
        return StepShape(self.query_lens[chosen], self.kv_lens[chosen], decodes, min(count, self.samples))

    @property
    def symbols(self) -> dict[str, int]:
        return {"T": self.tokens, "R": self.sequences, "D": self.num_decodes, "S": self.samples, "C": self.continued.sequences}

    def padded(self, sequences: int) -> dict[str, int]:
        """The symbols of a decode step whose CUDA graph was captured for so many sequences."""
        return {**dict.fromkeys("TRDS", sequences), "C": 0}


@dataclass(frozen=True)
class OpCost:
    name: str
    op: str
    kind: Kind
    compute: str
    """Number format of its arithmetic: which compute ceiling holds."""
    flop: float
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float
    rows: int = 0
    """M of a matrix product."""

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def role(self) -> str:
        """The same work in every layer; a product that took an activation in goes by its op, since its name is the activation's."""
        role = role_of(self.name)
        return f"{role.rpartition('.')[0]}.{self.op}" if self.op in _FUSED_PRODUCTS else role


def role_of(name: str) -> str:
    """An op's name without its layer: what is the same work in every layer."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name).removeprefix("model.")


def layer_of(name: str) -> int | None:
    found = re.search(r"\.(\d+)\.", name)
    return None if found is None else int(found.group(1))


class PlanCounter:
    """Counts of one plan. Layers whose ops agree in shape are counted once a step."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._products = gemm_dtype(plan.precision)
        self.specs: dict[str, TensorSpec] = {
            **step_input_specs(plan.config, plan.profile, plan.kv_dtype),
            **plan.constants,
            **plan.weights,
            **plan.values,
        }
        representatives: dict[tuple[object, ...], int] = {}
        self.likeness = [representatives.setdefault(self._signature(op), index) for index, op in enumerate(plan.ops)]
        """For each op the first that costs the same."""
        self._named = {op.name: op for op in plan.ops}

    def _signature(self, op: Op) -> tuple[object, ...]:
        def spec(name: str) -> object:
            return (name in self.plan.weights, self.specs[name]) if name in self.specs else None

        attrs = tuple(sorted((key, str(value)) for key, value in op.attrs.items() if key != "layer"))
        return (op.op, bool(op.reuses), attrs, tuple(spec(name) for name in op.inputs), tuple(spec(name) for name in op.outputs))

    def step(self, shape: StepShape) -> list[OpCost]:
        """Cost of each op of the plan in order."""
        counted: dict[int, OpCost] = {}
        costs = []
        for op, like in zip(self.plan.ops, self.likeness, strict=True):
            if like not in counted:
                counted[like] = self._count(self.plan.ops[like], shape)
            costs.append(replace(counted[like], name=op.name))
        return costs

    def classes(self, shape: StepShape) -> list[tuple[OpCost, int]]:
        """(cost, how many ops of the plan cost the same): `step` for whoever only sums."""
        counts: dict[int, int] = {}
        for like in self.likeness:
            counts[like] = counts.get(like, 0) + 1
        return [(self._count(self.plan.ops[like], shape), count) for like, count in counts.items()]

    def op(self, name: str, shape: StepShape) -> OpCost:
        """Cost of one op of the plan."""
        return self._count(self._named[name], shape)

    def sampling(self, shape: StepShape) -> OpCost:
        """Of steps that the runtime samples once more from the logits: filters, penalties, log-probabilities."""
        logits = self.specs[LOGITS]
        columns = int(logits.shape[1])
        moved = float(bytes_of(shape.samples * columns, logits.dtype) + 4 * shape.samples)
        return OpCost("sample", "sample", "rows", self._products, float(shape.samples * columns), 0.0, 0.0, moved)

    def _bytes(self, name: str, symbols: Mapping[str, int]) -> float:
        return float(nbytes(self.specs[name], symbols))

    def _all_bytes(self, names: Iterable[str], symbols: Mapping[str, int]) -> float:
        return sum(self._bytes(name, symbols) for name in names if name and name not in _STATE)

    def _elements(self, name: str, symbols: Mapping[str, int]) -> float:
        return float(num_elements(self.specs[name], symbols))

    def _count(self, op: Op, shape: StepShape) -> OpCost:
        symbols = shape.symbols
        results = self._all_bytes(op.outputs, symbols)
        if op.op == "paged_attention":
            return self._attention(op, shape, results)
        if op.op == "rope_kv_write":
            return self._kv_write(op, shape, results)
        if op.op in _PICKS_ROWS:
            source = self.specs[next(name for name in op.inputs if len(self.specs[name].shape) == 2)]
            elements = num_elements(self.specs[op.outputs[0]], symbols)
            rows, read = elements / int(source.shape[1]), float(bytes_of(elements, source.dtype))
            return self._rows(op, 0.0, read if op.op == "embedding" else 0.0, results + 4 * rows + (0.0 if op.op == "embedding" else read))
        weights = [name for name in op.inputs if name in self.plan.weights]
        weight_bytes = self._all_bytes(weights, symbols)
        inputs = self._all_bytes([name for name in op.inputs if name not in self.plan.weights], symbols)
        matrix = next((self.specs[name] for name in weights if len(self.specs[name].shape) == 2), None)
        if matrix is not None:
            rows = evaluate(self.specs[op.outputs[0]].shape[0], symbols)
            flop = 2.0 * rows * int(matrix.shape[0]) * int(matrix.shape[1])
            return OpCost(op.name, op.op, "gemm", self._format(op, matrix), flop, weight_bytes, 0.0, inputs + results, rows)
        if op.op == "prepare_step":
            inputs += 4.0 * (shape.num_decodes + shape.tokens)
        additions = 1 if op.op in _ADDEND and op.inputs[_ADDEND[op.op]] else 0
        flop = (_ELEMENT_FLOP.get(op.op, 0) + additions) * self._elements(op.outputs[0], symbols)
        return self._rows(op, flop, weight_bytes, inputs + results)

    def _rows(self, op: Op, flop: float, weight_bytes: float, activation_bytes: float) -> OpCost:
        return OpCost(op.name, op.op, "rows", self._products, flop, weight_bytes, 0.0, activation_bytes)

    def _format(self, op: Op, matrix: TensorSpec) -> str:
        """The format both operands have, else the wider one."""
        x = self.specs[op.inputs[0]].dtype
        if matrix.dtype in _EIGHT_BIT and x == matrix.dtype:
            return x
        return x if matrix.dtype in _EIGHT_BIT else matrix.dtype

    def _kv_bytes_per_token(self) -> float:
        """Keys and values of one token in one layer."""
        config = self.plan.config
        return float(bytes_of(2 * config.num_kv_heads * config.head_dim, self.plan.kv_dtype))

    def _attention(self, op: Op, shape: StepShape, results: float) -> OpCost:
        config = self.plan.config
        width = config.num_heads * config.head_dim
        query = float(bytes_of(shape.tokens * width, self.specs[op.inputs[0]].dtype))
        tables = 4.0 * (int((-(-shape.kv_lens // self.plan.profile.page_size)).sum()) + 3 * shape.sequences)
        compute = self._products if self._products not in _EIGHT_BIT else "fp16"
        flop = 4.0 * shape.pairs * width
        return OpCost(
            op.name, op.op, "attention", compute, flop, 0.0, shape.kv_tokens * self._kv_bytes_per_token(), query + results + tables
        )

    def _kv_write(self, op: Op, shape: StepShape, results: float) -> OpCost:
        symbols = shape.symbols
        table = next(name for name in op.inputs if name in self.plan.constants)
        rotary = bytes_of(shape.tokens * int(self.specs[table].shape[1]), self.specs[table].dtype)
        weights = self._all_bytes([name for name in op.inputs if name in self.plan.weights], symbols)
        others = [name for name in op.inputs if name != table and name not in self.plan.weights]
        written = shape.tokens * self._kv_bytes_per_token()
        flop = _ELEMENT_FLOP[op.op] * self._elements(op.outputs[0], symbols)
        moved = self._all_bytes(others, symbols) + rotary + results
        if op.reuses:  # what passes through stays where it is; of q it is not even read
            config = self.plan.config
            passing = config.head_dim - int(self.specs[table].shape[1])
            unread = config.num_heads * passing
            unwritten = unread + config.num_kv_heads * (passing + config.head_dim)
            moved -= bytes_of(shape.tokens * (unread + unwritten), self.specs[op.outputs[0]].dtype)
        return OpCost(op.name, op.op, "rows", self._products, flop, weights, written, moved)
