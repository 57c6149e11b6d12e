"""Whether a candidate computes what its op means, before it is timed.

Results are spoiled first (NaN, and -1 for integers) and what is written in place is wiped, so that a kernel which writes too little cannot
pass on what the one before it left. What was wiped is put back. A result that takes an input's memory is not spoiled, the input is put
there again: a kernel that writes too little leaves it as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from trtllm_bench.micro.bound_op import BoundOp
from trtllm_bench.micro.results import is_right
from trtllm_kernels.references import OPS
from trtllm_kernels.references.sampling import EMPTY

_FP8_NAN = 0x7F


class Check:
    def __init__(self, bound: BoundOp, given: torch.Tensor | None) -> None:
        """Of variants that do the op's own work alone. `given`: a copy of the input whose memory the result takes, if there is one."""
        self._expected = replace(bound, includes=()).expected()
        self._given = given
        self._format = bound.coarsest

    def error_of(self, variant: BoundOp) -> str:
        """What is wrong with a variant, or nothing. Runs it once."""
        for name in variant.op.outputs:
            spoil(variant.memory[name])
        if self._given is not None:
            variant.memory[variant.op.reuses].copy_(self._given)
        for tensor in OPS[variant.op.op].written_in(variant.arguments()).values():
            _wipe(tensor)
        variant.run()
        difference = variant.difference(self._expected)
        return "" if is_right(difference, self._format) else f"wrong: differs from the reference by {difference:.2%}"


@contextmanager
def checking(bound: BoundOp) -> Iterator[Check]:
    """A check of one op's variants in one step; the op's memory is afterwards as its default leaves it."""
    mutated = OPS[bound.op.op].written_in(bound.arguments())
    kept = {name: tensor.clone() for name, tensor in mutated.items()}
    given = bound.memory[bound.op.reuses].clone() if bound.op.reuses else None
    for tensor in mutated.values():
        _wipe(tensor)
    try:
        yield Check(bound, given)
    finally:
        for name, tensor in mutated.items():
            tensor.copy_(kept[name])
        bound.run()
        if given is not None:
            bound.memory[bound.op.reuses].copy_(given)


def spoil(tensor: torch.Tensor) -> None:
    if tensor.dtype == torch.float8_e4m3fn:
        tensor.view(torch.uint8).fill_(_FP8_NAN)
    else:
        tensor.fill_(torch.nan if tensor.is_floating_point() else -1)


def _wipe(tensor: torch.Tensor) -> None:
    """As a step finds it that has found nothing written yet."""
    if tensor.dtype == torch.int64:
        tensor.fill_(EMPTY)
    else:
        tensor.view(torch.uint8).zero_()
