"""Runs every kernel in Triton's CPU interpreter against its reference and prints one JSON line a case. Started by test_interpreted.py.

A process of its own, because `TRITON_INTERPRET=1` must be set before a kernel is imported. The launches run are the lowering's: grid,
argument order and skipped launches are tested too. The interpreter multiplies bfloat16 bit patterns in `tl.dot` and truncates casts; the
two patches below make those two exact, and the kernels upcast right after loading, so nothing else touches bfloat16.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

import trtllm_kernels.ops
from trtllm_kernels.aot import load_function
from trtllm_kernels.cuda_ops import as_list, lower_call, num_decodes
from trtllm_kernels.expr import evaluate
from trtllm_kernels.ops import OPS
from trtllm_kernels.samples import BatchShape, ModelShape, sample
from trtllm_kernels.specs import DTYPES
from trtllm_kernels.types import Lowered


def _widen(data: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns to float32."""
    return (np.ascontiguousarray(data).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _narrow(data: np.ndarray) -> np.ndarray:
    """float32 to bfloat16 bit patterns, to nearest, ties to even."""
    return torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32)).bfloat16().view(torch.int16).numpy().view(np.uint16)


def make_interpreter_exact() -> None:
    builder = interpreter.InterpreterBuilder
    original_cast, original_dot = builder.cast_impl, builder.create_dot

    def cast(self, source, target):
        have, want = source.dtype.scalar, target.scalar
        if have == tl.float32 and want == tl.bfloat16:
            return interpreter.TensorHandle(_narrow(source.data).reshape(source.data.shape), want)
        if have == tl.bfloat16 and want == tl.float32:
            return interpreter.TensorHandle(_widen(source.data).reshape(source.data.shape), want)
        return original_cast(self, source, target)

    def widened(x):
        if x.dtype.scalar != tl.bfloat16:
            return x
        return interpreter.TensorHandle(_widen(x.data).reshape(x.data.shape), tl.float32)

    def dot(self, a, b, *rest):
        a, b = (
            interpreter.TensorHandle(_widen(x.data).reshape(x.data.shape), tl.float32) if x.dtype.scalar == tl.bfloat16 else x
            for x in (a, b)
        )
        return original_dot(self, a, b, *rest)

    builder.cast_impl = builder.create_fp_trunc = builder.create_fp_ext = cast
    builder.create_dot = dot


def run_launches(lowered: Lowered, tensors: dict[str, torch.Tensor], symbols: dict[str, int]) -> None:
    """What `driver.BoundProgram` does, in the interpreter."""
    kernels = {spec.key: spec for spec in lowered.kernels}
    for launch in lowered.launches:
        grid = tuple(evaluate(dim, symbols) for dim in launch.grid)
        if min(grid) <= 0:
            continue
        if launch.library == "matmul":
            x, weight, *bias, y = (tensors[arg.value] for arg in launch.args)
            y[: grid[0]] = torch.nn.functional.linear(x[: grid[0]], weight, *bias)
            continue
        spec = kernels[launch.kernel]
        values = []
        for arg in launch.args:
            if arg.kind == "tensor":
                values.append(tensors[arg.value] if arg.index is None else tensors[arg.value][arg.index])
            else:
                values.append(float(arg.value) if arg.kind == "fp32" else evaluate(arg.value, symbols))
        load_function(spec)[grid](**dict(zip(spec.signature, values, strict=True)), **spec.constexprs)


def run(op_name: str, named: dict, arch: str) -> list[torch.Tensor]:
    """The op's results by its lowering's launches."""
    op = OPS[op_name]
    outputs = as_list(op.fake(*(named[a.name] for a in op.overload._schema.arguments)))
    for y in outputs:
        y.fill_(torch.nan if y.is_floating_point() else -(1 << 30))
    lowered = lower_call(op, named, outputs, arch)
    decodes = num_decodes(named["query_start"]) if "query_start" in named else 0
    tensors = {name: named[name] for name in op.tensors} | {f"out{i}": y for i, y in enumerate(outputs)}
    for name, spec in lowered.workspaces.items():
        shape = [max(1, evaluate(dim, {"D": decodes})) for dim in spec.shape]
        tensors[name] = torch.full(shape, torch.nan, dtype=DTYPES[spec.dtype])
    run_launches(lowered, tensors, {"D": decodes})
    return outputs


def tolerance(op: str, dtype: str) -> dict[str, float]:
    """Attention rounds its probabilities to bfloat16 before the second product; everything else rounds once, at the end."""
    if dtype == "fp32":
        return {"rtol": 1e-5, "atol": 2e-6}
    return {"rtol": 2e-2, "atol": 4e-3} if op == "paged_attention" and dtype == "bf16" else {}


MIXED = BatchShape(query_lens=(1, 1, 1, 5, 40, 1, 33), kv_lens=(1, 32, 77, 5, 70, 9, 64), max_pages=3)
DECODES = BatchShape(query_lens=(1, 1), kv_lens=(300, 33), max_pages=10)
CONTEXT = BatchShape(query_lens=(3,), kv_lens=(130,), max_pages=5)
ONE = BatchShape(query_lens=(1,), kv_lens=(1,), max_pages=1)

GQA = ModelShape()
MHA = ModelShape(hidden=40, heads=2, kv_heads=2, head_dim=32, rotary_dim=32, qk_norm=True)
GPTJ = ModelShape(heads=2, kv_heads=2, head_dim=64, rotary_dim=16, interleaved=True, page_size=64)
ODD = ModelShape(heads=9, kv_heads=3, head_dim=64, rotary_dim=64, hidden=576)

BATCHED = ("prepare_step", "rope_kv_write", "paged_attention")
CASES = [(op, "gqa", GQA, "mixed", MIXED, dtype) for op in OPS if op not in ("attention", "linear") for dtype in ("fp32", "bf16")]
CASES += [(op, "mha", MHA, "decodes", DECODES, "fp16") for op in ("rms_norm", "add_layer_norm", "silu_mul_packed", "rope", *BATCHED)]
CASES += [(op, "gptj", GPTJ, name, batch, "fp32") for op in ("rope", *BATCHED) for name, batch in (("context", CONTEXT), ("one", ONE))]
CASES += [(op, "odd", ODD, "decodes", DECODES, "bf16") for op in BATCHED]
CASES += [("paged_attention", "odd", ODD, "mixed", MIXED, "bf16"), ("prepare_step", "gqa", GQA, "decodes", DECODES, "fp32")]


def main() -> None:
    make_interpreter_exact()
    for op, model_name, model, batch_name, batch, dtype in CASES:
        named = sample(op, model, batch, dtype)
        reference_arguments = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in named.items()}
        expected = as_list(OPS[op].reference(**reference_arguments))
        actual = run(op, named, "sm_90")
        expected += [reference_arguments[name] for name in OPS[op].mutates]
        actual += [named[name] for name in OPS[op].mutates]
        worst, failure = 0.0, ""
        for index, (want, got) in enumerate(zip(expected, actual, strict=True)):
            try:
                torch.testing.assert_close(got, want, equal_nan=True, **tolerance(op, dtype))
            except AssertionError as error:
                failure += f"result {index}: {error}".replace("\n", " ")
            worst = max(worst, float((got.double() - want.double()).abs().nan_to_num(0.0).max()))
        print(json.dumps({"case": f"{op}-{model_name}-{batch_name}-{dtype}", "worst": worst, "failure": failure}), flush=True)


if __name__ == "__main__":
    assert trtllm_kernels.ops is not None
    sys.exit(main())
