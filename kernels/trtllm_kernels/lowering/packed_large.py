"""Tiles and launches of the kernel of many tokens with packed weights, `cuda_kernels/packed_gemm_large.cu`."""

from __future__ import annotations

from collections.abc import Mapping

from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.dialect.expr import ceil_div, product
from trtllm_kernels.dialect.packing import TILE
from trtllm_kernels.dialect.types import Dim
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import Builder, OpCall, Tma
from trtllm_kernels.lowering.packed_call import (
    NF4_TABLE_BYTES,
    RESERVED_BYTES,
    SM_BYTES,
    few_fit,
    flags_of,
    group_of,
    operands_of,
    panel,
    scales_in_range,
    step_fits,
    tables_bytes,
    within,
)
from trtllm_kernels.lowering.packed_tiles import PADDED
from trtllm_kernels.lowering.skinny_gemm import NO_LIMIT

LARGE_SIZES = (64, 128, 256, 512, 1024, 2048)
"""Numbers of tokens up to which one tile of the kernel of many tokens holds; the last also holds for more."""
LARGE_TILES = ((256, 128, 1), *((*tile, parts) for tile in ((128, 256), (128, 128), (256, 64), (128, 64)) for parts in (1, 2)))
"""(rows of the weight, tokens, blocks of a cluster that divide K)."""
LARGE_TO = "large_to"
"""Tunable: largest number of tokens for which that kernel is taken; 0: never."""
_TOKEN_GROUP = 2048
"""Tokens that go through all rows of the weight before others do."""
LargeTile = tuple[int, int, int]


def large_names(size: int) -> tuple[str, str, str]:
    return f"large{size}_rows", f"large{size}_tokens", f"large{size}_parts"


def large_tiles(call: OpCall) -> tuple[LargeTile, ...]:
    """Those that have the registers for their sums."""
    by_sums = call["x"].dtype == "fp8" and group_of(call) > 0
    return tuple(tile for tile in LARGE_TILES if not (by_sums and tile[:2] == (256, 128)))


def default_large(call: OpCall, tokens: int) -> LargeTile:
    """As tuned on an H200 with int4 and w4a8. What is decoded is multiplied by as many tokens as possible. Two blocks divide K where all
    can run at once. Clusters of four were slower: 32 of them do not fit into the GPU."""
    n, sms = call["weight"].size(0), call.sm_count

    def fits(of_tile: int) -> bool:
        return 2 * ceil_div(tokens, of_tile) * ceil_div(n, 128) <= sms

    if tokens <= TILE:
        return (128, 64, 2) if fits(64) else (256, 64, 1)
    if tokens <= PADDED[-1] and not fits(128):
        return (128, 128, 1) if (256, 128, 1) not in large_tiles(call) else (256, 128, 1)
    return (128, 128, 2) if fits(128) else (128, 256, 2) if fits(256) else (128, 256, 1)


def large_fits(call: OpCall) -> bool:
    """Whether `packed_gemm_large.cu` can multiply."""
    return few_fit(call) and step_fits(call, panel(call)) and (call["x"].dtype == "fp8" or not group_of(call) or scales_in_range(call))


def launch_large(builder: Builder, tuned: Mapping[str, int], covered: int) -> int:
    """Adds launches of the kernel of many tokens, for more than `covered`. Returns the number of tokens up to which they serve."""
    call = builder.call
    last = tuned[LARGE_TO] if large_fits(call) else 0
    sizes = [size for size in LARGE_SIZES if size > covered]
    while sizes and last > covered:
        tile = _large_tile(tuned, sizes[0])
        while len(sizes) > 1 and _large_tile(tuned, sizes[1]) == tile:
            sizes.pop(0)
        most = min(last, sizes.pop(0) if len(sizes) > 1 else NO_LIMIT)
        _launch_large_tile(builder, tile, within(call["x"].shape[0], covered, most))
        covered = most
    return covered


def _large_tile(tuned: Mapping[str, int], size: int) -> LargeTile:
    rows, tokens, parts = large_names(size)
    return tuned[rows], tuned[tokens], tuned[parts]


def _launch_large_tile(builder: Builder, tile: LargeTile, here: Dim) -> None:
    """`here`: 1 in steps that this tile serves, else 0."""
    call, (rows, tokens, parts) = builder.call, tile
    group, columns, weight = group_of(call), panel(call), call["weight"]
    if tile not in large_tiles(call):
        raise KernelError(f"tile {tile} is none of {large_tiles(call)} of many tokens and packed weights")
    groups = 1 if not group or group >= columns else columns // group
    own = tokens // parts
    stored = 64 if rows == 128 and own >= 64 and tokens > 64 else min(own, 32)
    tables = tables_bytes(call, rows, groups)
    fixed = 8 * stored * (rows // 2 + 4) + (NF4_TABLE_BYTES if weight.dtype == "nf4" else 0) + 32 + (0 if group else tables)
    operands, beside = 128 * tokens + bytes_of(rows * columns, weight.dtype), 16 + (tables if group else 0)
    steps = ceil_div(ceil_div(weight.size(1), columns), parts)
    stages = min((SM_BYTES - RESERVED_BYTES - fixed) // (operands + beside), max(2, steps))
    ring = max(stages * operands, 4 * rows * own * max(parts - 1, 1))  # sums of the other blocks come to where operands were
    builder.launch(
        "packed_gemm_large.packed_gemm_large",
        {"X": Tma(call["x"], tokens, panel(call)), **operands_of(call)},
        grid=(product(_programs(call, tokens, ceil_div(call["weight"].size(0), rows), parts), here), parts),
        constexprs={
            **flags_of(call),
            "TOKENS": tokens,
            "COLUMNS": columns,
            "M_TILES": rows // 2 // TILE,
            "SPLITS": parts,
            "RING": stages,
            "TOKEN_GROUP": _TOKEN_GROUP // tokens,
            "FOLDED": bool(group) and call["x"].dtype != "fp8",
            "SHARED_BYTES": fixed + ring + stages * beside,
        },
        warps=12,
        cuda=True,
    )


def _programs(call: OpCall, tile_tokens: int, row_blocks: int, parts: int) -> Dim:
    """Clusters of a launch. Blocks that divide K have one tile each."""
    tokens = call["x"].shape[0]
    token_blocks: Dim = ceil_div(tokens, tile_tokens) if isinstance(tokens, int) else f"ceil_div({tokens}, {tile_tokens})"
    tiles = product(token_blocks, row_blocks)
    if parts > 1:
        return tiles
    return min(call.sm_count, tiles) if isinstance(tiles, int) else f"min({call.sm_count}, {tiles})"
