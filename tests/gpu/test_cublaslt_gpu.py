"""cuBLASLt through our own calls, on the GPU: every type and summand against fp64, every proposal, graphs."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.specs import dtype_name
from trtllm_kernels.dialect.types import Arg, Launch, Lowered, TensorSpec
from trtllm_kernels.launch import cublaslt
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.lowering import lower
from trtllm_kernels.references.quantize import FP8, FP8_MAX, finish

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

ROWS = (1, 2, 7, 432, 2304)
N, K = 1024, 4096
TOLERANCE = {torch.float32: (2e-6, 1e-4), torch.bfloat16: (2**-8, 8e-3), torch.float16: (2**-11, 4e-3), FP8: (2**-8, 2e-2)}
"""(of the result: one rounding; of the sum: fast accumulation, and parts of a split K that meet in the result's type)"""

Tensors = dict[str, torch.Tensor]


def draw(dtype: torch.dtype, rows: int = max(ROWS), n: int = N, k: int = K) -> Tensors:
    """x, w, scales p q (fp8), bias b, residual r, result y; products have a spread of about 1."""
    torch.manual_seed(0)
    wide = torch.bfloat16 if dtype == FP8 else dtype
    x, w = torch.randn(rows, k, device="cuda"), torch.randn(n, k, device="cuda") / k**0.5
    found: Tensors = {"b": torch.randn(n, device="cuda").to(wide), "r": torch.randn(rows, n, device="cuda").to(wide)}
    found["y"] = torch.full((rows, n), torch.nan, device="cuda", dtype=wide)
    if dtype != FP8:
        return found | {"x": x.to(dtype), "w": w.to(dtype)}
    scales = {name: (value.abs().max() / FP8_MAX).reshape(1) for name, value in (("p", x), ("q", w))}
    return found | scales | {"x": finish(x, FP8, scales["p"]), "w": finish(w, FP8, scales["q"])}


def launch(tensors: Tensors, bias: bool, residual: bool, numbers: tuple[int, ...] = ()) -> Launch:
    names = ["x", "w", *(["p", "q"] if "p" in tensors else []), *(["b"] if bias else []), *(["r"] if residual else []), "y"]
    n, k = tensors["w"].shape
    args = (*(Arg("tensor", name) for name in names), *(Arg("i32", number) for number in numbers))
    return Launch(library="scaled_matmul" if "p" in tensors else "matmul", grid=("T", n, k), args=args)


def bind(tensors: Tensors, *launches: Launch) -> BoundProgram:
    return BoundProgram([Lowered(launches)], tensors.__getitem__, {})


def size(program: BoundProgram, rows: int) -> None:
    program.set_symbols(T=rows, R=1, D=0, S=rows, C=0)


def exact(t: Tensors, bias: bool, residual: bool) -> torch.Tensor:
    total = t["x"].double() @ t["w"].double().T
    total = total * t["p"].double() * t["q"].double() if "p" in t else total
    total = total + t["b"].double() if bias else total
    return total + t["r"].double() if residual else total


def check(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype, roundings: int = 1) -> None:
    relative, absolute = TOLERANCE[dtype]
    relative, absolute = relative * roundings, absolute * roundings
    torch.testing.assert_close(got.double(), want, rtol=relative, atol=absolute)


def usable(dtype: torch.dtype) -> None:
    if dtype == FP8 and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 needs sm_89")


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("bias", "residual"), list(product((False, True), repeat=2)))
def test_product_and_summands_against_fp64(dtype: torch.dtype, bias: bool, residual: bool) -> None:
    usable(dtype)
    tensors = draw(dtype)
    want = exact(tensors, bias, residual)
    program = bind(tensors, launch(tensors, bias, residual))
    for rows in (*ROWS, 7):
        tensors["y"].fill_(torch.nan)
        size(program, rows)
        program.run()
        check(tensors["y"][:rows], want[:rows], dtype)
        assert tensors["y"][rows:].isnan().all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_in_the_residuals_memory(dtype: torch.dtype) -> None:
    """Where parts of a split K meet in that memory, they are rounded once more."""
    usable(dtype)
    for rows in ROWS:
        tensors = draw(dtype)
        want, before = exact(tensors, True, True), tensors["r"].clone()
        program = bind({**tensors, "y": tensors["r"]}, launch(tensors, True, True))
        size(program, rows)
        program.run()
        check(tensors["r"][:rows], want[:rows], dtype, roundings=2)
        assert torch.equal(tensors["r"][rows:], before[rows:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=str)
def test_every_proposal_computes_the_same_also_for_fewer_rows(dtype: torch.dtype) -> None:
    usable(dtype)
    tensors = draw(dtype, 512)
    want = exact(tensors, False, True)
    for rank in range(8):
        program = bind(tensors, launch(tensors, False, True, (rank, 512, cublaslt.library().version)))
        for rows in (512, 432, 257):
            tensors["y"].fill_(torch.nan)
            size(program, rows)
            program.run()
            check(tensors["y"][:rows], want[:rows], dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=str)
def test_one_rounding_is_nearer_than_two(dtype: torch.dtype) -> None:
    usable(dtype)
    tensors = draw(dtype, 432)
    want = exact(tensors, False, True)
    errors = []
    for residual in (True, False):
        program = bind(tensors, launch(tensors, False, residual))
        size(program, 432)
        program.run()
        total = tensors["y"] if residual else tensors["y"] + tensors["r"]
        errors.append(float((total.double() - want).square().mean().sqrt()))
    assert errors[0] < errors[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, FP8], ids=str)
def test_captured_product_replays_after_other_sizes_were_run(dtype: torch.dtype) -> None:
    usable(dtype)
    tensors = draw(dtype)
    program = bind(tensors, launch(tensors, True, True))
    size(program, 64)
    program.run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        program.run()
    size(program, 2304)
    program.run()
    tensors["x"].copy_(tensors["x"].flip(0))
    tensors["r"].normal_()
    tensors["y"].fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    check(tensors["y"][:64], exact(tensors, True, True)[:64], dtype)
    assert tensors["y"][64:].isnan().all()


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8"])
def test_an_op_of_few_tokens_takes_the_residual_in_its_own_kernel(precision: str) -> None:
    """And in place, as engines run it: one token, two, whose K is divided by default, as that of more, and 65 by the library."""
    from trtllm_kernels.compile.aot import compile_all

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": FP8}[precision]
    usable(dtype)
    major, minor = torch.cuda.get_device_capability()
    arch = f"sm_{major}{minor}"
    for rows, tactic in ((1, None), (2, None), (64, None), (65, None), (65, {"skinny_to": 64}), (128, None)):
        tensors = draw(dtype, rows)
        want = exact(tensors, True, True)
        names = ["x", "w", "b", "p", "q", "r"]
        specs = [TensorSpec(tuple(tensors[name].shape), dtype_name(tensors[name].dtype)) if name in tensors else None for name in names]
        specs[0], specs[5] = replace(specs[0], shape=("T", K)), replace(specs[5], shape=("T", N))
        lowered = lower("linear", specs, [specs[5]], {}, arch, tactic=tactic, input_names=names, output_names=["y"], in_place=True)
        memory = {**tensors, "y": tensors["r"]}
        for name, spec in lowered.workspaces.items():
            memory[name] = torch.full([evaluate(dim, {"T": rows}) for dim in spec.shape], torch.nan, device="cuda")
        program = BoundProgram([lowered], memory.__getitem__, compile_all(lowered.kernels, arch))
        size(program, rows)
        program.run()
        check(tensors["r"], want, dtype)
