"""Runs kernels by rows, in fp8 and int8, in Triton's CPU interpreter and prints one JSON line a case. Started by test_rowwise.py."""

import json
import sys

import torch
from interpreted import GQA, MHA, ONE, difference, make_interpreter_exact, run

from samples import BatchShape, fp8_sample, int8_sample, sample
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.launch.torch_ops import as_list
from trtllm_kernels.references import OPS

MANY = BatchShape(query_lens=(37,), kv_lens=(37,))
WIDE = ModelShape(hidden=512, intermediate=256)
ROWS = [("quantize_rows", model, batch, dtype) for model in (GQA, MHA) for batch in (ONE, MANY) for dtype in ("fp32", "bf16", "fp16")]
FEW, MORE, ALL = (BatchShape(query_lens=(n,), kv_lens=(n,)) for n in (5, 70, 150))
PRODUCTS = [("linear", model, batch, "fp8") for model in (GQA, WIDE) for batch in (ONE, MANY)]
PRODUCTS += [(op, WIDE, ALL, "fp8") for op in ("linear", "gate_up_silu", "linear_gelu")]
BY_ROW = [(op, ModelShape(hidden=80), FEW, dtype) for op in OPS if op.endswith("_quantize_rows") for dtype in ("fp8 rows", "int8")]
ODD = ModelShape(hidden=272, intermediate=176)
"""Columns that fill no whole step of K, and rows that fill no whole tile."""
NO_TMA = ModelShape(hidden=264, intermediate=104)
IN_INT8 = ("linear", "gate_up_silu", "linear_gelu")
INT8 = [(op, model, batch, "int8") for op in IN_INT8 for model in (WIDE, ODD, NO_TMA) for batch in (ONE, FEW, MORE, ALL)]
INT8 += [("linear", ModelShape(hidden=1280, intermediate=64), ONE, "int8"), ("quantize_rows", GQA, MANY, "int8")]
"""One token's rows of several tiles among them."""


def int8_difference(got: torch.Tensor, want: torch.Tensor) -> str:
    """Codes may lie a step apart where a rounding flips; results of exact sums agree but for the last rounding."""
    if want.dtype != torch.int8:
        off = (got.float() - want.float()).abs()
        return "" if (off <= want.float().abs() * 2**-7 + 1e-5).all() else f"off by up to {off.max()}"
    steps = (got.int() - want.int()).abs()
    return "" if steps.max() <= 1 and (steps > 0).float().mean() < 2e-3 else f"codes up to {int(steps.max())} steps apart"


def drawn(op: str, model: ModelShape, batch: BatchShape, dtype: str) -> dict:
    if dtype == "int8":
        return int8_sample(op, model, batch)
    return fp8_sample(op, model, batch, by_row=True) if dtype == "fp8" else sample(op, model, batch, dtype.replace("fp8 rows", "bf16"))


def main() -> None:
    make_interpreter_exact()
    for op, model, batch, dtype in [*ROWS, *PRODUCTS, *BY_ROW, *INT8]:
        in_int8 = dtype == "int8"
        named = drawn(op, model, batch, dtype)
        expected = as_list(OPS[op].reference(**named))
        actual = run(op, named, "sm_90")
        failures = [
            int8_difference(got, want) if in_int8 else difference(op, dtype.removesuffix(" rows"), got, want)
            for want, got in zip(expected, actual, strict=True)
        ]
        print(json.dumps({"case": f"{op}-{model.hidden}-{batch.tokens}-{dtype}", "failure": " ".join(failures).strip()}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
