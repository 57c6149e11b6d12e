"""Asks the kernels how each op runs on each architecture: launches, kernels and scratch memory, as data.

The choice itself (recorded tactic of that GPU, else the stated default) is the kernels' own; here it is only asked for, op by op, with
the names the plan gave. Where attention alone reads what `rope_kv_write` leaves, the two are asked for together: attention may rotate. So
are a norm and the product that alone reads it, which may normalize.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from trtllm_engines.compiler.fingerprint import CPU
from trtllm_engines.compiler.plan import Op
from trtllm_kernels.dialect.ops import OP_SPECS, Trait
from trtllm_kernels.dialect.types import Dim, TensorSpec
from trtllm_kernels.lowering import LOWERINGS, describe, norm_in_product, normed_to, rotate_in_attention, rotated_to
from trtllm_kernels.lowering.attention import decodes_in_equal_shares
from trtllm_kernels.lowering.call import OpCall
from trtllm_kernels.tactics import Tactic, key

_Answer = TypeVar("_Answer")


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
    for pairs, together in ((_rotations(ops, outputs), rotate_in_attention), (_norms(ops, outputs), norm_in_product)):
        for first, second in pairs:
            for arch in compiled:
                if both := together(calls[first, arch], calls[second, arch]):
                    lowered[first, arch], lowered[second, arch] = both
    return tuple(replace(op, tactics={arch: lowered[op.name, arch] for arch in compiled}) for op in ops)


def norms_in_products(
    ops: Sequence[Op], specs: Mapping[str, TensorSpec], arch: str, gpu: str = "", outputs: Sequence[str] = ()
) -> dict[str, int]:
    """Names of the norms that the product behind each takes itself, and in steps of up to how many tokens. The arguments are those of
    `select_tactics`."""
    return _of_pairs(normed_to, _norms(ops, outputs), ops, specs, arch, gpu)


def rotations_in_attention(
    ops: Sequence[Op], specs: Mapping[str, TensorSpec], arch: str, gpu: str = "", outputs: Sequence[str] = ()
) -> dict[str, Dim]:
    """Names of the ops that rotate and write the cache, and for how many of a step's first tokens the attention behind each does so. The
    arguments are those of `select_tactics`."""
    return _of_pairs(rotated_to, _rotations(ops, outputs), ops, specs, arch, gpu)


def equal_shares_in_attention(ops: Sequence[Op], specs: Mapping[str, TensorSpec], arch: str, gpu: str = "") -> dict[str, Dim]:
    """Names of the ops that attend, with 1 for steps whose SMs have equal shares of decode attention and 0 for others, where there may be
    such. The arguments are those of `select_tactics`."""
    known: dict[str, Dim] = {}
    answers: dict[str, Dim] = {}
    for op in ops:
        if Trait.READS_CACHE in OP_SPECS[op.op].traits:
            shape = _key(op, specs)
            if shape not in known:
                known[shape] = decodes_in_equal_shares(_describe(op, specs, arch, gpu, None))
            answers[op.name] = known[shape]
    return {name: answer for name, answer in answers.items() if answer}


def _of_pairs(
    ask: Callable[[OpCall, OpCall], _Answer],
    pairs: Iterable[tuple[str, str]],
    ops: Sequence[Op],
    specs: Mapping[str, TensorSpec],
    arch: str,
    gpu: str,
) -> dict[str, _Answer]:
    """What `ask` says of each of these pairs of ops, by the name of the first, where that is not 0. Pairs alike are asked for once."""
    named = {op.name: op for op in ops}
    known: dict[tuple[str, ...], _Answer] = {}
    answers: dict[str, _Answer] = {}
    for pair in pairs:
        both = [named[name] for name in pair]
        shapes = tuple(_key(op, specs) for op in both)
        if shapes not in known:
            first, second = (_describe(op, specs, arch, gpu, None) for op in both)
            known[shapes] = ask(first, second)
        answers[pair[0]] = known[shapes]
    return {name: answer for name, answer in answers.items() if answer}


def _describe(op: Op, specs: Mapping[str, TensorSpec], arch: str, gpu: str, chosen: Mapping[str, Tactic] | None) -> OpCall:
    inputs = [specs[name] if name else None for name in op.inputs]
    results = [specs[name] for name in op.outputs]
    return describe(
        op.op,
        inputs,
        results,
        op.attrs,
        arch,
        tactic=None if chosen is None else chosen.get(_key(op, specs), {}),
        input_names=op.inputs,
        output_names=op.outputs,
        in_place=bool(op.reuses),
        gpu=gpu,
    )


def _key(op: Op, specs: Mapping[str, TensorSpec]) -> str:
    return key(op.op, [specs[name] if name else None for name in op.inputs], [specs[name] for name in op.outputs], op.attrs)


def lowered_together(first: Op, second: Op) -> bool:
    """Whether the second of two ops that follow each other may do the work of the first."""
    return _writes_then_reads_cache(first, second) or _normalizes_then_reads(first, second)


def _writes_then_reads_cache(first: Op, second: Op) -> bool:
    """Whether the two are an attention's rotation with the write of keys and values, and that attention."""
    return Trait.WRITES_CACHE in OP_SPECS[first.op].traits and Trait.READS_CACHE in OP_SPECS[second.op].traits


def _normalizes_then_reads(first: Op, second: Op) -> bool:
    return Trait.NORM in OP_SPECS[first.op].traits and first.outputs[0] in second.inputs and OP_SPECS[second.op].kind == "gemm"


def _rotations(ops: Sequence[Op], outputs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names of each op that rotates and writes the cache, and whose rotated rows the attention after it reads and nothing else does, and of
    that."""
    for rope, attention in pairwise(ops):
        if _writes_then_reads_cache(rope, attention) and _reads_alone(attention, rope.outputs[0], ops, outputs):
            yield rope.name, attention.name


def _norms(ops: Sequence[Op], outputs: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names of each norm, and of the product right after it that alone reads its result and does not write over what is normalized."""
    for norm, product in pairwise(ops):
        kept = norm.inputs[0] not in (norm.reuses, product.reuses)
        if kept and _normalizes_then_reads(norm, product) and _reads_alone(product, norm.outputs[0], ops, outputs):
            yield norm.name, product.name


def _reads_alone(reader: Op, value: str, ops: Sequence[Op], outputs: Sequence[str]) -> bool:
    return value not in outputs and [op.name for op in ops if value in op.inputs] == [reader.name]
