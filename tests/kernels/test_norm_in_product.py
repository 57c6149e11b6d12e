"""Norms that products of few tokens take themselves: results, and which launches run at how many tokens."""

import pytest
import torch
from emulated import emulate, running
from normed_samples import normed, normed_rows, product_of

from samples import code_steps
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.lowering import describe, norm_in_product

CASES = {
    # (op, dtype, rows, columns, tokens, tile)
    "one": ("linear", "fp8", 96, 1664, 1, {"blocks": 2, "height": 48, "parts": 2}),
    "gated": ("gate_up_silu", "fp8", 112, 2304, 3, {"blocks": 1, "height": 112, "parts": 1}),
    # the last step of K is a part of one, and the second block has fewer
    "eight": ("linear", "bf16", 64, 1432, 8, {"blocks": 1, "height": 64, "parts": 2}),
    "long": ("gate_up_silu", "fp16", 128, 4120, 5, {"blocks": 1, "height": 64, "parts": 1}),
}


def tile(**values: int) -> dict[str, int]:
    return {"gemv": 0} | {f"skinny8_{name}": value for name, value in values.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_product_that_normalizes_its_rows_computes_what_the_two_ops_do(name: str) -> None:
    """By the source that is compiled for the GPU. What the norm would have left is NaN, and read by nothing."""
    op, dtype, rows, columns, tokens, values = CASES[name]
    both = normed(op, product_of(op, dtype, rows, columns), normed_rows(tokens, columns, dtype), tile(**values))
    left = torch.full((tokens, columns * both.named["x"].element_size()), 0x7F, dtype=torch.uint8).view(both.named["x"].dtype)
    y = torch.full_like(both.expected.float(), torch.nan).to(both.expected.dtype)
    emulate(both.product, both.named | {"x": left}, y, tokens)
    error = float((y.float() - both.expected.float()).norm() / both.expected.float().norm())
    assert error < (2e-2 if "out_scale" in both.named else 2e-3)


def test_what_a_product_multiplies_is_the_norms_result_but_for_ties() -> None:
    """Told by a product with the unit matrix: x may be a code apart where the order of a sum decides a rounding."""
    columns, tokens = 384, 8
    unit = {"weight": torch.eye(columns).to(torch.float8_e4m3fn), "x_scale": torch.ones(1), "weight_scale": torch.ones(1)}
    both = normed("linear", unit, normed_rows(tokens, columns, "fp8"), tile(blocks=3, height=64, parts=1))
    y = torch.zeros_like(both.expected)
    emulate(both.product, both.named, y, tokens)
    steps = code_steps(y.to(torch.float8_e4m3fn), both.named["x"])
    assert int(steps.max()) <= 1
    assert int((steps > 0).sum()) <= 4


def test_a_norm_is_launched_in_steps_whose_product_does_not_take_it() -> None:
    both = normed("linear", product_of("linear", "fp8", 64, 512), normed_rows(1, 512, "fp8"), tile() | {"norms_to": 3})
    (norm,) = both.norm.launches
    for tokens in (1, 2, 3, 4, 8, 9, 200):
        rows = evaluate(norm.grid[0], {"T": tokens})
        if tokens <= 3:
            assert rows <= 0
        else:
            assert rows == tokens
        if tokens <= 8:
            launch, spec = running(both.product, tokens)
            assert spec.constexprs["NORMED"] == (tokens <= 3)
            assert ("rows" in [arg.value for arg in launch.args]) == (tokens <= 3)


@pytest.mark.parametrize(
    ("tactic", "norm"),
    [
        ({"norms_to": 0}, {}),
        ({"gemv": 1}, {}),
        ({"skinny_to": 0}, {}),
        ({"skinny8_blocks": 0}, {}),
        ({}, {"weight": 128}),
        ({}, {"output": "other"}),
        ({}, {"arch": "sm_89"}),
    ],
)
def test_a_norm_stays_where_the_product_cannot_take_it(tactic: dict[str, int], norm: dict[str, int | str]) -> None:
    """Of groups of a row, of another product, for one token by GEMV, by the library, by Triton, before Hopper."""
    arch, scale = str(norm.get("arch", "sm_90")), TensorSpec((1,), "fp32")
    rows, x, weight = TensorSpec(("T", 512), "bf16"), TensorSpec(("T", 512), "fp8"), TensorSpec((int(norm.get("weight", 512)),), "bf16")
    first = describe("rms_norm", [rows, weight, scale], [x], {"eps": 1e-5}, arch, tactic={}, output_names=[str(norm.get("output", "x"))])
    operands = [x, TensorSpec((6144, 512), "fp8"), None, scale, scale]
    second = describe("linear", operands, [TensorSpec(("T", 6144), "bf16")], {}, arch, tactic=tactic)
    assert norm_in_product(first, second) is None
