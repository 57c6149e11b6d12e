"""fp8 and int8 with a scale per row: the reference is exact about what it says, kernels agree with it, and launches carry the scales."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samples import BatchShape, fp8_sample
from trtllm_kernels.compile.aot import compile_kernel
from trtllm_kernels.compile.catalogue import MODELS, ops_of
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.lowering import has_kernels, lower
from trtllm_kernels.lowering.skinny_gemm import IN_TRITON
from trtllm_kernels.references.quantize import FP8, FP8_MAX

OPS = torch.ops.trtllm


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(-30, 30), st.integers(0, 1000))
def test_each_row_is_within_half_a_step_of_its_own_scale(rows: int, columns: int, power: int, seed: int) -> None:
    """Whatever a row's magnitude: its largest value becomes 448, none is clipped, and rows do not touch each other."""
    torch.manual_seed(seed)
    x = torch.randn(rows, columns) * 2.0 ** (power * torch.arange(rows))[:, None].clamp(-60, 60)
    codes, scales = OPS.quantize_rows(x)
    assert (codes.dtype, scales.dtype, scales.shape) == (FP8, torch.float32, (rows, 1))
    large = x.abs().amax(1) > 1e-6
    assert torch.equal(codes.float().abs().amax(1)[large], torch.full((int(large.sum()),), FP8_MAX))
    back = codes.float() * scales
    assert ((back - x).abs() <= x.abs() / 16 + scales * 2.0**-10 * 1.001).all()
    for row in range(rows):
        alone = OPS.quantize_rows(x[row : row + 1])
        assert torch.equal(alone[0].view(torch.uint8), codes[row : row + 1].view(torch.uint8))
        assert torch.equal(alone[1], scales[row : row + 1])


def test_a_row_of_zeros_stays_zeros() -> None:
    codes, scales = OPS.quantize_rows(torch.zeros(2, 8))
    assert codes.float().abs().max() == 0
    assert (scales > 0).all()


def test_a_product_is_that_of_the_values_the_codes_stand_for() -> None:
    named = fp8_sample("linear", ModelShape(), BatchShape((6,), (6,)), by_row=True)
    x, weight = (named[n].double() * named[f"{n}_scale"].double() for n in ("x", "weight"))
    expected = x @ weight.T + named["bias"].double() + named["residual"].double()
    torch.testing.assert_close(OPS.linear(**named).double(), expected, rtol=2**-8, atol=1e-5)


def test_scales_of_rows_reach_our_kernels() -> None:
    x, weight, y = TensorSpec(("T", 4096), "fp8"), TensorSpec((1024, 4096), "fp8"), TensorSpec(("T", 1024), "bf16")
    scales = TensorSpec(("T", 1), "fp32"), TensorSpec((1024, 1), "fp32")
    in_both = {"skinny16_blocks": 0, "skinny16_splits": 2, "skinny64_blocks": 0}
    lowered = lower("linear", [x, weight, None, *scales], [y], {}, "sm_90", tactic=in_both)
    scaling = {"gemv", "skinny_linear", "skinny_sum", "skinny_gemm"}
    assert {kernel.function for kernel in lowered.kernels if kernel.constexprs.get("SCALED_ROWS")} == scaling
    assert lowered.launches[0].kernel == lowered.kernels[0].key
    many = [launch for launch in lowered.launches if "row_scaled_gemm" in launch.kernel]
    assert many[-1] == lowered.launches[-1]
    for launch in many:
        assert {"x_scale", "weight_scale"} <= {arg.value for arg in launch.args}
        constexprs = next(kernel.constexprs for kernel in lowered.kernels if kernel.key == launch.kernel)
        assert (constexprs["FP8"], constexprs["INT8"]) == (True, False)
    tensor = TensorSpec((1,), "fp32")
    by_tensor = lower("linear", [x, weight, None, tensor, tensor], [y], {}, "sm_90", tactic=in_both).kernels
    assert {kernel.function for kernel in by_tensor if kernel.constexprs.get("SCALED")} == scaling
    assert not any(kernel.constexprs.get("SCALED_ROWS") for kernel in by_tensor)


@pytest.mark.parametrize("arch", ["sm_89", "sm_90"])
def test_kernels_compile_without_spills(arch: str) -> None:
    by_triton = {f"skinny{padded}_{name}": value for padded in IN_TRITON for name, value in {"blocks": 0, "splits": 2}.items()}
    by_triton["gemv"] = 1
    specs = {
        spec.key: spec
        for op in ops_of(MODELS["llama-3.1-8b"], "fp8")
        if has_kernels(op.op, arch)
        for tactic in ((None, by_triton) if op.op == "linear" else (None,))
        for spec in lower(op.op, op.inputs, op.outputs, op.attrs, arch, tactic=tactic).kernels
        if op.op.endswith("quantize_rows") or (OP_SPECS[op.op].kind == "gemm" and spec.constexprs.get("SCALED_ROWS"))
    }
    few = {"skinny_gemm", "skinny_sum"} if arch == "sm_90" else set()
    by_row = {name for name in OP_SPECS if name.endswith("quantize_rows")}
    assert {spec.function for spec in specs.values()} == {*by_row, "gemv", *few}
    for spec in specs.values():
        info = compile_kernel(spec, arch).info
        assert info.spill_bytes == 0
        assert info.registers <= 128


def test_kernels_equal_their_references_in_the_interpreter() -> None:
    script = Path(__file__).with_name("interpreted_rowwise.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == 69
    assert not [r for r in results if r["failure"]]
