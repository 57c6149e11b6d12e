"""Runs what makes packed weights wide in Triton's CPU interpreter and prints one JSON line a case. Started by test_packed_gemm.py."""

import json
import sys

import torch
from interpreted import CONSTANTS, make_interpreter_exact, run_launches
from packed_samples import SCHEMES, lowered_for, result_like, sample

from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES, bytes_of_codes
from trtllm_kernels.dialect.types import SYMBOLS
from trtllm_kernels.references import OPS

TOKENS = 5


def main() -> None:
    make_interpreter_exact()
    for number, scheme in enumerate(SCHEMES):
        for op, epilogue in (("linear", {"residual": True}), *([("gate_up_silu", {})] if number == 0 else [])):
            named = sample(op, scheme, 64, 128, TOKENS, **epilogue)
            y = result_like(op, named)
            expected = OPS[op].reference(**{name: named.get(name) for name in OP_SPECS[op].tensors}).float()
            lowered = lowered_for(op, named, y, {"packed_to": 0, "large_to": 0, "skinny_to": 0, "gemv": 0})
            symbols = {**dict.fromkeys(SYMBOLS, 0), "T": TOKENS}
            tensors = {name: bytes_of_codes(value) for name, value in named.items()} | {"out0": y.fill_(torch.nan)}
            for name, spec in lowered.workspaces.items():
                tensors[name] = torch.full([evaluate(dim, symbols) for dim in spec.shape], torch.nan, dtype=DTYPES[spec.dtype])
            run_launches(lowered, tensors, symbols, [*CONSTANTS, "group_scale", "weight_zero"])
            error = float((y.float() - expected).norm() / expected.norm())
            print(json.dumps({"case": f"{op}-{scheme.name}", "error": error}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
