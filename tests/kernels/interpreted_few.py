"""Runs the kernels for few tokens in Triton's CPU interpreter against the references; one JSON line a case. Started by test_few.py."""

import json
import sys

import torch
from interpreted import FUSED, as_list, difference, make_interpreter_exact, run

from trtllm_kernels import lowering
from trtllm_kernels.ops import OPS
from trtllm_kernels.samples import BatchShape, ModelShape, fp8_sample, sample

ODD = ModelShape(hidden=304, intermediate=104)
"""Rows and columns of the weight that fill no whole number of tiles."""
WHOLE = {"few_to": 64}
DIVIDED = {"few_to": 64, **{f"few{padded}_{name}": value for padded in (16, 32, 64) for name, value in (("splits", 3), ("k", 64))}}
TALL = {"few_to": 64, **{f"few{padded}_{name}": value for padded in (16, 32, 64) for name, value in (("rows", 128), ("ahead", 32))}}
TACTICS = {"whole": WHOLE, "divided": DIVIDED, "tall": TALL}


def cases() -> list[tuple[str, str, ModelShape, int, str, str]]:
    found = [("linear", name, model, tokens, dtype, tactic)
             for name, model in (("fused", FUSED), ("odd", ODD))
             for tactic, tokens in (("whole", 2), ("divided", 17), ("tall", 64), ("divided", 65))
             for dtype in ("bf16", "fp8")]  # fmt: skip
    found += [("linear", "rows", model, tokens, "fp8 by row", tactic)
              for model in (FUSED, ODD) for tactic, tokens in (("whole", 5), ("divided", 33))]  # fmt: skip
    found += [(op, "fused", FUSED, tokens, dtype, tactic)
              for op in ("gate_up_silu", "linear_gelu")
              for tactic, tokens in (("whole", 16), ("tall", 23), ("whole", 66))
              for dtype in ("bf16", "fp8")]  # fmt: skip
    return [*found, ("gate_up_silu", "odd", ODD, 3, "bf16", "whole"), ("linear_gelu", "odd", ODD, 48, "fp8", "whole")]


def main() -> None:
    make_interpreter_exact()
    for op, name, model, tokens, dtype, tactic in cases():
        lowering.tactics.recorded = lambda *_, tactic=TACTICS[tactic]: tactic
        batch = BatchShape((tokens,), (tokens,))
        by_row = dtype.endswith("by row")
        named = fp8_sample(op, model, batch, by_row=by_row) if dtype.startswith("fp8") else sample(op, model, batch, dtype)
        want = as_list(OPS[op].reference(**named))[0]
        got = run(op, named, "sm_90")[0]
        failure = difference(op, dtype.split()[0], got, want)
        if named.get("residual") is not None and not torch.equal(run(op, named, "sm_90", in_place=True)[0], got):
            failure += "in place it gives something else"
        print(json.dumps({"case": f"{op}-{name}-{tokens}-{dtype}-{tactic}", "failure": failure}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
