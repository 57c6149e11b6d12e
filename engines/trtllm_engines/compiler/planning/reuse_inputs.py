"""Results that may take the memory of an input that dies there do: the op's launches then write only what changes.

Rotating q and k changes a part of the merged projection (a sixth of GPT-J's, whose rotary part is a quarter of a head), so a copy would
mostly move what stays the same. Runs on the plan's ops, after outputs are known: a value marked as an output keeps its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from trtllm_engines.compiler.plan import Op
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import TensorSpec


def reuse_inputs(ops: Sequence[Op], values: Mapping[str, TensorSpec], outputs: Sequence[str]) -> tuple[Op, ...]:
    """The ops with `reuses` set wherever it may be."""
    return tuple(replace(op, reuses=_reusable(op, ops[index + 1 :], values, outputs)) for index, op in enumerate(ops))


def _reusable(op: Op, later: Sequence[Op], values: Mapping[str, TensorSpec], outputs: Sequence[str]) -> str:
    """The input whose memory the first result of `op` may take: one its launches can work on in place, an activation of the same shape that
    neither a later op nor the caller reads. "" where there is none."""
    spec = OP_SPECS[op.op]
    if not spec.in_place:
        return ""
    name = op.inputs[spec.tensors.index(spec.in_place)]
    needed = name in outputs or any(name in other.inputs for other in later)
    same = values.get(name) == values[op.outputs[0]] and op.inputs.count(name) == 1
    return name if same and not needed else ""
