"""Runs the row-wise quantized kernels in Triton's CPU interpreter and prints one JSON line a case. Started by test_rowwise.py."""

import json
import sys

from interpreted import GQA, MHA, ONE, difference, make_interpreter_exact, run

from samples import BatchShape, fp8_sample, sample
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.launch.torch_ops import as_list
from trtllm_kernels.references import OPS

MANY = BatchShape(query_lens=(37,), kv_lens=(37,))
WIDE = ModelShape(hidden=512, intermediate=256)
ROWS = [("quantize_rows", model, batch, dtype) for model in (GQA, MHA) for batch in (ONE, MANY) for dtype in ("fp32", "bf16", "fp16")]
PRODUCTS = [("linear", model, batch, "fp8") for model in (GQA, WIDE) for batch in (ONE, MANY)]


def main() -> None:
    make_interpreter_exact()
    for op, model, batch, dtype in [*ROWS, *PRODUCTS]:
        named = fp8_sample(op, model, batch, by_row=True) if dtype == "fp8" else sample(op, model, batch, dtype)
        expected = as_list(OPS[op].reference(**named))
        actual = run(op, named, "sm_90")
        failure = " ".join(difference(op, dtype, got, want) for want, got in zip(expected, actual, strict=True)).strip()
        print(json.dumps({"case": f"{op}-{model.hidden}-{batch.tokens}-{dtype}", "failure": failure}), flush=True)


if __name__ == "__main__":
    sys.exit(main())
