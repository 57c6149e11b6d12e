"""Runs Triton's kernels for packed weights in its CPU interpreter and prints one JSON line a case: what makes them wide, and the product of
few tokens. Started by test_packed_triton.py."""

import json
import sys
from collections.abc import Iterator

import torch
from interpreted import CONSTANTS, make_interpreter_exact, run_launches
from interpreted_asm import make_interpreter_run_asm
from packed_samples import SCHEMES, Packed, lowered_for, result_like, sample

from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES, bytes_of_codes
from trtllm_kernels.dialect.types import SYMBOLS
from trtllm_kernels.references import OPS

WIDENED_TOKENS, FEW_TOKENS = 5, (1, 3, 16, 40, 64)
MOST = 70
"""Tokens of which two programs take a part each."""
WIDENED = {"packed_to": 0, "large_to": 0, "mma_to": 0, "skinny_to": 0, "gemv": 0}
FEW_SCHEMES = (*SCHEMES, Packed("int8", "bf16", 32, "bf16", zero=True), Packed("int4", "bf16", 16, "fp8"))

Case = tuple[str, Packed, int, int, dict[str, bool]]
"""Op, scheme, rows and columns of the weight, what else the op does."""


def widened() -> Iterator[tuple[Case, int]]:
    for number, scheme in enumerate(SCHEMES):
        for op, epilogue in (("linear", {"residual": True}), *([("gate_up_silu", {})] if number == 0 else [])):
            yield (op, scheme, 64, 128, epilogue), WIDENED_TOKENS


def few() -> Iterator[tuple[Case, int, str]]:
    """And the architecture. Every format in tiles of few and of many tokens, two of them at all numbers; each op's end; K in parts, which
    Hopper's launches end with a kernel that begins before."""
    for number, scheme in enumerate(FEW_SCHEMES):
        columns = 256 if scheme.group == 128 else 128
        for tokens in FEW_TOKENS if number in (0, 6) else (FEW_TOKENS[number % 3], FEW_TOKENS[3 + number % 2]):
            yield ("linear", scheme, 64, columns, {"residual": True}), tokens, "sm_89" if scheme.inputs == "fp8" else "sm_80"
    yield ("linear", SCHEMES[0], 64, 1664, {"bias": True, "residual": True}), 5, "sm_90"
    yield ("linear", SCHEMES[3], 128, 128, {"bias": True}), MOST, "sm_80"
    yield ("gate_up_silu", SCHEMES[4], 128, 128, {}), 20, "sm_80"
    yield ("gate_up_silu", SCHEMES[11], 64, 256, {"quantize": True}), 7, "sm_89"
    yield ("linear_gelu", SCHEMES[0], 64, 256, {"bias": True}), 9, "sm_80"


def error(case: Case, tokens: int, arch: str, tactic: dict[str, int], kernel: str) -> float:
    """Relative to the reference. Raises `AssertionError` if `kernel` is not among the launches, or rows behind the tokens were written."""
    op, scheme, rows, columns, epilogue = case
    named = sample(op, scheme, rows, columns, tokens + 3, **epilogue)
    y = result_like(op, named)
    y.view(torch.uint8).fill_(0x7F)
    expected = OPS[op].reference(**{name: named.get(name) for name in OP_SPECS[op].tensors}).float()[:tokens]
    lowered = lowered_for(op, named, y, tactic, arch)
    symbols = {**dict.fromkeys(SYMBOLS, 0), "T": tokens}
    launched = {one.kernel for one in lowered.launches if min(evaluate(dim, symbols) for dim in one.grid) > 0}
    assert kernel in {spec.function for spec in lowered.kernels if spec.key in launched}
    tensors = {name: bytes_of_codes(value) for name, value in named.items()} | {"out0": y}
    for name, spec in lowered.workspaces.items():
        tensors[name] = torch.full([evaluate(dim, symbols) for dim in spec.shape], torch.nan, dtype=DTYPES[spec.dtype])
    run_launches(lowered, tensors, symbols, [*CONSTANTS, "group_scale", "weight_zero"])
    assert bool((y[tokens:].view(torch.uint8) == 0x7F).all())
    return float((y[:tokens].float() - expected).norm() / expected.norm())


def main() -> None:
    make_interpreter_exact()
    make_interpreter_run_asm()
    for case, tokens in widened():
        apart = error(case, tokens, "sm_90", WIDENED, "widen_weight")
        print(json.dumps({"kernel": "widened", "case": f"{case[0]}-{case[1].name}", "error": apart}), flush=True)
    for case, tokens, arch in few():
        apart = error(case, tokens, arch, {"mma_to": 256}, "packed_few")
        print(json.dumps({"kernel": "few", "case": f"{case[0]}-{case[1].name} {tokens}", "error": apart}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
