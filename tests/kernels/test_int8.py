"""int8 GEMMs: one routine for each number of tokens, tiles within the chip, and machine code that uses its int8 instructions."""

from __future__ import annotations

import re
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from machine_code import opcodes

from trtllm_kernels.compile import nvrtc
from trtllm_kernels.compile.aot import compile_kernel
from trtllm_kernels.compile.catalogue import MODELS, ops_of
from trtllm_kernels.dialect.expr import ceil_div, evaluate
from trtllm_kernels.dialect.types import KernelSpec, Lowered, TensorSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering import lower, search_space
from trtllm_kernels.lowering.row_scaled import SIZES, TRIED, WIDTHS

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}


def linear(rows: int, columns: int, arch: str = "sm_90", tokens: int | str = "T", added: bool = False, **tactic: int) -> Lowered:
    inputs, outputs = _operands(rows, columns, tokens, added)
    return lower("linear", inputs, outputs, {}, arch, tactic=tactic or None)


def _operands(rows: int, columns: int, tokens: int | str, added: bool = False) -> tuple[list[TensorSpec | None], list[TensorSpec]]:
    y = TensorSpec((tokens, rows), "bf16")
    bias = TensorSpec((rows,), "bf16") if added else None
    scales = TensorSpec((tokens, 1), "fp32"), TensorSpec((rows, 1), "fp32")
    return [TensorSpec((tokens, columns), "int8"), TensorSpec((rows, columns), "int8"), bias, *scales, y if added else None], [y]


def running(lowered: Lowered, tokens: int) -> list[KernelSpec]:
    kernels = {spec.key: spec for spec in lowered.kernels}
    assert not any(launch.library for launch in lowered.launches)
    return [kernels[one.kernel] for one in lowered.launches if min(evaluate(dim, {"T": tokens}) for dim in one.grid) > 0]


@given(
    tokens=st.integers(0, 5000),
    shape=st.sampled_from(sorted(SHAPES)),
    widths=st.tuples(*[st.sampled_from(WIDTHS)] * len(SIZES)),
    most=st.integers(0, 150),
    gemv=st.sampled_from([0, 1]),
)
def test_each_number_of_tokens_has_one_routine_and_the_width_of_its_size(
    tokens: int, shape: str, widths: tuple[int, ...], most: int, gemv: int
) -> None:
    chosen = {f"width_{size}": width for size, width in zip(SIZES, widths, strict=True)}
    lowered = linear(*SHAPES[shape], skinny_to=most, gemv=gemv, **chosen)
    found = [spec.function for spec in running(lowered, tokens)]
    fixed = linear(*SHAPES[shape], tokens=tokens, skinny_to=most, gemv=gemv, **chosen)
    assert [spec.function for spec in running(fixed, tokens)] == found
    if tokens == 0:
        assert found == []
    elif tokens == 1 and gemv:
        assert found == ["gemv"]
    elif tokens <= min(most, 128):
        assert found == ["skinny_gemm"]
    else:
        (spec,) = running(lowered, tokens)
        width = next((width for size, width in zip(SIZES, widths, strict=True) if tokens <= size), widths[-1])
        assert (spec.function, spec.constexprs["COLUMNS"]) == ("row_scaled_gemm", width)


def test_tiles_are_as_wide_as_fills_the_chip() -> None:
    """O and down have 64 tiles of 128 x 128 for 256 tokens: half of those of 64 columns would leave no SM idle."""
    widths = {name: [running(linear(*SHAPES[name]), size)[0].constexprs["COLUMNS"] for size in SIZES] for name in SHAPES}
    assert widths == {
        "qkv": [128, 64, 128, 256],
        "o": [64, 128, 256, 256],
        "gate_up": [256, 128, 256, 256],
        "down": [64, 128, 256, 256],
    }
    for name, (rows, columns) in SHAPES.items():
        for tokens in (129, 700, 4000):
            launches = (one for one in linear(rows, columns).launches if "row_scaled" in one.kernel)
            launch = next(one for one in launches if evaluate(one.grid[0], {"T": tokens}))
            width = next(arg.box[0] for arg in launch.args if arg.value == "weight" and arg.box)
            assert evaluate(launch.grid[0], {"T": tokens}) == min(132, ceil_div(tokens, 128) * ceil_div(rows, width)), name


def test_before_hopper_and_where_tma_does_not_take_rows_it_is_triton_with_pointers() -> None:
    for lowered, one_token in (
        (linear(4096, 4096, "sm_80"), "gemv"),
        (linear(4096, 4096, "sm_89"), "gemv"),
        (linear(4096, 4104), "row_scaled_blocks"),
        (linear(50, 4104), "row_scaled_blocks"),
    ):
        assert [spec.function for spec in running(lowered, 1)] == [one_token]
        assert [(s.function, s.constexprs["BLOCK_M"]) for s in running(lowered, 64)] == [("row_scaled_blocks", 64)]
        assert [(s.function, s.constexprs["BLOCK_M"]) for s in running(lowered, 65)] == [("row_scaled_blocks", 128)]


@pytest.mark.parametrize(("arch", "sms"), [("sm_80", 108), ("sm_89", 142)])
def test_before_hopper_few_tokens_give_every_sm_rows(arch: str, sms: int) -> None:
    """But those of 4,096 rows on an L40S, which have 128 tiles of 32."""
    columns = {name: running(linear(*shape, arch), 64)[0].constexprs["BLOCK_N"] for name, shape in SHAPES.items()}
    assert columns == {"qkv": 32, "o": 32, "gate_up": 128, "down": 32}
    assert all(SHAPES[name][0] // of_tile >= min(sms, 128) for name, of_tile in columns.items())


def test_what_cannot_be_multiplied_is_refused_by_one_sentence() -> None:
    (x, weight, *_), outputs = _operands(64, 128, "T")
    one = TensorSpec((1,), "fp32")
    with pytest.raises(KernelError, match="op linear: int8 inputs need an int8 weight and scales of rows for both"):
        lower("linear", [x, weight, None, one, one], outputs, {}, "sm_90")


def test_tuning_tries_tiles_for_every_size() -> None:
    inputs, outputs = _operands(*SHAPES["o"], "T")
    names = {choice.name for choice in search_space("linear", inputs, outputs, {}, "sm_90")}
    assert {"skinny 16", "skinny 128", "skinny to", "width to 256", "width to 2048", "group"} <= names
    assert [c.name for c in search_space("linear", inputs, outputs, {}, "sm_80")] == ["one token"]


def many_tokens(width: int) -> KernelSpec:
    (spec,) = running(linear(720, 4112, added=True, width_256=width), 200)
    return spec


def some_tokens(tokens: int, arch: str = "sm_90") -> KernelSpec:
    (spec,) = running(linear(*SHAPES["down"], arch, added=True), tokens)
    return spec


def one_token(arch: str) -> KernelSpec:
    (spec,) = running(linear(*SHAPES["o"], arch), 1)
    return spec


@cache
def codes(arch: str) -> dict[str, list[str]]:
    """Opcodes of every kernel that is looked into here, by its key."""
    specs = [*map(many_tokens, TRIED), some_tokens(16), some_tokens(128)] if arch == "sm_90" else [some_tokens(n, arch) for n in (64, 65)]
    specs.append(one_token(arch))
    return dict(zip((spec.key for spec in specs), opcodes(specs, arch), strict=True))


@pytest.mark.parametrize("width", TRIED)
def test_many_tokens_are_multiplied_in_whole_tiles_with_weights_ahead_of_x(width: int) -> None:
    """A product of one K step is four instructions of the tile's width; the next are issued before these have ended; nothing spills."""
    spec = many_tokens(width)
    info, instructions = compile_kernel(spec, "sm_90").info, codes("sm_90")[spec.key]
    assert (info.registers, info.spill_bytes, info.num_warps, info.waits) == (168, 0, 12, True)
    assert info.shared_bytes <= 227 * 1024
    assert sum(op.startswith(f"IGMMA.64x{width}x32.S8.S8") for op in instructions) == 4
    assert sum(op.startswith("USETMAXREG") for op in instructions) == 2
    assert "LDL" not in {op.split(".")[0] for op in instructions}
    _, ptx, said = nvrtc.compile_source(spec, "sm_90")
    assert "wgmma" not in said
    assert "setmaxnreg" not in said
    assert "wgmma.wait_group.sync.aligned 1" in ptx
    loads = re.findall(r"(griddepcontrol\.wait)|cp\.async\.bulk\.tensor\.2d\.\S+ \[%r\d+\], \[%rd(\d+),", ptx)
    waits = [place for place, (wait, _) in enumerate(loads) if wait]
    assert any(map_of for _, map_of in loads[: waits[-1]]), "weights come before the wait of the thread that loads"


@pytest.mark.parametrize("tokens", [16, 128])
def test_few_tokens_are_multiplied_by_the_skinny_gemm(tokens: int) -> None:
    spec = some_tokens(tokens)
    info, instructions = compile_kernel(spec, "sm_90").info, codes("sm_90")[spec.key]
    assert (spec.function, info.spill_bytes, info.waits) == ("skinny_gemm", 0, True)
    assert sum(op.startswith(f"IGMMA.64x{tokens}x32.S8.S8") for op in instructions) == 4 * spec.constexprs["PANELS"]
    assert "wgmma" not in nvrtc.compile_source(spec, "sm_90")[2]


def test_one_token_times_long_rows_is_left_to_the_skinny_gemm() -> None:
    assert {name: [spec.function for spec in running(linear(*shape), 1)] for name, shape in SHAPES.items()} == {
        **{name: ["gemv"] for name in ("qkv", "o", "gate_up")},
        "down": ["skinny_gemm"],
    }
    assert [spec.function for spec in running(linear(*SHAPES["down"], "sm_89"), 1)] == ["gemv"]


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90"])
def test_one_token_is_multiplied_four_products_at_a_time_from_wide_loads(arch: str) -> None:
    spec = one_token(arch)
    instructions, tile = codes(arch)[spec.key], spec.constexprs
    assert compile_kernel(spec, arch).info.spill_bytes == 0
    per_thread = tile["ROWS"] * tile["K"] // (32 * spec.num_warps)
    assert sum(op.startswith("IDP.4A.S8.S8") for op in instructions) == per_thread // 4
    assert sum(op.startswith("LDG.E") and "EF.128" in op for op in instructions) == per_thread // 16
    assert sum(op.startswith("I2F") for op in instructions) <= per_thread // 8, "sums are converted, and no elements"


@pytest.mark.parametrize("arch", ["sm_80", "sm_89"])
def test_before_hopper_tensor_cores_multiply_int8(arch: str) -> None:
    for tokens in (64, 65):
        spec = some_tokens(tokens, arch)
        info = compile_kernel(spec, arch).info
        assert (info.spill_bytes, info.waits) == (0, False)
        assert info.shared_bytes <= 99 * 1024
        assert any(op.startswith("IMMA.16832.S8.S8") for op in codes(arch)[spec.key])


def test_every_model_has_int8_kernels_within_shared_memory() -> None:
    for model in MODELS.values():
        for op in ops_of(model, "int8"):
            for spec in op.kernels("sm_90"):
                assert spec.constexprs.get("SHARED_BYTES", 0) <= 227 * 1024
