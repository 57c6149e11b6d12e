"""Asks the kernels how each op runs on each architecture: launches, kernels and scratch memory, as data.

The choice itself (recorded tactic of that GPU, else the stated default) is the kernels' own; here it is only asked for, op by op, with
the names the plan gave. Where attention alone reads what `rope_kv_write` leaves, the two are asked for together: attention may rotate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from trtllm_engines.compiler.fingerprint import CPU
from trtllm_engines.compiler.plan import Op
from trtllm_kernels.dialect.ops import OP_SPECS, Trait
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.lowering import LOWERINGS, describe, rotate_in_attention
from trtllm_kernels.lowering.call import OpCall
from trtllm_kernels.tactics import Tactic, key


def select_tactics(
    ops: Sequence[Op],
    specs: Mapping[str, TensorSpec],
    arches: Sequence[str],
    gpu: str = "",
    outputs: Sequence[str] = (),
    chosen: Mapping[str, Tactic] | None = None,
) -> tuple[Op, ...]:
    """`specs` holds every value, weight, constant and step input the ops name. `gpu`: whose recorded tactics to take. `outputs` are kept
    for the caller. `chosen`: tactics by key, to take in place of all that is recorded."""
    compiled = [arch for arch in arches if arch != CPU]
    calls = {(op.name, arch): _describe(op, specs, arch, gpu, chosen) for op in ops for arch in compiled}
    lowered = {at: LOWERINGS[call.op].lower(call) for at, call in calls.items()}
    for rope, attention in _rotations(ops, outputs):
        for arch in compiled:
            if both := rotate_in_attention(calls[rope, arch], calls[attention, arch]):
                lowered[rope, arch], lowered[attention, arch] = both
    return tuple(replace(op, tactics={arch: lowered[op.name, arch] for arch in compiled}) for op in ops)


def _describe(op: Op, specs: Mapping[str, TensorSpec], arch: str, gpu: str, chosen: Mapping[str, Tactic] | None) -> OpCall:
    inputs = [specs[name] if name else None for name in op.inputs]
    results = [specs[name] for name in op.outputs]
    return describe(
        op.op,
        inputs,
        results,
        op.attrs,
        arch,
        tactic=None if chosen is None else chosen.get(key(op.op, inputs, results, op.attrs), {}),
        input_names=op.inputs,
        output_names=op.outputs,
        in_place=bool(op.reuses),
        gpu=gpu,
    )


def writes_then_reads_cache(first: Op, second: Op) -> bool:
    """Whether the two are an attention's rotation with the write of keys and values, and that attention."""
    return Trait.WRITES_CACHE in OP_SPECS[first.op].traits and Trait.READS_CACHE in OP_SPECS[second.op].traits


def _rotations(ops: Sequence[Op], outputs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names of each op that rotates and writes the cache, and whose rotated rows the attention after it reads and nothing else does, and of
    that."""
    for rope, attention in pairwise(ops):
        if writes_then_reads_cache(rope, attention):
            rotated = rope.outputs[0]
            if rotated not in outputs and [op.name for op in ops if rotated in op.inputs] == [attention.name]:
                yield rope.name, attention.name
