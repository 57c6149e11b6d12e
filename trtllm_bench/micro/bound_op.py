"""One op of a step, bound to the memory that the ops before it have filled: runs it, and compares its results with the reference's.

An op may launch nothing in a step because the next op does its work: attention rotates and writes the cache itself in steps that only
decode, and products of few tokens take the norm before them. The next op then includes it, and is held against the references of both,
one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from trtllm_bench.roofline.counts import OpCost
from trtllm_engines.compiler.plan import Op
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.specs import dtype_name
from trtllm_kernels.dialect.types import Lowered
from trtllm_kernels.references import OPS
from trtllm_kernels.references.quantize import FP8


@dataclass(frozen=True)
class BoundOp:
    op: Op
    cost: OpCost
    memory: dict[str, torch.Tensor]
    symbols: Mapping[str, int]
    lowered: Lowered
    program: Any
    """The launches, bound; None runs the reference."""
    includes: tuple[BoundOp, ...] = ()
    """Ops before this one whose work its launches do too."""

    @property
    def idle(self) -> bool:
        """Whether all its launches are skipped in this step: another op does its work."""
        skipped = (any(evaluate(dim, self.symbols) <= 0 for dim in launch.grid) for launch in self.lowered.launches)
        return bool(self.lowered.launches) and all(skipped)

    def operand(self, name: str) -> str:
        """What the op's tensor `name` of its definition is called in the plan."""
        return dict(zip(OPS[self.op.op].tensors, self.op.inputs, strict=True))[name]

    @property
    def coarsest(self) -> str:
        """The least exact number format among what it writes, a key of `results.LIMITS`: how near its reference it can be."""
        first, *others = [self.memory[name] for name in (*self.op.outputs[:1], *(name for name in self.op.inputs if name == "kv_cache"))]
        if FP8 in (first.dtype, *(other.dtype for other in others)):
            return "fp8"
        return dtype_name(first.dtype) if first.dtype.is_floating_point else "bf16"

    def arguments(self) -> dict[str, Any]:
        definition = OPS[self.op.op]
        inputs = zip(definition.tensors, self.op.inputs, strict=True)
        return {name: self.memory[value] if value else None for name, value in inputs} | dict(self.op.attrs)

    def run(self) -> None:
        """Computes the results in place."""
        if self.program is not None:
            self.program.run()
            return
        for name, value in zip(self.op.outputs, self.reference(self.arguments()), strict=True):
            self.memory[name] = value

    def reference(self, arguments: dict[str, Any]) -> list[torch.Tensor]:
        """What the op's definition makes of these, on their own device."""
        device = next(value.device for value in arguments.values() if isinstance(value, torch.Tensor))
        with device:
            result = OPS[self.op.op].reference(**arguments)
        return list(result) if isinstance(result, tuple | list) else [result]

    def error(self) -> float:
        """Largest root-mean-square difference to the reference, relative to it, over results and what is written in place; inf for NaN."""
        expected = self.expected()
        self.run()
        return self.difference(expected)

    def expected(self) -> list[torch.Tensor]:
        """What references make of the inputs: results, then copies of what is written in place. The ops that this one includes come first,
        and this one's reference reads what theirs have made."""
        memory = dict(self.memory)
        for part in (*self.includes, self):
            part = replace(part, memory=memory)
            written = {part.operand(name): tensor.clone() for name, tensor in OPS[part.op.op].written_in(part.arguments()).items()}
            memory |= written
            part = replace(part, memory=memory)
            memory |= zip(part.op.outputs, part.reference(part.arguments()), strict=True)
        return self._written_in(memory)

    def difference(self, expected: list[torch.Tensor]) -> float:
        """Of what the last `run` left to `expected`."""
        if self.op.op == "linear_sample":
            expected = self._as_sampled(expected)
        return max(_difference(a, b) for a, b in zip(self.written(), expected, strict=True))

    def _as_sampled(self, expected: list[torch.Tensor]) -> list[torch.Tensor]:
        """With the tokens that the last run's own logits have for largest: of two nearly equal logits rounding decides."""
        logits, tokens = (self.memory[name] for name in self.op.outputs)
        arguments = self.arguments()
        most = logits.gather(1, tokens.long().clamp(0, logits.shape[1] - 1)[:, None])[:, 0] == logits.amax(1)
        expected_logits, chosen, best, last_tokens, ring = expected
        sampled, last_tokens, ring = torch.where(most, tokens, chosen), last_tokens.clone(), ring.clone()
        last_tokens[arguments["sample_slots"].long()] = sampled
        ring[int(arguments["ring_slot"]), : len(sampled)] = sampled.to(ring.device)
        return [expected_logits, sampled, best, last_tokens, ring]

    def written(self) -> list[torch.Tensor]:
        """Results, then what is written in place, by the ops that this one includes too."""
        return self._written_in(self.memory)

    def _written_in(self, memory: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        in_place = {part.operand(name): None for part in (*self.includes, self) for name in OPS[part.op.op].written_in(part.arguments())}
        return [memory[name] for name in (*self.op.outputs, *in_place)]


def _difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    a, b = actual.reshape(-1), expected.reshape(-1)
    if not a.is_floating_point() and a.dtype != torch.int8:  # codes are numbers
        return 0.0 if torch.equal(a, b) else float("inf")
    total = scale = 0.0
    for at in range(0, len(a), 1 << 26):
        x, y = a[at : at + (1 << 26)].float(), b[at : at + (1 << 26)].float()
        total += float((x - y).square().sum())
        scale += float(y.square().sum())
    if total != total or scale != scale:
        return float("inf")
    return math.sqrt(total / scale if scale > 0 else total)
