"""Runs one-token products in Triton's CPU interpreter and compares the lines they ask for with those meant. Started by test_ahead.py.

One JSON line a case. That no line lies outside the weights, and none is asked for after the wait, `interpreted_overlap` asserts.
"""

import json
import sys
from collections import Counter
from contextlib import contextmanager

import interpreted
import torch

from trtllm_kernels import lowering
from trtllm_kernels.cuda_ops import as_list, step_sizes
from trtllm_kernels.lowering import lower
from trtllm_kernels.lowering.call import Operand
from trtllm_kernels.ops import OPS
from trtllm_kernels.samples import ModelShape, fp8_sample, sample
from trtllm_kernels.specs import spec_of

LINE = 128
TILE = {"gemv_rows": 4, "gemv_columns": 256, "gemv_warps": 8}
"""Two tiles leave something of 1,024 columns and nothing of 512. Of 8 warps an SM's first wave has four programs."""
BUDGETS = ({"ahead_own": 3, "ahead_next": 1}, {"ahead_own": 64, "ahead_next": 64})


def expected(weight: torch.Tensor, following: torch.Tensor, own: int, ahead: int) -> set[int]:
    """Addresses, by rows and programs and in no way as the kernel computes them."""
    rows, row_bytes = TILE["gemv_rows"], weight.shape[1] * weight.itemsize
    programs = min(len(weight) // rows, lowering.call.OpCall.sm_count * 32 // TILE["gemv_warps"])
    found = set()
    held = 2 * TILE["gemv_columns"] * weight.itemsize
    rest = min(len(range(held, row_bytes, LINE)), own * 8 // rows)
    for row in range(programs * rows):
        found |= {weight.data_ptr() + row * row_bytes + held + LINE * i for i in range(rest)}
    later = (len(weight) - programs * rows) * row_bytes // LINE // programs
    count = programs * min(own * 8 - rows * rest, later)
    found |= {weight.data_ptr() + programs * rows * row_bytes + LINE * i for i in range(count)}
    count = programs * min(ahead * 8, following.nbytes // LINE // programs)
    return found | {following.data_ptr() + LINE * i for i in range(count)}


def main() -> None:
    interpreted.make_interpreter_exact()
    lowering.call.OpCall.sm_count = 1
    watches, plain = [], interpreted.watched

    @contextmanager
    def kept(*args, **options):
        with plain(*args, **options) as watch:
            watches.append(watch)
            yield watch

    interpreted.watched = kept
    following = torch.zeros(40, 96, dtype=torch.bfloat16)
    for name, dtype, hidden in (
        ("linear", "fp8", 1024),
        ("linear", "bf16", 512),
        ("gate_up_silu", "bf16", 1024),
        ("gate_up_silu", "fp8", 512),
    ):
        op, model = OPS[name], ModelShape(hidden=hidden, intermediate=32)
        named = fp8_sample(name, model, interpreted.ONE) if dtype == "fp8" else sample(name, model, interpreted.ONE, dtype)
        inputs = [None if named[argument] is None else spec_of(named[argument]) for argument in op.tensors]
        want = as_list(op.reference(**named))[0]
        for budget in BUDGETS:
            y = torch.empty_like(want)
            ahead = Operand("ahead", spec_of(following))
            lowered = lower(name, inputs, [spec_of(y)], {}, "sm_90", tactic={**TILE, **budget}, ahead=ahead)
            tensors = {**named, "out0": y, "ahead": following}
            watches.clear()
            interpreted.run_launches(lowered, tensors, step_sizes(named), (*interpreted.CONSTANTS, "ahead"))
            asked = Counter(watches[0].asked)
            failure = interpreted.difference(name, dtype, y, want)
            failure += "" if set(asked.values()) == {1} else "a line is asked for twice, or none at all "
            failure += "" if set(asked) == expected(named["weight"], following, *budget.values()) else "other lines than those meant"
            print(json.dumps({"case": f"{name} {dtype} {hidden} {budget}", "lines": len(asked), "failure": failure}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
