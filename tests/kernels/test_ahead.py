"""Weights asked for ahead: which, how much of them, never past their end, and no part of what an op is."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtllm_kernels import tactics
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering import lower
from trtllm_kernels.lowering.call import ELEMENT_BYTES, Operand
from trtllm_kernels.types import Lowered, TensorSpec

LINE = 128
SCALE = TensorSpec((1,), "fp32")
FOLLOWING = Operand("next.weight", TensorSpec((4096, 4096), "fp8"))
AMOUNTS = ("REST", "LATER", "NEXT")


def linear(rows: int, columns: int, dtype: str = "fp8", arch: str = "sm_90", ahead: Operand | None = FOLLOWING, **tactic: int) -> Lowered:
    x, y = TensorSpec(("T", columns), dtype), TensorSpec(("T", rows), "bf16")
    scales = [None, SCALE, SCALE] if dtype == "fp8" else []
    return lower("linear", [x, TensorSpec((rows, columns), dtype), *scales], [y], {}, arch, tactic=tactic, ahead=ahead)


def gate_up(ahead: Operand | None = FOLLOWING, **tactic: int) -> Lowered:
    x, weight, y = TensorSpec(("T", 4096), "fp8"), TensorSpec((28672, 4096), "fp8"), TensorSpec(("T", 14336), "fp8")
    return lower("gate_up_silu", [x, weight, SCALE, SCALE, SCALE], [y], {}, "sm_90", tactic=tactic, ahead=ahead)


def constants(lowered: Lowered) -> Mapping[str, Any]:
    assert lowered.kernels[0].function.startswith("gemv")
    return lowered.kernels[0].constexprs


def amounts(lowered: Lowered) -> list[int]:
    return [constants(lowered)[name] for name in AMOUNTS]


def asked_of(lowered: Lowered) -> object:
    """Name of the tensor that the kernel gets as `Ahead`."""
    return lowered.launches[0].args[list(lowered.kernels[0].signature).index("Ahead")].value


@pytest.mark.parametrize("product", [lambda **options: linear(6144, 4096, **options), gate_up])
def test_the_next_weight_is_a_pointer_of_the_kernel_and_of_nothing_else(product: Any) -> None:
    lowered, alone = product(), product(ahead=None)
    assert asked_of(lowered) == "next.weight"
    assert sum(arg.value == "next.weight" for launch in lowered.launches for arg in launch.args) == 1
    assert asked_of(alone) == "weight"
    assert amounts(lowered)[2] > 0 == amounts(alone)[2]
    assert amounts(lowered)[:2] == amounts(alone)[:2]
    assert lowered.launches[1:] == alone.launches[1:]


def test_own_lines_are_the_rest_of_the_programs_rows_then_later_waves() -> None:
    """The 8B's products in fp8; 8 lines a KB. All 16 MB of the next weight are 128 lines for 1,024 programs, 124 and some for 1,056."""
    wide = {"gemv_rows": 4, "gemv_columns": 2048}
    assert amounts(linear(4096, 14336, **wide)) == [16 * 8 // 4, 0, 128]  # one wave
    assert amounts(linear(4096, 14336, **wide, ahead_own=64)) == [(14336 - 4096) // LINE, 0, 128]
    assert amounts(linear(4096, 4096, **wide)) == [0, 0, 128]  # the first two tiles are all
    assert constants(linear(4096, 4096, **wide))["FIRST_WAVE"] == 1024
    assert amounts(gate_up(gemv_rows=2, gemv_columns=2048, ahead_own=24, ahead_next=8)) == [0, 24 * 8, 8 * 8]
    assert constants(gate_up())["FIRST_WAVE"] == 132 * 8
    assert constants(gate_up(gemv_warps=8))["FIRST_WAVE"] == 132 * 4
    assert amounts(linear(6144, 4096, gemv_rows=2, gemv_columns=1024, ahead_own=8)) == [16, 64 - 2 * 16, 124]


def test_nothing_is_asked_for_where_it_is_off_or_where_no_kernel_begins_early() -> None:
    assert amounts(gate_up(ahead_own=0, ahead_next=0)) == [0, 0, 0]
    assert amounts(linear(6144, 4096, arch="sm_89")) == [0, 0, 0]
    assert not constants(gate_up())["EVICT_FIRST"]
    assert constants(gate_up(evict_first=1))["EVICT_FIRST"]


@given(
    rows=st.integers(1, 600).map(lambda n: 32 * n),
    columns=st.integers(1, 40).map(lambda n: 256 * n),
    following=st.tuples(st.integers(1, 5000), st.integers(1, 700)),
    dtype=st.sampled_from(["fp8", "bf16"]),
    tile=st.sampled_from([(2, 256, 2), (4, 256, 4), (16, 256, 8), (8, 256, 1)]),
    own=st.integers(0, 200),
    ahead=st.integers(0, 200),
)
def test_no_line_lies_past_the_end_and_none_is_asked_for_twice(
    rows: int, columns: int, following: tuple[int, int], dtype: str, tile: tuple[int, int, int], own: int, ahead: int
) -> None:
    names = ("gemv_rows", "gemv_columns", "gemv_warps")
    spec = TensorSpec(following, "bf16")
    tactic = {**dict(zip(names, tile, strict=True)), "ahead_own": own, "ahead_next": ahead}
    found = constants(linear(rows, columns, dtype, ahead=Operand("next", spec), **tactic))
    first, row_bytes = found["FIRST_WAVE"], columns * ELEMENT_BYTES[dtype]
    taken = min(columns, 2 * found["COLS"]) * ELEMENT_BYTES[dtype]
    assert 0 < first <= rows // tile[0]
    assert taken + found["REST"] * LINE <= row_bytes
    assert first * (tile[0] * row_bytes + found["LATER"] * LINE) <= rows * row_bytes
    assert found["REST"] * tile[0] + found["LATER"] <= own * 1024 // LINE
    assert found["NEXT"] <= ahead * 1024 // LINE
    assert first * found["NEXT"] * LINE <= following[0] * following[1] * 2
    assert found["THREADS"] == 32 * tile[2]


def test_a_tactic_is_found_whatever_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And may say how much is asked for; a product without a kernel of ours for one token has nothing to say."""
    x, weight, y = TensorSpec(("T", 4096), "fp8"), TensorSpec((6144, 4096), "fp8"), TensorSpec(("T", 6144), "bf16")
    inputs = [x, weight, None, SCALE, SCALE]
    table = {tactics.key("linear", inputs, [y], {}): {"gemv_rows": 2, "ahead_next": 3}}
    (tmp_path / "h100.json").write_text(json.dumps({"gpu": "test", "tactics": table}))
    monkeypatch.setattr(tactics, "folder", lambda: tmp_path)
    for ahead in (FOLLOWING, Operand("other", TensorSpec((8192, 8192), "bf16"))):
        found = constants(lower("linear", inputs, [y], {}, "sm_90", ahead=ahead))
        assert (found["ROWS"], found["NEXT"]) == (2, 3 * 8)
    with pytest.raises(KernelError, match="tactic of linear_gelu sets \\['ahead_own'\\]"):
        lower("linear_gelu", [x, weight, None, SCALE, SCALE, SCALE], [y], {}, "sm_90", tactic={"ahead_own": 4}, ahead=FOLLOWING)


def test_programs_ask_for_the_lines_meant_each_once_before_they_wait() -> None:
    """In Triton's CPU interpreter, of small products: addresses and results."""
    script = Path(__file__).with_name("interpreted_ahead.py")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    found = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(found) == 8
    assert not [one for one in found if one["failure"]]
