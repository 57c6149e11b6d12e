"""Bytes and FLOP of every op of a step, counted from the engine's plan: what a kernel's time is judged against.

The plan is one rank's, so the counts are of one GPU.

What one op must do, its specification says (`trtllm_kernels.dialect.work`): each tensor it needs is moved once, each key and value of a
sequence is read once per step. Here an op of a plan is put before it with the tensors it has and the sizes of a step.

`costs.py` sums a whole run from request lengths for MFU and MBU; here one step is counted op by op.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from trtllm_engines.compiler.plan import LOGITS, Op, Plan
from trtllm_engines.quantization import gemm_dtype
from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.dialect.op_spec import Kind
from trtllm_kernels.dialect.ops import OP_SPECS, Trait
from trtllm_kernels.dialect.types import TensorSpec, rounded_keys
from trtllm_kernels.dialect.work import OpInStep, Work

if TYPE_CHECKING:
    from trtllm_engines.runtime.batch import StepBatch

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class StepShape:
    """What one step computes: R sequences, decode sequences first; `samples` rows whose logits are wanted. Sums are made once: each op of
    a plan asks for them."""

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

    @cached_property
    def tokens(self) -> int:
        return int(self.query_lens.sum())

    @property
    def sequences(self) -> int:
        return len(self.query_lens)

    @cached_property
    def kv_tokens(self) -> int:
        return int(self.kv_lens.sum())

    @cached_property
    def pairs(self) -> int:
        """(query token, key it sees) pairs under the causal mask."""
        q, kv = self.query_lens, self.kv_lens
        return int((q * (kv - q) + q * (q + 1) // 2).sum())

    def pages(self, page_size: int) -> int:
        """Pages of KV cache that the sequences use."""
        return int((-(-self.kv_lens // page_size)).sum())

    @property
    def phase(self) -> str:
        if self.num_decodes == self.sequences:
            return "decode"
        return "mixed" if self.num_decodes else "prefill"

    @cached_property
    def decodes(self) -> StepShape:
        """Its decode sequences alone."""
        return self._only(np.arange(self.sequences) < self.num_decodes)

    @cached_property
    def whole_prompts(self) -> StepShape:
        """Its prompts without a cached past alone."""
        return self._only((np.arange(self.sequences) >= self.num_decodes) & (self.kv_lens == self.query_lens))

    @cached_property
    def continued(self) -> StepShape:
        """Its prompts with a cached past alone."""
        return self._only((np.arange(self.sequences) >= self.num_decodes) & (self.kv_lens > self.query_lens))

    def _only(self, chosen: npt.NDArray[np.bool_]) -> StepShape:
        decodes, count = int(chosen[: self.num_decodes].sum()), int(chosen.sum())
        return StepShape(self.query_lens[chosen], self.kv_lens[chosen], decodes, min(count, self.samples))

    @cached_property
    def symbols(self) -> dict[str, int]:
        sizes = {"T": self.tokens, "R": self.sequences, "D": self.num_decodes, "S": self.samples}
        return {**sizes, "C": self.continued.sequences, "L": rounded_keys(self.longest_decode)}

    @property
    def longest_decode(self) -> int:
        """Keys of the longest decode sequence."""
        return int(self.kv_lens[: self.num_decodes].max(initial=0))

    def padded(self, sequences: int) -> dict[str, int]:
        """The symbols of a decode step whose CUDA graph was captured for so many sequences."""
        return {**self.symbols, **dict.fromkeys("TRDS", sequences)}


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
    link_bytes: float = 0.0
    """Sent to other GPUs, as in a one-shot reduction."""

    @property
    def bytes(self) -> float:
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def role(self) -> str:
        """The same work in every layer; a GEMM that took an activation in goes by its op, since its name is the activation's."""
        role, spec = role_of(self.name), OP_SPECS.get(self.op)
        return f"{role.rpartition('.')[0]}.{self.op}" if spec is not None and Trait.ACTIVATION in spec.traits else role


@cache
def role_of(name: str) -> str:
    """An op's name without its layer: what is the same work in every layer."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name).removeprefix("model.")


class PlanCounter:
    """Counts of one plan. Layers whose ops agree in shape are counted once a step."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._precision = gemm_dtype(plan.precision)
        self.specs: dict[str, TensorSpec] = {
            **plan.step_inputs,
            **plan.constants,
            **plan.weights,
            **plan.values,
        }
        representatives: dict[tuple[object, ...], int] = {}
        self.likeness = [representatives.setdefault(self._signature(op), index) for index, op in enumerate(plan.ops)]
        """For each op the first that costs the same."""
        self._alike = Counter(self.likeness)
        self._named = {op.name: op for op in plan.ops}
        self._counted: dict[str, Callable[[StepShape], Work]] = {}
        """By an op's name: what a step asks of it."""

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
        return [(self._count(self.plan.ops[like], shape), count) for like, count in self._alike.items()]

    def op(self, name: str, shape: StepShape) -> OpCost:
        """Cost of one op of the plan."""
        return self._count(self._named[name], shape)

    def sampling(self, shape: StepShape) -> OpCost:
        """Of steps that the runtime samples once more from the logits: filters, penalties, log-probabilities."""
        logits = self.specs[LOGITS]
        columns = int(logits.shape[1])
        moved = float(bytes_of(shape.samples * columns, logits.dtype) + 4 * shape.samples)
        return OpCost("sample", "sample", "rows", self._precision, float(shape.samples * columns), 0.0, 0.0, moved)

    def _count(self, op: Op, shape: StepShape) -> OpCost:
        if op.name not in self._counted:
            self._counted[op.name] = self._work_of(op)
        work = self._counted[op.name](shape)
        compute = work.compute or self._precision
        moved = (work.weight_bytes, work.kv_bytes, work.activation_bytes)
        return OpCost(op.name, op.op, OP_SPECS[op.op].kind, compute, work.flop, *moved, rows=work.rows, link_bytes=work.link_bytes)

    def _work_of(self, op: Op) -> Callable[[StepShape], Work]:
        """What a step asks of the op, with all that does not depend on the step looked up once."""
        spec, named = OP_SPECS[op.op], dict(zip(OP_SPECS[op.op].tensors, op.inputs, strict=False))
        present = {argument: name for argument, name in named.items() if name}
        in_step = partial(
            OpInStep,
            tensors={argument: self.specs[name] for argument, name in present.items()},
            outputs=tuple(self.specs[name] for name in op.outputs),
            attrs=op.attrs,
            weights=frozenset(argument for argument, name in present.items() if name in self.plan.weights),
            state=frozenset(spec.state),
            in_place=bool(op.reuses),
            precision=self._precision,
        )
        return lambda shape: spec.work(in_step(step=shape))
