"""Asks the kernels how each op runs on each architecture: launches, kernels and scratch memory, as data.

The choice itself (recorded tactic of that GPU, else the stated default) is the kernels' own; here it is only asked for, op by op, with
the names the plan gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from trtllm_engines.fingerprint import CPU
from trtllm_engines.passes.fetch_ahead import weights_ahead
from trtllm_engines.plan import Op
from trtllm_kernels.lowering import lower
from trtllm_kernels.lowering.call import Operand
from trtllm_kernels.types import Lowered, TensorSpec


def select_tactics(ops: Sequence[Op], specs: Mapping[str, TensorSpec], arches: Sequence[str], fetch_ahead: bool = True) -> tuple[Op, ...]:
    """`specs` holds every value, weight, constant and step input the ops name. `fetch_ahead`: see `compile_model`."""
    gpus = [arch for arch in arches if arch != CPU]
    nearer = weights_ahead(ops) if fetch_ahead else [""] * len(ops)
    return tuple(
        replace(op, tactics={arch: _lower(op, specs, arch, weight) for arch in gpus}) for op, weight in zip(ops, nearer, strict=True)
    )


def _lower(op: Op, specs: Mapping[str, TensorSpec], arch: str, weight: str) -> Lowered:
    inputs = [specs[name] if name else None for name in op.inputs]
    outputs = [specs[name] for name in op.outputs]
    ahead = Operand(weight, specs[weight]) if weight else None
    return lower(
        op.op,
        inputs,
        outputs,
        op.attrs,
        arch,
        input_names=op.inputs,
        output_names=op.outputs,
        in_place=bool(op.reuses),
        ahead=ahead,
    )
