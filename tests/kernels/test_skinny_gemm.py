"""Products of few tokens: results, which launch runs at how many tokens, and machine code that streams."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emulated import emulate
from hypothesis import given
from hypothesis import strategies as st
from machine_code import opcodes
from packed_samples import lowered_for, result_like

from trtllm_kernels.compile import nvrtc
from trtllm_kernels.compile.aot import compile_kernel
from trtllm_kernels.compile.catalogue import MODELS, ops_of
from trtllm_kernels.dialect.expr import ceil_div, evaluate
from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.specs import DTYPES, spec_of
from trtllm_kernels.dialect.types import KernelSpec, Launch, Lowered, TensorSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering import lower
from trtllm_kernels.lowering.skinny_gemm import IN_TRITON, PADDED
from trtllm_kernels.references import OPS
from trtllm_kernels.references.sampling import EMPTY, chosen_value_and_column

SCALE = TensorSpec((1,), "fp32")


def linear(rows: int, columns: int, dtype: str = "fp8", arch: str = "sm_90", tokens: int | str = "T", **tactic: int) -> Lowered:
    x, y = TensorSpec((tokens, columns), dtype), TensorSpec((tokens, rows), "bf16")
    scales = [None, SCALE, SCALE] if dtype == "fp8" else []
    return lower("linear", [x, TensorSpec((rows, columns), dtype), *scales], [y], {}, arch, tactic=tactic)


def gate_up(dtype: str = "fp8", rows: int = 28672, columns: int = 4096, **tactic: int) -> Lowered:
    x, weight, y = TensorSpec(("T", columns), dtype), TensorSpec((rows, columns), dtype), TensorSpec(("T", rows // 2), dtype)
    scales = [SCALE] * 3 if dtype == "fp8" else []
    return lower("gate_up_silu", [x, weight, *scales], [y], {}, "sm_90", tactic=tactic)


def running(lowered: Lowered, tokens: int) -> list[Launch]:
    return [one for one in lowered.launches if min(evaluate(dim, {"T": tokens}) for dim in one.grid) > 0]


def routine(lowered: Lowered, launch: Launch) -> str:
    if launch.library:
        return launch.library
    spec = next(spec for spec in lowered.kernels if spec.key == launch.kernel)
    return f"{spec.function} {spec.constexprs['TOKENS']}" if "TOKENS" in spec.constexprs else spec.function


def triton_tiles(**values: int) -> dict[str, int]:
    """Of up to 64 tokens, as there are in Triton."""
    return {f"skinny{padded}_{name}": value for padded in IN_TRITON for name, value in {**values, "blocks": 0}.items()}


_IN_BOTH = st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.sampled_from([0, 1, 2]))
_IN_CUDA = st.tuples(st.just(1), st.sampled_from([1, 2]), st.sampled_from([1, 2]))


@given(
    st.integers(0, 400), st.integers(0, 150), st.tuples(_IN_BOTH, _IN_BOTH, _IN_BOTH, _IN_BOTH, _IN_CUDA, _IN_CUDA), st.sampled_from([0, 1])
)
def test_each_number_of_tokens_has_one_routine_and_room_for_its_parts(
    tokens: int, most: int, each: tuple[tuple[int, int, int], ...], gemv: int
) -> None:
    """None where no row is wanted, as of lm_head in a step of chunks alone. `each`: parts of K in Triton and in CUDA C++ and blocks an SM,
    0 for Triton's kernels, of which there are none of more than 64 tokens."""
    divided: dict[str, int] = {}
    for padded, (splits, parts_of_k, blocks) in zip(PADDED, each, strict=True):
        divided |= {f"skinny{padded}_splits": splits} if padded in IN_TRITON else {}
        divided |= {f"skinny{padded}_parts": parts_of_k, f"skinny{padded}_blocks": blocks}
    lowered = linear(4096, 4096, skinny_to=most, gemv=gemv, **divided)
    fixed = linear(4096, 4096, tokens=tokens, skinny_to=most, gemv=gemv, **divided)
    names = [routine(lowered, launch) for launch in running(lowered, tokens)]
    assert [routine(fixed, launch) for launch in running(fixed, tokens)] == names
    eight = divided["skinny8_blocks"] and divided["skinny16_blocks"]
    padded = next(size for size in (*(PADDED if eight else PADDED[1:]), 400) if tokens <= size)
    if tokens == 0:
        assert names == []
    elif tokens == 1 and gemv:
        assert names == ["gemv"]
    elif tokens <= min(most, 128):
        splits = divided.get(f"skinny{padded}_splits", 1)
        if divided[f"skinny{padded}_blocks"]:
            assert names == [f"skinny_gemm {padded}"]
        else:
            assert names == ([f"skinny_linear {padded}"] if splits == 1 else [f"skinny_parts {padded}", "skinny_sum"])
        if names[-1] == "skinny_sum":
            (parts,) = lowered.workspaces.values()
            assert evaluate(parts.shape[0], {"T": tokens}) >= splits * tokens
            assert parts.shape[1] == 4096
    else:
        assert names == ["scaled_matmul"]


@given(tokens=st.integers(0, 400), most=st.integers(0, 150), fused=st.sampled_from([32, 192]))
def test_a_product_that_ends_in_an_activation_is_one_launch_for_few_tokens(tokens: int, most: int, fused: int) -> None:
    lowered = gate_up(skinny_to=most, fused_from=fused, width_384=0, width_512=0)
    names = [routine(lowered, launch) for launch in running(lowered, tokens)]
    padded = next(size for size in (*PADDED, 400) if tokens <= size)
    if tokens == 0:
        assert names == []
    elif tokens == 1 and most == 0:
        assert names == ["gemv_gate_up_silu"]
    elif tokens <= min(most, 128, fused - 1):
        assert names == [f"skinny_gemm {padded}"]
        in_triton = gate_up(skinny_to=most, fused_from=fused, gemv=0, **triton_tiles())
        assert tokens > 64 or [routine(in_triton, launch) for launch in running(in_triton, tokens)] == [
            f"skinny_gate_up_silu {max(16, padded)}"
        ]
    else:
        assert names == (["gate_up_silu"] if tokens >= fused else ["scaled_matmul", "silu_mul_interleaved"])


EMULATED = {
    # a warpgroup multiplies fewer rows than the tensor core's; two panels a step
    "low": ("linear", "bf16", 96, 640, 20, {"residual"}, {"blocks": 1, "height": 48}),
    # two blocks divide K, one of them a step less; two warpgroups of 40 rows each
    "parts": ("linear", "fp8", 96, 1664, 30, {"residual"}, {"blocks": 1, "height": 80, "parts": 2}),
    # two blocks with a tile of 8 tokens; of int8 with scales of rows
    "eight": ("linear", "int8", 64, 400, 7, {"bias"}, {"blocks": 1, "height": 32, "parts": 2}),
    "one": ("linear", "fp8", 80, 304, 1, {"residual"}, {"blocks": 1, "height": 40, "parts": 2}),
    # gates with what they gate, of threads that do not divide into tokens
    "gated": ("gate_up_silu", "fp8", 224, 384, 35, {"quantize"}, {"blocks": 2, "height": 112}),
}


@pytest.mark.parametrize("name", EMULATED)
def test_blocks_of_any_height_compute_their_reference(name: str) -> None:
    """By the source that is compiled for the GPU and the launch that engines have. Rows of x after the last are NaN, and no result's."""
    op, dtype, rows, columns, tokens, epilogue, tactic = EMULATED[name]
    generator, padded = torch.Generator().manual_seed(7), next(size for size in PADDED if tokens <= size)

    def drawn(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=generator) * scale

    def stored(values: torch.Tensor) -> torch.Tensor:
        return (values * 30).round().clamp(-127, 127).to(torch.int8) if dtype == "int8" else values.to(DTYPES[dtype])

    wide = torch.float16 if dtype == "fp16" else torch.bfloat16
    named = {"x": stored(drawn(tokens, columns)), "weight": stored(drawn(rows, columns))}
    scale = columns**-0.5 / (900 if dtype == "int8" else 1)
    if dtype == "int8":
        named |= {"x_scale": drawn(tokens, 1).abs() + 0.5, "weight_scale": (drawn(rows, 1).abs() + 0.5) * scale}
    elif dtype == "fp8":
        named |= {"x_scale": torch.ones(1), "weight_scale": torch.tensor([scale])}
    else:
        named["weight"] = (named["weight"].float() * scale).to(DTYPES[dtype])
    named |= {"bias": drawn(rows).to(wide)} if "bias" in epilogue else {}
    named |= {"residual": drawn(tokens, rows).to(wide)} if "residual" in epilogue else {}
    named |= {"out_scale": torch.tensor([0.05])} if "quantize" in epilogue else {}
    y = result_like(op, named)
    y.view(torch.uint8).fill_(0xFF)
    lowered = lowered_for(
        op, named, y, ({} if op == "linear_gelu" else {"gemv": 0}) | {f"skinny{padded}_{key}": value for key, value in tactic.items()}
    )
    with_more = torch.full((tokens + 5, columns), 0x7F, dtype=torch.uint8).repeat(1, named["x"].element_size()).view(named["x"].dtype)
    with_more[:tokens] = named["x"]
    emulate(lowered, named | {"x": with_more}, y, tokens)
    expected = OPS[op].reference(**{key: named.get(key) for key in OP_SPECS[op].tensors}).float()
    assert float((y.float() - expected).norm() / expected.norm()) < (2e-2 if "quantize" in epilogue else 2e-3)


@pytest.mark.parametrize(("parts", "height", "tokens"), [(2, 128, 30)])
def test_the_last_product_keeps_the_best_of_its_logits(parts: int, height: int, tokens: int) -> None:
    """Greedy rows and drawn ones, of blocks whose last rows are not the vocabulary's."""
    generator, padded = torch.Generator().manual_seed(tokens), next(size for size in PADDED if tokens <= size)
    vocabulary, columns = 208, 160
    x = torch.randn(tokens, columns, generator=generator).bfloat16()
    weight = torch.randn(vocabulary, columns, generator=generator).bfloat16()
    weight[100] = weight[33]  # of equals the first
    weight[33], x[1] = 9 * x[0], x[0]
    words = torch.randint(-(2**31), 2**31, (tokens, 4), generator=generator).int()
    words[:, 0] = torch.tensor([0.0, 0.7, 2.5]).view(torch.int32).repeat(tokens)[:tokens]
    best = torch.full((tokens,), EMPTY)
    slots, ring = torch.zeros(tokens, dtype=torch.int32), torch.zeros(2, tokens, dtype=torch.int32)
    named = {"x": x, "weight": weight, "sampling_words": words, "sample_slots": slots, "ring_slot": slots[:1]}
    named |= {"argmax_scratch": best, "last_tokens": slots, "token_ring": ring}
    logits = torch.full((tokens, vocabulary), torch.nan).bfloat16()
    specs = {key: spec_of(value) for key, value in named.items()}
    specs |= {"x": TensorSpec(("T", columns), "bf16")}
    outputs = [TensorSpec(("T", vocabulary), "bf16"), TensorSpec(("T",), "int32")]
    tactic = {"gemv": 0} | {f"skinny{padded}_{key}": value for key, value in {"parts": parts, "height": height, "blocks": 1}.items()}
    lowered = lower("linear_sample", [specs.get(key) for key in OP_SPECS["linear_sample"].tensors], outputs, {}, "sm_90", tactic=tactic)
    product, publish = running(lowered, tokens)
    assert routine(lowered, publish) == "publish"
    emulate(replace(lowered, launches=(product,)), named, logits, tokens)
    value, column = chosen_value_and_column(logits, words, 0, vocabulary)
    torch.testing.assert_close(logits.float(), (x.float() @ weight.float().T).bfloat16().float(), rtol=1e-2, atol=1e-2)
    assert torch.equal(0x7FFFFFFF - (best & 0xFFFFFFFF), column)
    bits = (best >> 32).int()
    torch.testing.assert_close((bits ^ (bits >> 31 & 0x7FFFFFFF)).view(torch.float32), value, rtol=1e-5, atol=1e-5)


def test_every_row_and_column_of_the_weight_has_a_program() -> None:
    for rows, columns, splits in ((4096, 14336, 4), (1000, 336, 3), (6144, 4096, 1)):
        lowered = linear(rows, columns, skinny_to=64, skinny32_splits=splits, skinny32_blocks=0, gemv=0)
        launch = running(lowered, 20)[0]
        spec = next(spec for spec in lowered.kernels if spec.key == launch.kernel)
        tiles, parts, _ = (evaluate(dim, {"T": 20}) for dim in launch.grid)
        assert (tiles - 1) * spec.constexprs["BLOCK_N"] < rows <= tiles * spec.constexprs["BLOCK_N"]
        assert parts == splits
        for blocks in (1, 2):
            parts_of_k = min(splits, 2)
            cuda = linear(rows - rows % 16, columns, skinny_to=64, skinny32_parts=parts_of_k, skinny32_blocks=blocks, gemv=0)
            launch, spec = cuda_launch(cuda, 20)
            tiles, parts, _ = (evaluate(dim, {"T": 20}) for dim in launch.grid)
            height = spec.constexprs["TILE_ROWS"]
            assert height * (tiles - 1) < spec.constexprs["N"] == rows - rows % 16 <= height * tiles
            assert parts == spec.constexprs["SPLITS"] == parts_of_k


def cuda_launch(lowered: Lowered, tokens: int) -> tuple[Launch, KernelSpec]:
    (launch,) = running(lowered, tokens)
    spec = next(spec for spec in lowered.kernels if spec.key == launch.kernel)
    assert spec.is_cuda
    return launch, spec


def test_where_they_are_off_or_do_not_fit_it_is_the_librarys() -> None:
    def functions(lowered: Lowered) -> set[str]:
        return {spec.function for spec in lowered.kernels}

    assert functions(linear(4096, 4096, skinny_to=0)) == {"gemv"}
    for other in (linear(4096, 4096, arch="sm_89"), linear(4096, 4100), linear(32, 4096), linear(4096, 64)):
        assert not any(name.startswith("skinny_") for name in functions(other))
    assert functions(linear(4096, 4096, "fp32")) == set()
    with pytest.raises(KernelError, match=r"skinny96_blocks is 0, but .* set skinny_to to 64 or less"):
        linear(4096, 4096, skinny96_blocks=0)
    with pytest.raises(KernelError, match="skinny32_parts is 4, but at most two blocks split K"):
        linear(4096, 4096, skinny32_parts=4)
    with pytest.raises(KernelError, match="skinny128_rows"):
        linear(4096, 4096, skinny128_rows=64)


def tile_of(lowered: Lowered, tokens: int) -> tuple[str, int, int, int]:
    """(function, bytes of K, stages, splits)."""
    launch = running(lowered, tokens)[0]
    spec = next(spec for spec in lowered.kernels if spec.key == launch.kernel)
    element = 1 if spec.signature["W"].startswith("tensordesc<fp8") else 2
    return spec.function, spec.constexprs["BLOCK_K"] * element, spec.num_stages, spec.constexprs.get("SPLITS", 1)


@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
def test_by_default_k_is_divided_and_steps_are_short_where_programs_are_few(dtype: str) -> None:
    """The tiles that were measured: QKV, O, down and gate_up of the 8B."""
    qkv, o, down = (linear(*shape, dtype, **triton_tiles()) for shape in ((6144, 4096), (4096, 4096), (4096, 14336)))
    gate_up_silu = gate_up(dtype, **triton_tiles())
    for tokens in (2, 16, 17, 32):
        assert tile_of(qkv, tokens) == ("skinny_linear", 512, 3, 1)
        assert tile_of(o, tokens) == ("skinny_parts", 512, 3, 2)
        assert tile_of(down, tokens) == (("skinny_parts", 512, 3, 2) if dtype == "fp8" else ("skinny_linear", 256, 6, 1))
        assert tile_of(gate_up_silu, tokens) == ("skinny_gate_up_silu", 512, 3, 1)
    for tokens in (33, 64):
        assert tile_of(qkv, tokens) == ("skinny_linear", 512, 3, 1)
        assert tile_of(o, tokens) == ("skinny_linear", 256, 6, 1)
        assert tile_of(down, tokens) == ("skinny_linear", 256, 6, 1)
        assert tile_of(gate_up_silu, tokens) == ("skinny_gate_up_silu", 256, 3, 1)


TILES = {
    # (rows, columns): tiles (blocks per SM, parts of K, rows per block) of up to 16, 64 and 128 tokens
    ("linear", 6144, 4096): ((2, 2, 48), (2, 2, 48), (2, 2, 64)),
    ("linear", 4096, 4096): ((1, 2, 64),) * 3,
    ("linear", 4096, 14336): ((1, 2, 64),) * 3,
    ("gate_up_silu", 28672, 4096): ((1, 1, 112), (2, 1, 64), (2, 1, 112)),
    ("linear", 5120, 8192): ((2, 2, 40), (2, 2, 40), (2, 2, 64)),
    ("linear", 8192, 4096): ((1, 1, 64), (1, 1, 64), (2, 2, 64)),
    ("linear", 8192, 14336): ((1, 1, 64),) * 3,
    ("gate_up_silu", 28672, 8192): ((1, 1, 112), (1, 1, 112), (2, 1, 112)),
    ("gate_up_silu", 57344, 8192): ((1, 1, 64), (2, 1, 64), (2, 1, 64)),
}
"""Of the 8B, and of one of two ranks of the 70B, in fp8."""


@pytest.mark.parametrize(("op", "rows", "columns"), TILES)
def test_by_default_blocks_in_cuda_have_equal_shares_of_all_sms(op: str, rows: int, columns: int) -> None:
    for tokens in (1, 8, 9, 16, 17, 64, 65, 128):
        tile = TILES[op, rows, columns][0 if tokens <= 16 else 1 if tokens <= 64 else 2]
        lowered = linear(rows, columns) if op == "linear" else gate_up(rows=rows, columns=columns)
        launch, spec = cuda_launch(lowered, tokens)
        assert tuple(spec.constexprs[name] for name in ("BLOCKS", "SPLITS", "TILE_ROWS")) == tile
        blocks = evaluate(launch.grid[0], {"T": tokens}) * tile[1]
        assert tokens > 64 or blocks / 132 / ceil_div(blocks, 132) > 0.84
        assert spec.constexprs["SHARED_BYTES"] * tile[0] <= (228 - tile[0]) * 1024


@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
def test_in_cuda_weights_are_on_the_way_before_the_wait(dtype: str) -> None:
    """Of x nothing is; products follow each other, and the assembler has nothing to say of them."""
    products = (linear(6144, 4096, dtype), linear(4096, 14336, dtype), gate_up(dtype))
    launched = [(tokens, cuda_launch(lowered, tokens)[1]) for lowered in products for tokens in (16, 64, 96, 128)]
    for (tokens, spec), code in zip(launched, opcodes([spec for _, spec in launched]), strict=True):
        info = compile_kernel(spec, "sm_90").info
        warps = 6 if spec.constexprs["TILE_ROWS"] <= 64 else 10
        assert (info.spill_bytes, info.num_warps, info.waits) == (0, warps, True)
        assert info.registers * 32 * warps * 2 <= 65536
        panels = spec.constexprs["PANELS"]
        parts = spec.constexprs["SPLITS"]
        assert sum(op.startswith("UTMALDG") for op in code) == (1 + parts) * panels, "weights before the other block is there and after"
        assert sum(op.startswith(f"{'QGMMA' if dtype == 'fp8' else 'HGMMA'}.64x{tokens}x") for op in code) == 4 * panels
        assert code.count("ACQBULK") == 2, "one for those that multiply, one for who loads x"
        assert ("UCGABAR_ARV" in code) == (parts > 1)
        assert not [op for op in code if op.startswith(("MEMBAR", "ERRBAR"))], "none waits for all its loads and stores"
        _, ptx, said = nvrtc.compile_source(spec, "sm_90")
        assert "wgmma" not in said
        met = re.findall(r"(griddepcontrol\.wait)|cp\.async\.bulk\.tensor\.\S+bytes(\.L2::cache_hint)?", ptx)
        weight, x, wait = ("", ".L2::cache_hint"), ("", ""), ("griddepcontrol.wait", "")
        assert met == [*[weight] * panels * parts, wait, *[x] * panels, wait]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_every_models_products_have_tiles_within_shared_memory(model: str, precision: str) -> None:
    """And where K is divided each part has something to multiply."""
    products = [op for op in ops_of(MODELS[model], precision) if op.op in ("linear", "gate_up_silu", "linear_gelu")]
    for op in products:
        weight = op.inputs[1]
        assert weight is not None
        if weight.dtype != precision:
            continue  # packed: test_packed_gemm.py
        columns, element = int(weight.shape[1]), 1 if precision == "fp8" else 2
        in_cuda = [spec.constexprs for spec in op.kernels("sm_90") if spec.function == "skinny_gemm" and spec.is_cuda]
        assert {tile["TOKENS"] for tile in in_cuda} == {*PADDED}
        for tile in in_cuda:
            assert min(tile["W_STAGES"], tile["X_STAGES"]) >= 2
            assert tile["SHARED_BYTES"] <= 227 * 1024
            steps = ceil_div(columns * element, 128 * tile["PANELS"])
            assert ceil_div(steps, tile["SPLITS"]) * (tile["SPLITS"] - 1) < steps
        lowered = lower(op.op, op.inputs, op.outputs, op.attrs, "sm_90", tactic={"skinny_to": 64} | triton_tiles())
        tiles = [spec.constexprs | {"stages": spec.num_stages} for spec in lowered.kernels if spec.constexprs.get("TOKENS")]
        assert {tile["TOKENS"] for tile in tiles} == {*IN_TRITON}
        for tile in tiles:
            assert tile["stages"] * (tile["BLOCK_N"] + tile["TOKENS"]) * tile["BLOCK_K"] * element <= 200 * 1024
            steps, splits = ceil_div(columns, tile["BLOCK_K"]), tile.get("SPLITS", 1)
            assert ceil_div(steps, splits) * (splits - 1) < steps


@given(
    rows=st.sampled_from([64, 128, 1000, 4096]),
    columns=st.integers(16, 600).map(lambda n: 16 * n),
    splits=st.integers(1, 8),
    tall=st.sampled_from([64, 128]),
    ahead=st.integers(0, 400),
)
def test_lines_asked_for_ahead_lie_in_the_programs_part_of_the_weight(rows: int, columns: int, splits: int, tall: int, ahead: int) -> None:
    lowered = linear(
        rows, columns, gemv=0, skinny_to=16, skinny16_rows=tall, skinny16_splits=splits, skinny16_prefetch=ahead, skinny16_blocks=0
    )
    for spec in (spec for spec in lowered.kernels if "LINES" in spec.constexprs):
        found = spec.constexprs
        if found["LINES"]:
            assert rows % tall == 0
            assert found["LINES"] * 128 * splits <= columns
            assert found["LINES"] * tall * 128 <= ahead * 1024


@pytest.mark.parametrize("dtype", ["fp8", "bf16"])
def test_weights_stream_ahead_of_the_tensor_cores(dtype: str) -> None:
    """All stages but one are on the way before the first product, lines are asked for before the wait, and tiles are one warp group's."""
    lowered = linear(
        4096, 4096, dtype, skinny_to=16, skinny16_k=256 if dtype == "fp8" else 128, skinny16_stages=6, skinny16_splits=1, skinny16_blocks=0
    )
    spec = next(spec for spec in lowered.kernels if spec.function == "skinny_linear")
    (code,) = opcodes([spec])
    products = [i for i, op in enumerate(code) if op.startswith("QGMMA.64x16" if dtype == "fp8" else "HGMMA.64x16")]
    assert products
    loads = [i for i, op in enumerate(code) if op.startswith("UTMALDG")]
    assert sum(i < products[0] for i in loads) >= 2 * 5
    asked = [i for i, op in enumerate(code) if op.startswith("CCTL.E.PF2")]
    assert len(asked) == spec.constexprs["LINES"] * spec.constexprs["BLOCK_N"] // spec.constexprs["THREADS"] > 0
    assert max(asked) < code.index("ACQBULK") < loads[0]


def test_kernels_equal_their_references_in_the_interpreter() -> None:
    script = Path(__file__).with_name("interpreted_skinny_gemm.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    results = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(results) == 34
    assert not [r for r in results if r["failure"]]
