"""Asks the kernels how each op runs on each architecture: launches, kernels and scratch memory, as data.

The choice itself (recorded tactic of that GPU, else the stated default) is the kernels' own; here it is only asked for, op by op, with
the names the plan gave.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from trtllm_engines.compiler.plan import Op
from trtllm_engines.engine.fingerprint import CPU
from trtllm_kernels.dialect.types import Lowered, TensorSpec
from trtllm_kernels.lowering import lower


def select_tactics(ops: Sequence[Op], specs: Mapping[str, TensorSpec], arches: Sequence[str], gpu: str = "") -> tuple[Op, ...]:
    """`specs` holds every value, weight, constant and step input the ops name. `gpu`: whose recorded tactics to take."""
    compiled = [arch for arch in arches if arch != CPU]
    return tuple(replace(op, tactics={arch: _lower(op, specs, arch, gpu) for arch in compiled}) for op in ops)


def _lower(op: Op, specs: Mapping[str, TensorSpec], arch: str, gpu: str) -> Lowered:
    inputs = [specs[name] if name else None for name in op.inputs]
    outputs = [specs[name] for name in op.outputs]
    return lower(op.op, inputs, outputs, op.attrs, arch, input_names=op.inputs, output_names=op.outputs, in_place=bool(op.reuses), gpu=gpu)
