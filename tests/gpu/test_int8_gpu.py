"""Scales of rows on the GPU: products of int8, whose sums are exact, and of fp8; and rows quantized in the kernel that makes them.

Sums of int8 products are whole numbers, so a kernel's result may differ from the exact one only by the roundings after the sum: one unit of
bf16, whatever the shape, the number of tokens and the routine.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from compiled_once import compiled_once
from torch.nn import functional

from samples import BatchShape, sample
from trtllm_kernels.compile.cubin import Cubin
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.model_shape import ModelShape
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.dialect.types import Lowered, TensorSpec
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.launch.torch_ops import as_list
from trtllm_kernels.lowering import lower
from trtllm_kernels.lowering.tile_gemm import SIZES, width_of
from trtllm_kernels.references import OPS
from trtllm_kernels.references.quantize import FP8_MAX

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("int8"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

TOKENS = (1, 2, 16, 17, 33, 64, 65, 97, 128, 129, 200, 256, 300, 512, 700, 1100, 2300)
MOST, ROOM = max(TOKENS), 128


@dataclass(frozen=True)
class Product:
    op: str
    rows: int
    columns: int
    bias: bool = False
    residual: bool = False
    tactic: tuple[tuple[str, int], ...] = ()
    dtype: str = "int8"
    to_fp8: bool = False
    by_row: bool = True

    @property
    def tokens(self) -> tuple[int, ...]:
        """With a scale for each operand: those that have tiles of ours. More are Triton's, which writes whole tiles."""
        return TOKENS if self.by_row else tuple(tokens for tokens in TOKENS if tokens <= SIZES[-1])

    def lowered(self, arch: str, in_place: bool = False) -> Lowered:
        n, k = self.rows, self.columns
        bias = TensorSpec((n,), "bf16") if self.bias else None
        one = TensorSpec((1,), "fp32")
        scales = (TensorSpec(("T", 1), "fp32"), TensorSpec((n, 1), "fp32")) if self.by_row else (one, one)
        operands = [TensorSpec(("T", k), self.dtype), TensorSpec((n, k), self.dtype)]
        inputs = [*operands, *scales] if self.op == "gate_up_silu" else [*operands, bias, *scales]
        if self.residual:
            inputs.append(TensorSpec(("T", n), "bf16"))
        if self.to_fp8:
            inputs.append(TensorSpec((1,), "fp32"))
        y = TensorSpec(("T", n // 2 if self.op == "gate_up_silu" else n), "fp8" if self.to_fp8 else "bf16")
        return lower(self.op, inputs, [y], {}, arch, tactic=dict(self.tactic) or None, in_place=in_place)


def tactic(**values: int) -> tuple[tuple[str, int], ...]:
    return tuple(values.items())


def widths(width: int) -> tuple[tuple[str, int], ...]:
    return tactic(**{f"width_{size}": width for size in (256, 512, 1024, 2048)})


def tiles(width: int) -> tuple[tuple[str, int], ...]:
    return tactic(**{width_of(size): width for size in SIZES})


PRODUCTS = {
    "down of 8b": Product("linear", 4096, 14336, residual=True),
    "qkv of 8b": Product("linear", 6144, 4096),
    "ends within tiles": Product("linear", 720, 592, bias=True, residual=True),
    "ends within tiles of 256": Product("linear", 720, 592, bias=True, residual=True, tactic=widths(256)),
    "ends within tiles of 64": Product("linear", 720, 592, bias=True, residual=True, tactic=widths(64)),
    "in Triton": Product("linear", 720, 592, bias=True, residual=True, tactic=tactic(row_scaled_cuda=0)),
    "rows TMA does not take": Product("linear", 100, 520, bias=True, residual=True),
    "one step of K": Product("linear", 512, 128),
    "gate_up": Product("gate_up_silu", 3072, 576),
    "gate_up in tiles of 64": Product("gate_up_silu", 3072, 576, tactic=widths(64)),
    "gelu": Product("linear_gelu", 1536, 640, bias=True),
    "without GEMV": Product("linear", 1536, 640, tactic=tactic(gemv=0)),
    "fp8": Product("linear", 720, 592, bias=True, residual=True, dtype="fp8"),
    "fp8 by rows in tiles of 256": Product("linear", 720, 592, bias=True, residual=True, tactic=widths(256), dtype="fp8"),
    "fp8 in Triton": Product("linear", 720, 592, bias=True, residual=True, tactic=tactic(row_scaled_cuda=0), dtype="fp8"),
    "fp8 gate_up": Product("gate_up_silu", 3072, 576, dtype="fp8"),
    "fp8 gate_up in tiles": Product("gate_up_silu", 3072, 640, tactic=tiles(224), dtype="fp8", to_fp8=True, by_row=False),
    "fp8 gelu in tiles": Product("linear_gelu", 1536, 640, bias=True, tactic=tiles(192), dtype="fp8", to_fp8=True, by_row=False),
    "gate_up to fp8": Product("gate_up_silu", 3072, 576, dtype="fp8", to_fp8=True),
    "gelu to fp8": Product("linear_gelu", 1536, 640, bias=True, to_fp8=True),
}


@pytest.fixture(scope="module")
def arch() -> str:
    return "sm_{}{}".format(*torch.cuda.get_device_capability())


@pytest.fixture(scope="module")
def cubins(arch: str) -> dict[str, Cubin]:
    """All kernels of this file's products, compiled together."""
    return compiled_once([kernel for product in PRODUCTS.values() for kernel in product.lowered(arch).kernels], arch)


def operands(product: Product) -> dict[str, torch.Tensor]:
    """With rows behind those of the most tokens, as an engine's buffers have."""
    generator = torch.Generator("cuda").manual_seed(product.rows)
    n, k, tokens = product.rows, product.columns, MOST + ROOM

    def codes(rows: int) -> torch.Tensor:
        if product.dtype == "fp8":
            return (torch.randn(rows, k, device="cuda", generator=generator) * 73).clamp(-448, 448).to(torch.float8_e4m3fn)
        return torch.randint(-127, 128, (rows, k), dtype=torch.int8, device="cuda", generator=generator)

    def scales(rows: int) -> torch.Tensor:
        return (torch.rand(rows, 1, device="cuda", generator=generator) + 0.5) * (k**-0.25 / 73)

    drawn = {"x": codes(tokens), "weight": codes(n), "x_scale": scales(tokens), "weight_scale": scales(n)}
    if not product.by_row:
        drawn |= {name: drawn[name][0].clone() for name in ("x_scale", "weight_scale")}
    if product.to_fp8:
        drawn["out_scale"] = torch.tensor([0.03125], device="cuda")
    if product.bias:
        drawn["bias"] = torch.randn(n, device="cuda", generator=generator).bfloat16()
    if product.residual:
        drawn["residual"] = torch.randn(tokens, n, device="cuda", generator=generator).bfloat16()
    return drawn


def exact(product: Product, drawn: dict[str, torch.Tensor], tokens: int) -> torch.Tensor:
    """fp32 results of exact sums, before they are rounded; those that fp8 cannot hold saturate."""
    sums = drawn["x"][:tokens].double() @ drawn["weight"].double().T
    y = sums.float() * (drawn["weight_scale"].view(1, -1) * drawn["x_scale"].view(-1, 1)[:tokens])
    if product.bias:
        y += drawn["bias"].float()
    if product.residual:
        y += drawn["residual"][:tokens].float()
    if product.op == "gate_up_silu":
        y = functional.silu(y[:, 0::2]) * y[:, 1::2]
    elif product.op == "linear_gelu":
        y = functional.gelu(y, approximate="tanh")
    largest = FP8_MAX * drawn["out_scale"] if product.to_fp8 else torch.inf
    return y.clamp(-largest, largest)


def bound(product: Product, lowered: Lowered, memory: dict[str, torch.Tensor], cubins: dict[str, Cubin]) -> BoundProgram:
    for name, spec in lowered.workspaces.items():
        shape = [max(1, evaluate(dim, {"T": MOST})) for dim in spec.shape]
        memory[name] = torch.empty(shape, dtype=DTYPES[spec.dtype], device="cuda")
    return BoundProgram([lowered], memory.__getitem__, cubins)


def run(program: BoundProgram, tokens: int) -> None:
    program.set_symbols(T=tokens, R=0, D=0, S=0, C=0)
    program.run()


def roundings(product: Product, want: torch.Tensor) -> torch.Tensor:
    """Half a unit of the rounding to bf16; the cancellation of terms of a few units; the exponential's approximation."""
    linear = product.op == "linear"
    return want.abs() * 2**-8 * (1.01 if linear else 1.05) + 4e-6 * (1 if linear else 10)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_exact_but_for_their_last_roundings(name: str, arch: str, cubins: dict[str, Cubin]) -> None:
    product = PRODUCTS[name]
    lowered, drawn = product.lowered(arch), operands(product)
    width = product.rows // 2 if product.op == "gate_up_silu" else product.rows
    y = torch.empty(MOST + ROOM, width, dtype=torch.float8_e4m3fn if product.to_fp8 else torch.bfloat16, device="cuda")
    program = bound(product, lowered, {**drawn, "out0": y}, cubins)
    for tokens in product.tokens:
        results = []
        for _ in range(2):
            y.view(torch.uint8).fill_(0xFF)
            run(program, tokens)
            results.append(y[:tokens].float() * drawn.get("out_scale", 1.0))
        want = exact(product, drawn, tokens)
        off = (results[0] - want).abs()
        assert not results[0].isnan().any(), f"{tokens} tokens: some results are not written"
        if product.dtype == "fp8" or product.to_fp8:
            error = (off.norm(dim=1) / want.norm(dim=1)).max()
            assert error < (0.04 if product.to_fp8 else 0.005), f"{tokens} tokens: a row is off by {error:.3g} of its norm"
        else:
            slack = roundings(product, want)
            assert (off <= slack).all(), (
                f"{tokens} tokens: {int((off > slack).sum())} of {off.numel()} results are off by up to {off.max():.3g}"
            )
        assert torch.equal(*results), f"{tokens} tokens: two runs differ"
        assert y[tokens:].float().isnan().all(), f"{tokens} tokens: rows behind them are written"


@pytest.mark.parametrize("name", ["down of 8b", "ends within tiles", "rows TMA does not take"])
def test_a_residual_may_be_the_results_memory(name: str, arch: str, cubins: dict[str, Cubin]) -> None:
    product = PRODUCTS[name]
    drawn = operands(product)
    y, taken_over = torch.empty_like(drawn["residual"]), drawn["residual"].clone()
    apart = bound(product, product.lowered(arch), {**drawn, "out0": y}, cubins)
    in_place = bound(product, product.lowered(arch, in_place=True), {**drawn, "residual": taken_over, "out0": taken_over}, cubins)
    for tokens in (1, 8, 128, 300, 2300):
        taken_over.copy_(drawn["residual"])
        run(apart, tokens)
        run(in_place, tokens)
        assert torch.equal(y[:tokens], taken_over[:tokens])
        assert torch.equal(taken_over[tokens:], drawn["residual"][tokens:])


BY_ROW = [name for name in OPS if name.endswith("quantize_rows")]


@pytest.mark.parametrize("tokens", [1, 7, 300])
@pytest.mark.parametrize("op", BY_ROW)
def test_rows_are_quantized_as_the_reference_does(op: str, tokens: int) -> None:
    for model in (ModelShape(4096, 14336), ModelShape(576, 1536)):
        named = sample(op, model, BatchShape((tokens,), (tokens,)), "bf16") | {"dtype": "int8"}
        expected = as_list(OPS[op].reference(**named))
        found = as_list(OPS[op].overload(**{k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in named.items()}))
        steps = (found[0].cpu().int() - expected[0].int()).abs()
        assert steps.max() <= 1
        assert (steps > 0).float().mean() < 2e-3
        torch.testing.assert_close(found[1].cpu(), expected[1], rtol=1e-5, atol=0)
        for ours, want in zip(found[2:], expected[2:], strict=True):
            assert torch.equal(ours.cpu(), want)
