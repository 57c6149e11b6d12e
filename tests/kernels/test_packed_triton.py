"""Triton's kernels for packed weights: the product of few tokens of GPUs before Hopper, and what makes weights wide for more of them."""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from machine_code import disassembled
from packed_samples import SCHEMES, Packed, lowered_for, result_like, sample

from trtllm_kernels.compile.aot import compile_all, compile_kernel
from trtllm_kernels.dialect.expr import evaluate
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import KernelSpec, TensorSpec
from trtllm_kernels.lowering import lower, search_space
from trtllm_kernels.lowering.packed_triton import MMA_PADDED

SHARED = {"sm_80": 163 * 1024, "sm_89": 99 * 1024}


@pytest.fixture(scope="module")
def errors() -> Mapping[str, Mapping[str, float]]:
    """Of each kernel in the interpreter, by case, relative to the reference."""
    script = Path(__file__).with_name("interpreted_packed.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    found: dict[str, dict[str, float]] = {}
    for row in map(json.loads, run.stdout.splitlines()):
        found.setdefault(row["kernel"], {})[row["case"]] = row["error"]
    return found


def test_weights_made_wide_give_the_reference(errors: Mapping[str, Mapping[str, float]]) -> None:
    """In every format; weights are rounded once more, to the inputs' format."""
    widened = errors["widened"]
    assert {f"linear-{scheme.name}" for scheme in SCHEMES} < widened.keys()
    assert max(widened.values()) < 5e-3
    assert widened["linear-fp4-bf16-g32-uint8"] == 0, "powers of two are exact"


def test_products_of_few_tokens_give_the_reference(errors: Mapping[str, Mapping[str, float]]) -> None:
    """But for the order of sums, which moves a result by a unit in its last place; factors of codes, and nf4's numbers, are rounded to the
    inputs' format."""
    few = errors["few"]
    assert {f"linear-{scheme.name}" for scheme in SCHEMES} < {case.partition(" ")[0] for case in few}
    assert max(few.values()) < 4e-3
    exact = [case for case in few if "fp4-bf16" in case or "-w2 " in case or "fp8-g" in case]
    assert len(exact) > 12
    assert max(few[case] for case in exact) < 1e-4


def widening(schemes: Iterable[Packed], arch: str) -> list[KernelSpec]:
    kernels: list[KernelSpec] = []
    for scheme in schemes:
        named = sample("linear", scheme, 64, 128, 1)
        kernels += lowered_for("linear", named, result_like("linear", named), {"packed_to": 0, "large_to": 0}, arch).kernels
    return [kernel for kernel in kernels if kernel.function == "widen_weight"]


def test_what_makes_weights_wide_compiles_in_every_format() -> None:
    """The interpreter runs what the compiler refuses: types are found only when it compiles."""
    kernels = widening({(one.dtype, one.inputs): one for one in SCHEMES if one.inputs != "fp16"}.values(), "sm_90")
    assert len(kernels) == 6
    assert set(compile_all(kernels, "sm_90")) == {kernel.key for kernel in kernels}


def test_fp8_is_read_by_its_bits_where_triton_does_not_know_it() -> None:
    kernels = widening([scheme for scheme in SCHEMES if scheme.inputs == "bf16" and "fp8" in (scheme.dtype, scheme.scale)], "sm_80")
    assert len(kernels) == 2
    assert set(compile_all(kernels, "sm_80")) == {kernel.key for kernel in kernels}


def kernels_of(scheme: Packed, op: str, rows: int, columns: int, arch: str) -> dict[int, KernelSpec]:
    """Of the product of few tokens, by the tile's tokens."""
    specs = {"x": TensorSpec(("T", columns), scheme.inputs), "weight": TensorSpec((rows, columns), scheme.dtype)}
    if scheme.group:
        specs["group_scale"] = TensorSpec((columns // scheme.group, rows), scheme.scale)
    if scheme.zero:
        specs["weight_zero"] = TensorSpec((columns // scheme.group, rows), "bf16")
    if scheme.weight_scale:
        specs["weight_scale"] = TensorSpec((1,) if scheme.weight_scale == 1 else (rows, 1), "fp32")
    if scheme.inputs == "fp8":
        specs["x_scale"] = TensorSpec((1,), "fp32")
    y = TensorSpec(("T", rows // 2 if op == "gate_up_silu" else rows), "bf16")
    lowered = lower(op, [specs.get(name) for name in OP_SPECS[op].tensors], [y], {}, arch)
    return {spec.constexprs["TOKENS"]: spec for spec in lowered.kernels if spec.function == "packed_few"}


@pytest.mark.parametrize(
    ("arch", "scheme", "op", "tokens", "most"),
    [
        ("sm_80", SCHEMES[0], "linear", 16, 22),
        ("sm_80", SCHEMES[0], "gate_up_silu", 64, 55),
        ("sm_80", SCHEMES[6], "linear", 16, 55),
        ("sm_89", SCHEMES[4], "linear", 32, 42),
        ("sm_89", Packed("int4", "fp8"), "gate_up_silu", 64, 37),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_codes_go_from_wide_loads_to_tensor_cores_without_an_exchange(arch: str, scheme: Packed, op: str, tokens: int, most: int) -> None:
    """An 8b's down and gate_up. The loop has no shuffles, and stores nothing to shared memory but a step's scales; a warp of it
    issues at most so many instructions for 16 x 16 codes."""
    spec = kernels_of(scheme, op, *((4096, 14336) if op == "linear" else (28672, 4096)), arch)[tokens]
    cubin = compile_kernel(spec, arch)
    assert cubin.info.spill_bytes == 0
    assert 2 * cubin.info.shared_bytes <= SHARED[arch]
    assert 2 * 32 * cubin.info.num_warps * cubin.info.registers <= 65536
    ((_, code),) = disassembled([cubin.code], arch)
    products = [place for place, (_, opcode, _) in enumerate(code) if opcode.startswith("QMMA" if scheme.inputs == "fp8" else "HMMA")]
    first = max(place for place, (_, opcode, _) in enumerate(code[: products[0]]) if opcode.startswith("BAR"))
    loop = [opcode for _, opcode, _ in code[first : products[-1]]]
    assert not [opcode for opcode in loop if opcode.startswith("SHFL")]
    assert sum(opcode.startswith("STS") for opcode in loop) <= 1
    assert any(opcode.startswith("LDS.128") for opcode in loop)
    assert any(opcode.startswith("LDGSTS.E.BYPASS.128") for _, opcode, _ in code)
    fragments = spec.constexprs["BLOCK_N"] * spec.constexprs["BLOCK_K"] / 256 / spec.num_warps
    assert len(loop) < most * fragments


O_PROJECTION = [TensorSpec(("T", 4096), "bf16"), TensorSpec((4096, 4096), "int4"), *[None] * 4, TensorSpec((32, 4096), "bf16")]
RESULT = [TensorSpec(("T", 4096), "bf16")]


@pytest.mark.parametrize("most", [0, 20, 64, 256])
def test_before_hopper_each_number_of_tokens_has_one_routine(most: int) -> None:
    """In tiles of up to 64 tokens, of which more take several; the sums of parts follow where K is split; the library beyond."""
    lowered = lower("linear", O_PROJECTION, RESULT, {}, "sm_80", tactic={"mma_to": most})
    kernels = {spec.key: spec for spec in lowered.kernels}
    for tokens in (0, 1, 16, 17, 20, 21, 33, 64, 65, 129, 256, 257, 3000):
        running = [(one, kernels.get(one.kernel)) for one in lowered.launches if min(evaluate(dim, {"T": tokens}) for dim in one.grid) > 0]
        names = [spec.function if spec else one.library for one, spec in running]
        if not 0 < tokens <= most:
            assert names == ([] if tokens == 0 else ["widen_weight", "gemv" if tokens == 1 else "matmul"])
            continue
        assert names == ["packed_few", "skinny_sum"]
        (launch, spec), (_, added) = running
        assert spec is not None
        assert added is not None
        blocks, _, parts = (evaluate(dim, {"T": tokens}) for dim in launch.grid)
        tile = spec.constexprs["TOKENS"]
        assert (blocks, min(tile, 64)) == (-(-tokens // 64), next(size for size in (16, 32, 64) if tokens <= size or size == 64))
        assert parts == spec.constexprs["SPLITS"] == added.constexprs["SPLITS"]
        assert lowered.workspaces["out0:parts"].shape[0] >= parts * tokens
        assert parts * spec.constexprs["BLOCK_K"] <= 4096


def test_tuning_tries_tiles_of_it_before_hopper_alone() -> None:
    names = {arch: [one.name for one in search_space("linear", O_PROJECTION, RESULT, {}, arch)] for arch in ("sm_80", "sm_90")}
    assert names["sm_80"] == [*(f"mma {padded}" for padded in MMA_PADDED), "mma to"]
    assert not [name for name in names["sm_90"] if name.startswith("mma")]
