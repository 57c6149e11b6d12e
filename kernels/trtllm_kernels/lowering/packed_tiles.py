"""Tiles of the two kernels of up to 128 tokens with packed weights: the defaults, what fits, and how they lay out shared memory.

What counts in a tile: memory is waited for by whole warps, so each SM should have eight of them that decode, by more rows of the weight, by
K in turns, or by two blocks; x is read from L2 once by each block, so with many tokens blocks need many rows; and few long steps take fewer
instructions than many short ones.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.dialect.expr import ceil_div
from trtllm_kernels.dialect.packing import TILE
from trtllm_kernels.lowering.call import OpCall
from trtllm_kernels.lowering.packed_call import (
    NF4_TABLE_BYTES,
    RESERVED_BYTES,
    SM_BYTES,
    few_scales,
    group_of,
    many_rows,
    row_tiles,
    step_fits,
    tables_bytes,
)

PADDED = (8, 16, 32, 64, 128)
"""Tokens that a tile holds of the kernel of up to 8 tokens, the first, and of the pipelined one."""
_MANY_TIMES = 4
"""x has a ring of its own where its step has more than so many times the bytes of the weight's."""
_X_IN_FLIGHT = 2048
"""Bytes of a row, of more than 8 tokens, where x has a ring of its own."""


@dataclass(frozen=True)
class Tile:
    """`rows` of the weight per block, 64 a warpgroup; 32 more than a multiple of that are half of a tile that two blocks have in common.
    `turns`: warpgroups that take every so many-th step of the same rows. `parts`: blocks that divide K. `blocks` share an SM. `columns`:
    of a step."""

    tokens: int
    rows: int
    turns: int = 1
    parts: int = 1
    blocks: int = 1
    columns: int = 128

    @property
    def paired(self) -> bool:
        """Whether two blocks have a tile of rows in common; K is theirs as a whole then."""
        return self.rows % TILE == TILE // 2 and self.parts == self.turns == 1 and self.tokens > PADDED[0]


TILE_FIELDS = tuple(field.name for field in fields(Tile))[1:]
"""What is tuned of a tile."""


def tunable_name(padded: int, field: str) -> str:
    return f"packed{padded}_{field}"


def default_tile(call: OpCall, padded: int) -> Tile:
    """As tuned on an H200 with int4 and w4a8."""
    if padded == PADDED[0]:
        return _default_of_one_token(call) or _default_of_8_tokens(call)
    tile = _default_pipelined(call, padded)
    shorter = replace(tile, columns=128)
    narrower = replace(shorter, turns=min(tile.turns, 2))
    return next((one for one in (tile, shorter, narrower) if is_a_tile(call, one)), replace(shorter, turns=1))


def _default_of_8_tokens(call: OpCall) -> Tile:
    """With many rows, two warpgroups of a block multiply different rows; with few, different steps. Two blocks divide K where the rows
    alone would leave SMs idle."""
    columns = _default_columns(call)
    if many_rows(call):
        return Tile(8, rows=128, blocks=2, columns=columns)
    if 2 * row_tiles(call) <= call.sm_count:
        return Tile(8, rows=64, turns=4 if call["x"].dtype == "fp8" else 2, parts=2, columns=columns)
    return Tile(8, rows=64, turns=2, parts=2)


def _default_pipelined(call: OpCall, padded: int) -> Tile:
    """With many rows, a block has its SM's share of them, or half of that; with few, warpgroups take turns, as many as there are registers
    for, and two blocks divide K where there are half as many tiles of rows as SMs. Where x or the weight are too wide for its ring, a tile
    has shorter steps or fewer turns."""
    tiles, sms, columns = row_tiles(call), call.sm_count, _default_columns(call)
    if many_rows(call):
        if padded <= 32:
            return Tile(padded, rows=128, blocks=2, columns=columns)
        return Tile(padded, rows=_share_of_rows(call)) if padded == 64 else Tile(padded, rows=128)
    parts = 2 if 2 * tiles <= sms else 1
    if padded <= 32:
        return Tile(padded, rows=64, turns=4, parts=2, columns=columns) if parts == 2 else Tile(padded, 64, 2, 2, 2, columns)
    if tiles > sms:
        return Tile(padded, rows=128, parts=2, columns=columns if padded == 64 else 128)
    fp8 = call["x"].dtype == "fp8"
    if padded == 64:
        long_steps = fp8 and ceil_div(call["weight"].size(1), 256) >= 16 * parts
        return Tile(64, rows=64, turns=3, parts=parts, columns=columns if long_steps else 128)
    if parts == 2:
        return Tile(padded, rows=64, turns=2, parts=2)
    return Tile(padded, rows=128, parts=2) if fp8 else Tile(padded, rows=64, turns=3)


def _share_of_rows(call: OpCall) -> int:
    """Rows of the blocks of 64 tokens, 256 at most: as few, to half a tile where pairs of blocks divide them all, as leave the number of
    blocks that an SM takes one after another."""
    halves = 2 * row_tiles(call)
    waves = ceil_div(halves, 8 * call.sm_count)
    rows = TILE // 2 * ceil_div(halves, call.sm_count * waves)
    return rows if rows % TILE == 0 or call["weight"].size(0) % (2 * rows) == 0 else rows + TILE // 2


def _default_of_one_token(call: OpCall) -> Tile | None:
    """For int4 with few scales, all blocks run at once. Where SMs get equal shares of the rows, each SM has one block with its whole share;
    else up to three blocks share an SM. Where half of an SM holds all codes of a block of fp8 inputs, it leaves room to a block of the next
    kernel, with half the threads. None where the number of rows decides, as for more tokens."""
    tiles, sms = row_tiles(call), call.sm_count
    if call["weight"].dtype != "int4" or not few_scales(call):
        return None
    share = ceil_div(tiles, sms)
    if 4 < share <= 7 and tiles >= 0.95 * share * sms:
        return Tile(8, rows=TILE * share)
    if many_rows(call):
        return None
    columns = _default_columns(call)
    if 4 * tiles <= 3 * sms:
        blocks = ceil_div(2 * tiles, sms)
        if call["x"].dtype == "fp8":
            if blocks == 2:
                return Tile(8, rows=64, turns=2, parts=2, blocks=2)
            of_block = bytes_of(TILE * call["weight"].size(1) // 2, "int4")
            return Tile(8, rows=64, turns=2, parts=2, blocks=2, columns=columns) if of_block < SM_BYTES // 2 else None
        return Tile(8, rows=64, turns=2, parts=2, blocks=blocks, columns=columns)
    return Tile(8, rows=64, parts=2, blocks=min(ceil_div(2 * tiles, sms), 3), columns=columns)


def _default_columns(call: OpCall) -> int:
    """Columns of a step: 256 where they fit."""
    return 256 if step_fits(call, 256) else 128


@dataclass(frozen=True)
class Placed:
    """How a block has all of its x before it multiplies: of up to `tokens`, in `rows` of shared memory. `normed`: it takes the norm itself.
    `subnormal`: codes are numbers as they are."""

    tokens: int
    rows: int
    normed: bool = False
    subnormal: bool = False


def placed_forms(call: OpCall, tile: Tile) -> list[tuple[Placed, Tile]]:
    """Forms of the kernel of up to 8 tokens in which blocks have all of their x, those of fewer tokens first. x of one token is whole
    even if no norm makes it; in fp8, if blocks have equal parts of it in whole steps."""
    to = call.normed.to if call.normed else 0
    longer = with_long_steps(call, tile)
    even = call["weight"].size(1) == longer.parts * longer.columns * _steps(call, longer)
    alone = (even or call["x"].dtype != "fp8") and whole_fits(call, longer, 1)
    forms = [(Placed(1, 1, normed=to > 0, subnormal=_subnormal_fits(call, longer)), longer)] if to or alone else []
    return forms + ([(Placed(to, PADDED[0], normed=True), longer)] if to > 1 else [])


def with_long_steps(call: OpCall, tile: Tile) -> Tile:
    """With steps as long as fit, if a thread has few registers in use: where all of x is there, none is waited for."""
    return replace(tile, columns=_default_columns(call)) if few_scales(call) and tile.rows <= 2 * TILE else tile


def _steps(call: OpCall, tile: Tile) -> int:
    """Steps of K of a block."""
    return ceil_div(ceil_div(call["weight"].size(1), tile.columns), tile.parts)


def _shared_of(tile: Tile) -> int:
    """Bytes of shared memory that a block may have."""
    return SM_BYTES // tile.blocks - RESERVED_BYTES


def _subnormal_fits(call: OpCall, tile: Tile) -> bool:
    """Whether codes may be numbers as they are, which needs the sum of x of each group, by the lanes of a warp."""
    group, steps = group_of(call), _steps(call, tile)
    last = ceil_div(call["weight"].size(1), tile.columns) - (tile.parts - 1) * steps
    whole_warps = steps * tile.columns % 256 == 0 and last * tile.columns % 256 == 0
    int4 = call["weight"].dtype == "int4" and call["x"].dtype == "bf16" and call.get("weight_zero") is None
    return int4 and whole_warps and group in (16, 32, 64, 128, 256) and group <= tile.columns


def whole_fits(call: OpCall, tile: Tile, rows: int) -> bool:
    """Whether a block's x, as a whole in so many rows, leaves most of shared memory to its weights."""
    return bytes_of(_steps(call, tile) * tile.columns, call["x"].dtype) * rows <= _shared_of(tile) * 3 // 8


def is_a_tile(call: OpCall, tile: Tile) -> bool:
    """Whether the kernel has the tile; for that of 9 to 128 tokens, also whether its ring fits into shared memory."""
    whole = tile.rows % TILE == 0 or (tile.paired and call["weight"].size(0) % (2 * tile.rows) == 0)
    if not whole or tile.parts not in (1, 2, 4) or tile.tokens // tile.parts < 4 or not step_fits(call, tile.columns):
        return False
    return tile.tokens == PADDED[0] or pipelined_rings(call, tile)[2] <= _shared_of(tile)


def _groups(call: OpCall, tile: Tile) -> int:
    """Groups of scales in a step."""
    group = group_of(call)
    return 1 if not group or group >= tile.columns else tile.columns // group


def few_rings(call: OpCall, tile: Tile, of_x: Placed | None = None) -> tuple[int, int, int]:
    """(stages of the weight's ring, stages of x's, bytes of shared memory), as `Shared` of the kernel lays them out."""
    weight, x = call["weight"], call["x"]
    n_rows, owners = tile.rows, 2 * tile.rows
    x_row = bytes_of(tile.columns, x.dtype)
    steps = _steps(call, tile)
    received = (tile.parts - 1) * 4 * owners * tile.tokens // 2 // tile.parts
    fixed = received + 4 * (n_rows if (scale := call.get("weight_scale")) and len(scale.shape) == 2 else 4) + 64
    fixed += NF4_TABLE_BYTES if weight.dtype == "nf4" else 0
    tables = tables_bytes(call, n_rows, _groups(call, tile))
    w_stage = bytes_of(n_rows * tile.columns, weight.dtype) + 16 + (tables if group_of(call) else 0)
    fixed += 0 if group_of(call) else tables
    fixed += of_x.tokens * owners * tile.turns // 4 if of_x and of_x.normed else 0
    if of_x and of_x.subnormal:
        fixed += 4 * of_x.rows * steps * _groups(call, tile)
    x_stage = x_row * (of_x.rows if of_x else tile.tokens) + 16
    room = _shared_of(tile) - fixed
    in_flight = 4096  # bytes of a row

    def ring(stages: int) -> int:
        """A whole number of stages for each warpgroup that takes turns: only its own phases of a barrier follow each other then."""
        return max(2, min(ceil_div(steps, tile.turns), stages // tile.turns)) * tile.turns

    x_stages = steps if of_x else ring(min(in_flight // x_row, room // 2 // x_stage))
    w_stages = ring((room - x_stages * x_stage) // w_stage)
    rings = x_stages * (x_stage - 16) + w_stages * bytes_of(n_rows * tile.columns, weight.dtype)
    rest = x_stages * x_stage + w_stages * w_stage - rings
    sums = 4 * tile.tokens // tile.parts * (n_rows + 4) + 4 * owners * max(1, tile.turns - 1) * (tile.tokens // 2 if tile.turns > 1 else 1)
    return w_stages, x_stages, ceil_div(max(rings, sums), 16) * 16 + rest + fixed


def pipelined_rings(call: OpCall, tile: Tile) -> tuple[int, int, int]:
    """(stages of the weight's ring, stages of x's, bytes of shared memory), as `Shared` of `packed_gemm_pipelined.cu` lays them out.
    Rings of as many stages are one."""
    weight, x, scale = call["weight"], call["x"], call.get("weight_scale")
    rows = ceil_div(tile.rows, TILE) * TILE
    sums_of_rows = 4 * 2 * rows * tile.tokens // 2  # of a warpgroup for each 64 rows
    tables = tables_bytes(call, rows, _groups(call, tile))
    fixed = 4 * TILE * tile.tokens if tile.paired else (tile.parts - 1) * sums_of_rows // tile.parts
    fixed += 4 * (rows if scale and len(scale.shape) == 2 else 4) + 80
    fixed += (NF4_TABLE_BYTES if weight.dtype == "nf4" else 0) + (0 if group_of(call) else tables)
    x_bytes, w_bytes = bytes_of(tile.columns, x.dtype) * tile.tokens, bytes_of(rows * tile.columns, weight.dtype)
    beside = 16 + (tables if group_of(call) else 0)
    each = 2 if tile.paired else tile.turns  # stages that are taken in turns
    turns = ceil_div(_steps(call, tile), each)
    room = _shared_of(tile) - fixed
    least = 1 if tile.paired else 2
    if x_bytes <= _MANY_TIMES * w_bytes or tile.paired:
        stages = x_stages = each * max(least, min(turns, room // (x_bytes + w_bytes + beside) // each))
    else:
        x_stage, w_stage = x_bytes + 16, w_bytes + beside
        x_most = min(room // 2 // x_stage, ceil_div(_X_IN_FLIGHT, bytes_of(tile.columns, x.dtype)))
        x_stages = each * max(least, min(turns, x_most // each))
        stages = each * max(least, min(turns, (room - x_stages * x_stage) // w_stage // each))
    sums = 4 * tile.tokens // tile.parts * (rows + 4) + (tile.turns - 1) * sums_of_rows
    operands = x_stages * x_bytes + stages * w_bytes
    x_barriers = 16 * x_stages if x_stages != stages else 0
    return stages, x_stages, ceil_div(max(operands, sums), 16) * 16 + x_barriers + stages * beside + fixed
