"""Results that may take the memory of an input that dies there do: the op's launches then write only what changes.

Rotating q and k changes a part of the merged projection (a sixth of GPT-J's, whose rotary part is a quarter of a head), so a copy would
mostly move what stays the same. Runs on the plan's ops, after outputs are known: a value marked as an output keeps its memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from trtllm_engines.passes.verify import VerifyError
from trtllm_engines.plan import Op
from trtllm_kernels.lowering import ARGUMENTS, IN_PLACE
from trtllm_kernels.types import TensorSpec


def reuse_inputs(ops: Sequence[Op], values: Mapping[str, TensorSpec], outputs: Sequence[str]) -> tuple[Op, ...]:
    """The ops with `reuses` set wherever it may be."""
    found = []
    for index, op in enumerate(ops):
        name = _candidate(op)
        found.append(op if _refusal(op, name, ops[index + 1 :], values, outputs) else replace(op, reuses=name))
    return tuple(found)


def verify_reuse(ops: Sequence[Op], values: Mapping[str, TensorSpec], outputs: Sequence[str]) -> None:
    """Raises `VerifyError` for a result laid over something that is still needed, or that is not an activation of its size."""
    for index, op in enumerate(ops):
        if op.reuses and (why := _refusal(op, op.reuses, ops[index + 1 :], values, outputs)):
            raise VerifyError(f"{op.op} {op.name!r} cannot take the memory of {op.reuses!r}: {why}")


def _candidate(op: Op) -> str:
    return op.inputs[ARGUMENTS[op.op].index(IN_PLACE[op.op])] if op.op in IN_PLACE else ""


def _refusal(op: Op, name: str, later: Sequence[Op], values: Mapping[str, TensorSpec], outputs: Sequence[str]) -> str:
    """Why the first result of `op` must not be where its input `name` is, or ""."""
    if not name or name != _candidate(op) or op.inputs.count(name) != 1:
        return "its launches cannot work in place there"
    if values.get(name) != values[op.outputs[0]]:
        return "it is not an activation of the same shape"
    if name in outputs:
        return "it is an output of the engine"
    reader = next((other.name for other in later if name in other.inputs), "")
    return f"{reader!r} reads it later" if reader else ""
