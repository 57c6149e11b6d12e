"""Lowering of GEMMs whose operands have one scale per row each: int8, and fp8 by rows.

One token: GEMV, but for long rows on Hopper. Up to 128 tokens on Hopper: the skinny GEMM. More: `cuda_kernels/row_scaled_gemm.cu` on
Hopper (`tile_gemm.py`), where TMA takes the rows; elsewhere, and for other rows, `row_scaled.row_scaled_blocks` in Triton. cuBLASLt is
not used: it knows no scales of rows, and its int8 GEMM reaches half of its fp8 GEMM's rate on Hopper.
"""

from __future__ import annotations

from trtllm_kernels.dialect.dtypes import FP8_CAPABILITY
from trtllm_kernels.dialect.expr import ceil_div
from trtllm_kernels.dialect.types import Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import I32, Builder, OpCall, Parameter
from trtllm_kernels.lowering.gemv import EVICT_FIRST, gemv_tile, launch_gemv, one_token_space
from trtllm_kernels.lowering.skinny_gemm import NO_LIMIT, fills_sms, launch_skinny, skinny_fits, skinny_space, skinny_tunables, within
from trtllm_kernels.lowering.space import PREFILL, Choice, grid
from trtllm_kernels.lowering.tile_gemm import best_width, flags, launch_tiles, operands, tiles_fit, width_of

SIZES = (256, 512, 1024, 2048)
"""Numbers of tokens up to which one width of tiles holds; the last width is also that of more tokens."""
WIDTHS = (64, 128, 256)
"""Rows of the weight per tile, by default."""
TRIED = (*WIDTHS, 160, 192, 224)
"""By tuning: with scales of rows the last were not timed yet."""
_BLOCK_TOKENS = 64
"""Up to so many tokens, Triton's tiles hold 64."""
_CUDA = "row_scaled_cuda"
"""Tunable: whether many tokens are multiplied in CUDA C++ where that fits."""
_LONG_ROW_BYTES = 8192
"""One token times longer rows of int8 is left to the skinny GEMM."""


def takes_row_scaled(call: OpCall) -> bool:
    """Whether `call` is lowered here. Raises `KernelError` for int8 operands that cannot be."""
    x, weight = call["x"], call["weight"]
    by_row = x.dtype == weight.dtype and call.by_row and len(call["x_scale"].shape) == 2
    if x.dtype == "int8" and not by_row:
        raise KernelError(f"op {call.op}: int8 inputs need an int8 weight and scales of rows for both")
    return x.dtype == "int8" or (x.dtype == "fp8" and by_row and call.capability >= FP8_CAPABILITY)


def _tunables(call: OpCall) -> dict[str, int]:
    by_skinny = fills_sms(call) if call["x"].dtype == "fp8" else call["weight"].size(1) > _LONG_ROW_BYTES and skinny_fits(call)
    one_token = {} if call.op == "linear_gelu" else {"gemv": int(not by_skinny), **gemv_tile(call), EVICT_FIRST: 1}
    by_tma = tiles_fit(call)
    widths = {width_of(size): best_width(call, size, WIDTHS[::-1]) for size in SIZES} if by_tma else {}
    return {**one_token, **skinny_tunables(call), **widths, "group": 8, _CUDA: int(by_tma)}


def row_scaled_space(call: OpCall) -> tuple[Choice, ...]:
    """Tiles for one token and for few, and a width of tiles for each size."""
    one_token = () if call.op == "linear_gelu" else one_token_space(call)
    if not tiles_fit(call):
        return one_token
    widths = (Choice(f"width to {size}", grid(**{width_of(size): TRIED}), (PREFILL,), (size - size // 4, size)) for size in SIZES)
    return (*one_token, *skinny_space(call), *widths, Choice("group", grid(group=(4, 8, 16)), (PREFILL,), (SIZES[-1],)))


def row_scaled_gemm(call: OpCall) -> Lowered:
    tuned = call.tuned(**_tunables(call))
    builder = Builder(call)
    scales: dict[str, Parameter] = {"XScale": call["x_scale"], "WScale": call["weight_scale"]}
    with_result = scales if call.op == "linear" else {**scales, "OutScale": call.get("out_scale") or call["x"]}
    by_gemv = call.op != "linear_gelu" and launch_gemv(builder, tuned, with_result)
    below = launch_skinny(builder, tuned, with_result, int(by_gemv))
    if not (tuned[_CUDA] and tiles_fit(call)):
        _launch_blocks(builder, below, max(below, _BLOCK_TOKENS), 64)
        _launch_blocks(builder, max(below, _BLOCK_TOKENS), NO_LIMIT, 128)
        return builder.finish()
    launch_tiles(builder, tuned, SIZES, below, NO_LIMIT)
    return builder.finish()


def _block_columns(call: OpCall) -> int:
    """Rows of the weight in a tile of few tokens: as many as leave a tile for each SM. Such a product waits for memory, which few programs
    with few bytes in flight do not fill."""
    n = call["weight"].size(0)
    return next((columns for columns in (128, 64) if ceil_div(n, columns) >= call.sm_count), 32)


def _launch_blocks(builder: Builder, below: int, most: int, rows: int) -> None:
    """Triton's kernel without TMA, in tiles of `rows` tokens, for more than `below` and up to `most` of them."""
    call, tokens = builder.call, builder.call["x"].shape[0]
    if most <= below:
        return
    here = within(tokens, below, most)
    columns = _block_columns(call) if rows == _BLOCK_TOKENS else 128
    tiles = f"ceil_div({tokens}, {rows}) * {ceil_div(call['weight'].size(0), columns)}"
    builder.launch(
        "row_scaled.row_scaled_blocks",
        {"X": call["x"], "W": call["weight"], "Y": call.outputs[0], **operands(call), "num_tokens": I32(tokens)},
        grid=(f"{tiles} * {here}",),
        constexprs={**flags(call), "BLOCK_M": rows, "BLOCK_N": columns, "BLOCK_K": 64 if columns == 128 else 128, "GROUP": 8},
        warps=8 if columns == 128 else 4,
        stages=3,
    )
