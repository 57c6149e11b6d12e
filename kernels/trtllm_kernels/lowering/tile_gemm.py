"""Launches of `cuda_kernels/row_scaled_gemm.cu`: GEMMs of many tokens in 8 bits, in tiles of 128 tokens by a width for their number.

A step of a few hundred tokens has few tiles for each SM, so what decides is how evenly they divide. gate_up of Llama-2-7B has 688 tiles of
256 rows for 1,024 tokens, six turns of 132 SMs of which the last has 28 tiles, and 920 of 192 rows, seven full turns, which take an eighth
less. Each width is a kernel, so a step's number of tokens is rounded up to one of a few sizes.

GEMMs in fp8 with one scale for each operand and an activation have these tiles only where they take clearly fewer cycles than Triton's, of
256 rows: a step at the power cap gains little of that (docs/facts/kernels-gemm.md). Those without an activation are cuBLASLt's,
which is faster at all sizes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from trtllm_kernels.dialect.expr import ceil_div
from trtllm_kernels.dialect.types import Dim
from trtllm_kernels.lowering.call import I32, Builder, OpCall, Parameter, Tma
from trtllm_kernels.lowering.skinny_gemm import within
from trtllm_kernels.lowering.space import PREFILL, Choice, grid

STEP_CYCLES: Mapping[int, int] = {64: 340, 128: 560, 160: 597, 192: 756, 224: 896, 256: 1024}
"""Rows of the weight per tile, and cycles that 128 bytes of K of such a tile take: at 256 rows the tensor cores'; of the others the share
of that which was measured on an H200 (docs/facts/kernels-gemm.md)."""
_EPILOGUE_CYCLES = 10
"""Per row of the weight in a tile."""
_ROWS, _STEP = 128, 128
_STAGES = {64: 8, 128: 6, 160: 5, 192: 5, 224: 5, 256: 4}
"""Stages of K in flight."""
SIZES = tuple(range(256, 1153, 128))
"""Numbers of tokens up to which one width holds, of GEMMs that end in an activation."""
_WIDTHS = (160, 192, 224)
_WIDEST = 256
"""Rows of a tile of Triton's."""
_BEGIN_CYCLES = 5000
"""What a kernel takes beside its tiles, more than Triton's."""
_FEWER = 0.945
"""The largest share of Triton's cycles with which these tiles are taken: 7 to 19% less time as measured, in a chain."""


def tiles_fit(call: OpCall) -> bool:
    weight = call["weight"]
    return call.capability == 90 and weight.size(0) % 16 == 0 and weight.size(1) % 16 == 0 and _wide(call) in ("bf16", "fp16")


def takes_tiles(call: OpCall) -> bool:
    """Whether a GEMM that ends in an activation, in fp8 with one scale for each operand, has a choice of these tiles."""
    return call.activation > 0 and call["x"].dtype == call["weight"].dtype == "fp8" and not call.by_row and tiles_fit(call)


def _wide(call: OpCall) -> str:
    """The dtype of what is added and, if it is not quantized, of the result."""
    added = call.get("bias") or call.get("residual")
    return added.dtype if added else "bf16" if call.get("out_scale") else call.outputs[0].dtype


def _cycles(call: OpCall, tokens: int, width: int) -> int:
    n, k = call["weight"].size(0), call["weight"].size(1)
    turns = ceil_div(ceil_div(tokens, _ROWS) * ceil_div(n, width), call.sm_count)
    return turns * (ceil_div(k, _STEP) * STEP_CYCLES[width] + _EPILOGUE_CYCLES * width)


def best_width(call: OpCall, tokens: int, widths: Iterable[int]) -> int:
    """The width of tiles that takes the fewest cycles, of equals the first."""
    return min(widths, key=lambda width: _cycles(call, tokens, width))


def _default_width(call: OpCall, tokens: int) -> int:
    """0 for Triton's kernel."""
    width = best_width(call, tokens, _WIDTHS)
    fewer = _cycles(call, tokens, width) + _BEGIN_CYCLES <= _FEWER * _cycles(call, tokens, _WIDEST)
    return width if fewer else 0


def width_of(size: int) -> str:
    """Tunable: the width of tiles up to `size` tokens; where there is another kernel, 0 for that."""
    return f"width_{size}"


def tile_tunables(call: OpCall) -> dict[str, int]:
    """The defaults of a GEMM that ends in an activation, for `OpCall.tuned`."""
    return {width_of(size): _default_width(call, size) for size in SIZES} if takes_tiles(call) else {}


def tile_space(call: OpCall) -> tuple[Choice, ...]:
    if not takes_tiles(call):
        return ()
    return tuple(Choice(f"width to {size}", grid(**{width_of(size): (0, *_WIDTHS)}), (PREFILL,), (size,)) for size in SIZES[::2])


def launch_some_tiles(builder: Builder, tuned: Mapping[str, int], below: int) -> list[Dim]:
    """The tiles of a GEMM that ends in an activation, for some numbers of tokens above `below`. Of each launch: 1 in steps that have it,
    else 0."""
    launched = []
    for low, high, width in _runs([(size, tuned.get(width_of(size), 0)) for size in SIZES], below):
        if width:
            launched.append(within(builder.call["x"].shape[0], low, high))
            _launch(builder, width, tuned["group"], launched[-1])
    return launched


def launch_tiles(builder: Builder, tuned: Mapping[str, int], sizes: Sequence[int], below: int, most: int) -> None:
    """Tiles for more than `below` tokens and up to `most`, with the last size's width beyond it."""
    for low, high, width in _runs([(size, tuned[width_of(size)]) for size in sizes], below):
        _launch(builder, width, tuned["group"], within(builder.call["x"].shape[0], low, most if high == sizes[-1] else high))


def _runs(chosen: Sequence[tuple[int, int]], below: int) -> list[tuple[int, int, int]]:
    """(more than so many tokens, up to so many, width) of each run of sizes above `below` that have the same width."""
    runs: list[tuple[int, int, int]] = []
    for size, width in chosen:
        if runs and runs[-1][2] == width:
            runs[-1] = (runs[-1][0], size, width)
        elif size > below:
            runs.append((runs[-1][1] if runs else below, size, width))
    return runs


def operands(call: OpCall) -> Mapping[str, Parameter]:
    x = call["x"]
    added = {"Bias": call.get("bias") or x, "Residual": call.get("residual") or x}
    return {**added, "XScale": call["x_scale"], "WScale": call["weight_scale"], "OutScale": call.get("out_scale") or x}


def flags(call: OpCall) -> Mapping[str, bool | int]:
    added = {"BIASED": call.get("bias") is not None, "ADDED": call.get("residual") is not None}
    shape = {"N": call["weight"].size(0), "K": call["weight"].size(1)}
    return {**shape, "ACT": call.activation, **added, "QUANTIZE": call.get("out_scale") is not None}


def _launch(builder: Builder, width: int, group: int, here: Dim) -> None:
    """`here`: 1 in steps that these tiles serve, else 0."""
    call = builder.call
    x, weight, y, tokens = call["x"], call["weight"], call.outputs[0], call["x"].shape[0]
    stages, scales = _STAGES[width], width if call.by_row else 4
    biases = 2 * width if call.get("bias") is not None else 16
    shared = stages * _STEP * (_ROWS + width) + 2 * (4 * scales + biases) + 8 * (2 * stages + 4)
    builder.launch(
        "row_scaled_gemm.row_scaled_gemm",
        {"X": Tma(x, _ROWS, _STEP), "W": Tma(weight, width, _STEP), **operands(call), "Y": y, "num_tokens": I32(tokens)},
        grid=(_programs(call, tokens, width, here),),
        constexprs={
            **flags(call),
            "COLUMNS": width,
            "STAGES": stages,
            "GROUP": group,
            "BY_ROW": call.by_row,
            "FP8": x.dtype == "fp8",
            "INT8": x.dtype == "int8",
            "HALF": False,
            "OUT_HALF": _wide(call) == "fp16",
            "SHARED_BYTES": shared,
        },
        warps=12,
        cuda=True,
    )


def _programs(call: OpCall, tokens: Dim, width: int, here: Dim) -> Dim:
    tiles = f"ceil_div({tokens}, {_ROWS}) * {ceil_div(call['weight'].size(0), width)}"
    return f"min({call.sm_count}, {tiles}) * {here}"
