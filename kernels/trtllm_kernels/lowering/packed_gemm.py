"""Lowering of products with packed weights (`formats`), whatever the op.

On Hopper `cuda_kernels/packed_gemm.cu` takes up to 8 tokens, `cuda_kernels/packed_gemm_pipelined.cu` up to 128, one specialisation a padded
size, of which a step launches one or none, and `cuda_kernels/packed_gemm_large.cu` any number more. What none can multiply, or a tactic
does not let them, is decoded into a workspace, in the inputs' format, and the op runs as it does with a wide weight. All products of a step
share that memory, so an engine holds one wide weight at most, the widest, and only while it multiplies.

What counts in a tile: memory is waited for by whole warps, so each SM should have eight of them that decode, by more rows of the weight, by
K in turns, or by two blocks; x is read from L2 once by each block, so with many tokens blocks need many rows; and few long steps take fewer
instructions than many short ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace

from trtllm_kernels.dialect.dtypes import bytes_of, elements_in
from trtllm_kernels.dialect.expr import ceil_div, product
from trtllm_kernels.dialect.packing import TILE, check_shape, is_packed
from trtllm_kernels.dialect.types import Dim, Launch, Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import F32, I32, Builder, Bytes, OpCall, Parameter, Tma
from trtllm_kernels.lowering.packed_triton import launch_mma, mma_space, mma_tunables
from trtllm_kernels.lowering.skinny_gemm import NO_LIMIT, NORMS_TO
from trtllm_kernels.lowering.space import PREFILL, Choice, grid, table

LARGE_SIZES = (64, 128, 256, 512, 1024, 2048)
"""Numbers of tokens up to which one tile of the kernel of many tokens holds; the last also holds for more."""
LARGE_TILES = ((256, 128, 1), *((*tile, parts) for tile in ((128, 256), (128, 128), (256, 64), (128, 64)) for parts in (1, 2)))
"""(rows of the weight, tokens, blocks of a cluster that divide K)."""
LARGE_TO = "large_to"
"""Tunable: largest number of tokens for which that kernel is taken; 0: never."""
_TOKEN_GROUP = 2048
"""Tokens that go through all rows of the weight before others do."""
LargeTile = tuple[int, int, int]
PADDED = (8, 16, 32, 64, 128)
"""Tokens that a tile holds of the kernel of up to 8 tokens, the first, and of the pipelined one."""
PACKED_TO = "packed_to"
"""Tunable: largest number of tokens for which those kernels are taken; 0: never."""
_WIDE = ("bf16", "fp16")
_CODES = {"int4": 0, "int8": 1, "fp4": 2, "nf4": 3, "fp8": 4}
_SCALES = {"fp32": 0, "fp16": 1, "bf16": 2, "fp8": 3, "uint8": 4}
"""Numbers of `cuda_kernels/decode.cuh`; uint8 scales are powers of two."""
_SM_BYTES, _RESERVED_BYTES = 228 * 1024, 1024
_NORMED = 2
"""Tokens whose norm products take by default: each block has whole rows for it, and at 4 tokens steps are slower than with the norms'
kernels (docs/facts/kernels-packed-gemm.md)."""
_MANY_TIMES = 4
"""x has a ring of its own where its step has more than so many times the bytes of the weight's."""
_X_IN_FLIGHT = 2048
"""Bytes of a row, of more than 8 tokens, where x has a ring of its own."""
_FOLDED_FROM = 64
"""Tokens of a tile."""
_TABLE_BYTES = 32 * 1024
"""Of nf4's numbers."""


def has_packed_weight(call: OpCall) -> bool:
    """Whether an op's weight is codes in tiles."""
    return is_packed(call["weight"].dtype, call["x"].dtype)


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


def _group(call: OpCall) -> int:
    """Columns that have a scale in common; 0 if only rows have scales."""
    scale = call.get("group_scale")
    return 0 if scale is None else call["weight"].size(1) // scale.size(0)


def _step_fits(call: OpCall, columns: int) -> bool:
    """Whether the groups of scales divide a step or are whole numbers of steps."""
    group, k = _group(call), call["weight"].size(1)
    shortest = 32 if call["x"].dtype == "fp8" else 16
    return group in (0, k) or (group >= shortest and (group % columns == 0 or columns % group == 0))


def few_fit(call: OpCall) -> bool:
    """Whether `packed_gemm.cu` can multiply."""
    x, y = call["x"], call.outputs[0]
    zero = call.get("weight_zero")
    wide = {operand.dtype for operand in (call.get("bias"), call.get("residual")) if operand}
    wide |= set() if call.get("out_scale") else {y.dtype}
    return (
        call.capability == 90
        and call["weight"].dtype in _CODES
        and x.dtype in (*_WIDE, "fp8")
        and len(wide) <= 1
        and wide <= {*_WIDE}
        and (zero is None or (call.get("group_scale") is not None and zero.dtype == "bf16" and call["weight"].dtype in ("int4", "int8")))
        and _step_fits(call, 128)
    )


def packed_tunables(call: OpCall) -> dict[str, int]:
    """The defaults, for `OpCall.tuned`."""
    defaults = {
        PACKED_TO: 0 if not few_fit(call) else 64 if large_fits(call) and _many_rows(call) else PADDED[-1],
        LARGE_TO: NO_LIMIT if large_fits(call) else 0,
    }
    defaults |= {NORMS_TO: _NORMED} if few_fit(call) else {}
    defaults |= mma_tunables(call, _group(call))
    for size in LARGE_SIZES:
        defaults |= dict(zip(_large_names(size), _default_large(call, size), strict=True))
    for padded in PADDED:
        tile = _default(call, padded)
        defaults |= {_name(padded, field): getattr(tile, field) for field in _FIELDS}
    return defaults


_FIELDS = tuple(field.name for field in fields(Tile))[1:]


def _name(padded: int, field: str) -> str:
    return f"packed{padded}_{field}"


def _default(call: OpCall, padded: int) -> Tile:
    """As tuned on an H200 with int4 and w4a8."""
    if padded == PADDED[0]:
        return _default_of_one_token(call) or _default_of_8_tokens(call)
    tile = _default_pipelined(call, padded)
    shorter = replace(tile, columns=128)
    narrower = replace(shorter, turns=min(tile.turns, 2))
    return next((one for one in (tile, shorter, narrower) if _is_a_tile(call, one)), replace(shorter, turns=1))


def _default_of_8_tokens(call: OpCall) -> Tile:
    """With many rows, two warpgroups of a block multiply different rows; with few, different steps. Two blocks divide K where the rows
    alone would leave SMs idle."""
    columns = _default_columns(call)
    if _many_rows(call):
        return Tile(8, rows=128, blocks=2, columns=columns)
    if 2 * _row_tiles(call) <= call.sm_count:
        return Tile(8, rows=64, turns=4 if call["x"].dtype == "fp8" else 2, parts=2, columns=columns)
    return Tile(8, rows=64, turns=2, parts=2)


def _default_pipelined(call: OpCall, padded: int) -> Tile:
    """With many rows, a block has its SM's share of them, or half of that; with few, warpgroups take turns, as many as there are registers
    for, and two blocks divide K where there are half as many tiles of rows as SMs. Where x or the weight are too wide for its ring, a tile
    has shorter steps or fewer turns."""
    tiles, sms, columns = _row_tiles(call), call.sm_count, _default_columns(call)
    if _many_rows(call):
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
    halves = 2 * _row_tiles(call)
    waves = ceil_div(halves, 8 * call.sm_count)
    rows = TILE // 2 * ceil_div(halves, call.sm_count * waves)
    return rows if rows % TILE == 0 or call["weight"].size(0) % (2 * rows) == 0 else rows + TILE // 2


def _default_of_one_token(call: OpCall) -> Tile | None:
    """For int4 with few scales, all blocks run at once. Where SMs get equal shares of the rows, each SM has one block with its whole share;
    else up to three blocks share an SM. Where half of an SM holds all codes of a block of fp8 inputs, it leaves room to a block of the next
    kernel, with half the threads. None where the number of rows decides, as for more tokens."""
    tiles, sms = _row_tiles(call), call.sm_count
    if call["weight"].dtype != "int4" or not _few_scales(call):
        return None
    share = ceil_div(tiles, sms)
    if 4 < share <= 7 and tiles >= 0.95 * share * sms:
        return Tile(8, rows=TILE * share)
    if _many_rows(call):
        return None
    columns = _default_columns(call)
    if 4 * tiles <= 3 * sms:
        blocks = ceil_div(2 * tiles, sms)
        if call["x"].dtype == "fp8":
            if blocks == 2:
                return Tile(8, rows=64, turns=2, parts=2, blocks=2)
            of_block = bytes_of(TILE * call["weight"].size(1) // 2, "int4")
            return Tile(8, rows=64, turns=2, parts=2, blocks=2, columns=columns) if of_block < _SM_BYTES // 2 else None
        return Tile(8, rows=64, turns=2, parts=2, blocks=blocks, columns=columns)
    return Tile(8, rows=64, parts=2, blocks=min(ceil_div(2 * tiles, sms), 3), columns=columns)


def _default_columns(call: OpCall) -> int:
    """Columns of a step: 256 where they fit."""
    return 256 if _step_fits(call, 256) else 128


def _row_tiles(call: OpCall) -> int:
    """Tiles of 64 rows that the weight has."""
    return ceil_div(call["weight"].size(0), TILE)


def _few_scales(call: OpCall) -> bool:
    """Whether a step of 128 columns has one scale per row and no zero points, which leaves registers for more blocks or rows."""
    return (_group(call) == 0 or _group(call) >= 128) and call.get("weight_zero") is None


def _many_rows(call: OpCall) -> bool:
    """Whether each SM has more than two times 64 rows."""
    return _row_tiles(call) > 2 * call.sm_count


def _large_names(size: int) -> tuple[str, str, str]:
    return f"large{size}_rows", f"large{size}_tokens", f"large{size}_parts"


def _large_tiles(call: OpCall) -> tuple[LargeTile, ...]:
    """Those that have the registers for their sums."""
    by_sums = call["x"].dtype == "fp8" and _group(call) > 0
    return tuple(tile for tile in LARGE_TILES if not (by_sums and tile[:2] == (256, 128)))


def _default_large(call: OpCall, tokens: int) -> LargeTile:
    """As tuned on an H200 with int4 and w4a8. What is decoded is multiplied by as many tokens as possible. Two blocks divide K where all
    can run at once. Clusters of four were slower: 32 of them do not fit into the GPU."""
    n, sms = call["weight"].size(0), call.sm_count

    def fits(of_tile: int) -> bool:
        return 2 * ceil_div(tokens, of_tile) * ceil_div(n, 128) <= sms

    if tokens <= TILE:
        return (128, 64, 2) if fits(64) else (256, 64, 1)
    if tokens <= PADDED[-1] and not fits(128):
        return (128, 128, 1) if (256, 128, 1) not in _large_tiles(call) else (256, 128, 1)
    return (128, 128, 2) if fits(128) else (128, 256, 2) if fits(256) else (128, 256, 1)


def large_fits(call: OpCall) -> bool:
    """Whether `packed_gemm_large.cu` can multiply."""
    return few_fit(call) and _step_fits(call, _panel(call)) and (call["x"].dtype == "fp8" or not _group(call) or _in_range(call))


def _panel(call: OpCall) -> int:
    """Columns of x in 128 bytes: a step of the kernel of many tokens."""
    return elements_in(128, call["x"].dtype)


def packed_space(call: OpCall) -> tuple[Choice, ...]:
    """A tile for each padded size, and the number of tokens up to which they are taken."""
    if not few_fit(call):
        return mma_space(call, _group(call))
    columns = tuple(n for n in (128, 256) if _step_fits(call, n))
    few = [(64, 2, 2, 2), (64, 4, 1, 1), (64, 4, 2, 1), (128, 2, 1, 1), (128, 2, 2, 1)]
    few += [(64, 1, 1, 2), (64, 1, 2, 2), (64, 2, 1, 1), (64, 2, 2, 1), (64, 2, 1, 2), (128, 1, 1, 1), (128, 1, 1, 2), (128, 1, 2, 1)]
    some = [(64, 2, 2, 1), (64, 2, 2, 2), (64, 3, 1, 1), (64, 3, 2, 1), (64, 4, 1, 1), (64, 4, 2, 1)]
    some += [(128, 1, 1, 1), (128, 1, 1, 2), (128, 1, 2, 1), (192, 1, 1, 1), (224, 1, 1, 1), (256, 1, 1, 1)]

    def choice(padded: int) -> Choice:
        lines = [(*one, n) for one in (few if padded == PADDED[0] else some) for n in columns]
        if padded > PADDED[0]:
            lines = [line for line in lines if _is_a_tile(call, Tile(padded, *line))]
        return Choice(f"packed {padded}", table(tuple(_name(padded, field) for field in _FIELDS), *lines))

    def large(size: int) -> Choice:
        tiles = [(rows, of_tile, parts) for rows, of_tile, parts in _large_tiles(call) if of_tile < 2 * size]
        return Choice(f"large {size}", table(_large_names(size), *tiles), (PREFILL,), (size - size // 4, size))

    few_tokens = (*map(choice, PADDED), Choice("packed to", grid(**{PACKED_TO: (0, *PADDED)}), (PREFILL,), PADDED))
    if not large_fits(call):
        return few_tokens
    limits = Choice("large to", grid(**{LARGE_TO: (0, *LARGE_SIZES, NO_LIMIT)}), (PREFILL,), (*LARGE_SIZES, 2 * LARGE_SIZES[-1]))
    return (*few_tokens, *map(large, LARGE_SIZES), limits)


def packed_step_space(call: OpCall) -> tuple[Choice, ...]:
    """For whole decode steps: also for how many tokens a product takes the norm before it."""
    return (*packed_space(call), *([Choice("norms to", grid(**{NORMS_TO: (0, 1, _NORMED, PADDED[0])}))] if few_fit(call) else []))


def lower_packed(call: OpCall, lower_wide: Callable[[OpCall], Lowered]) -> Lowered:
    """Launches for any number of tokens. `lower_wide`: how the op runs with a wide weight."""
    weight = call["weight"]
    check_shape(weight.size(0), weight.size(1), weight.dtype)
    ours = packed_tunables(call)
    tuned = {**ours, **{name: value for name, value in call.tactic.items() if name in ours}}
    builder = Builder(call)
    covered = launch_mma(builder, tuned, _group(call), _layout(call)) or _launch_few(builder, tuned)
    covered = _launch_large(builder, tuned, covered)
    if covered == NO_LIMIT:
        return builder.finish()
    if isinstance(tokens := call["x"].shape[0], int) and tokens <= covered:
        return builder.finish()
    wide = _widened(builder, covered)
    rest = {name: value for name, value in call.tactic.items() if name not in ours}
    if covered:
        rest |= {"skinny_to": 0} | ({} if call.op == "linear_gelu" else {"gemv": 0})
    lowered = lower_wide(replace(wide, tactic=rest))
    builder.launches += [_beyond(launch, tokens, covered) for launch in lowered.launches]
    builder.kernels |= {spec.key: spec for spec in lowered.kernels}
    builder.workspaces |= lowered.workspaces
    return builder.finish()


def _launch_few(builder: Builder, tuned: Mapping[str, int]) -> int:
    """Adds launches of the kernels of up to 128 tokens. Returns the number of tokens up to which they serve."""
    call = builder.call
    most = min(tuned[PACKED_TO], PADDED[-1]) if few_fit(call) else 0
    for below, padded in zip((0, *PADDED), PADDED, strict=False):
        if below < most:
            tile = Tile(padded, *(tuned[_name(padded, field)] for field in _FIELDS))
            last = min(most, padded)
            for of_x, of_tile in _placed(call, tile) if padded == PADDED[0] else ():
                to = min(last, of_x.tokens)
                if below < to:
                    _launch(builder, of_tile, _within(call["x"].shape[0], below, to), of_x)
                    below = to
            if below < last:
                _launch(builder, tile, _within(call["x"].shape[0], below, last))
    return most


@dataclass(frozen=True)
class Placed:
    """How a block has all of its x before it multiplies: of up to `tokens`, in `rows` of shared memory. `normed`: it takes the norm itself.
    `subnormal`: codes are numbers as they are."""

    tokens: int
    rows: int
    normed: bool = False
    subnormal: bool = False


def packed_norms_to(call: OpCall) -> int:
    """Largest number of tokens of which this product can take the norm before it, as it is tuned; 0: none."""
    ours = packed_tunables(call)
    tuned = {**ours, **{name: value for name, value in call.tactic.items() if name in ours}}
    tile = _long_steps(call, Tile(PADDED[0], *(tuned[_name(PADDED[0], field)] for field in _FIELDS)))
    to = min(tuned.get(NORMS_TO, 0), tuned[PACKED_TO], PADDED[0])
    if to < 1 or tile.parts > 2:
        return 0
    return to if to > 1 and _whole_fits(call, tile, PADDED[0]) else int(_whole_fits(call, tile, 1))


def _placed(call: OpCall, tile: Tile) -> list[tuple[Placed, Tile]]:
    """Forms of the kernel of up to 8 tokens in which blocks have all of their x, those of fewer tokens first. x of one token is whole
    even if no norm makes it; in fp8, if blocks have equal parts of it in whole steps."""
    to = call.normed.to if call.normed else 0
    longer = _long_steps(call, tile)
    even = call["weight"].size(1) == longer.parts * longer.columns * _steps(call, longer)
    alone = (even or call["x"].dtype != "fp8") and _whole_fits(call, longer, 1)
    forms = [(Placed(1, 1, normed=to > 0, subnormal=_subnormal_fits(call, longer)), longer)] if to or alone else []
    return forms + ([(Placed(to, PADDED[0], normed=True), longer)] if to > 1 else [])


def _long_steps(call: OpCall, tile: Tile) -> Tile:
    """With steps as long as fit, if a thread has few registers in use: where all of x is there, none is waited for."""
    return replace(tile, columns=_default_columns(call)) if _few_scales(call) and tile.rows <= 2 * TILE else tile


def _steps(call: OpCall, tile: Tile) -> int:
    """Steps of K of a block."""
    return ceil_div(ceil_div(call["weight"].size(1), tile.columns), tile.parts)


def _shared_of(tile: Tile) -> int:
    """Bytes of shared memory that a block may have."""
    return _SM_BYTES // tile.blocks - _RESERVED_BYTES


def _subnormal_fits(call: OpCall, tile: Tile) -> bool:
    """Whether codes may be numbers as they are, which needs the sum of x of each group, by the lanes of a warp."""
    group, steps = _group(call), _steps(call, tile)
    last = ceil_div(call["weight"].size(1), tile.columns) - (tile.parts - 1) * steps
    whole_warps = steps * tile.columns % 256 == 0 and last * tile.columns % 256 == 0
    int4 = call["weight"].dtype == "int4" and call["x"].dtype == "bf16" and call.get("weight_zero") is None
    return int4 and whole_warps and group in (16, 32, 64, 128, 256) and group <= tile.columns


def _whole_fits(call: OpCall, tile: Tile, rows: int) -> bool:
    """Whether a block's x, as a whole in so many rows, leaves most of shared memory to its weights."""
    return bytes_of(_steps(call, tile) * tile.columns, call["x"].dtype) * rows <= _shared_of(tile) * 3 // 8


def _launch_large(builder: Builder, tuned: Mapping[str, int], covered: int) -> int:
    """Adds launches of the kernel of many tokens, for more than `covered`. Returns the number of tokens up to which they serve."""
    call = builder.call
    last = tuned[LARGE_TO] if large_fits(call) else 0
    sizes = [size for size in LARGE_SIZES if size > covered]
    while sizes and last > covered:
        tile = _large_tile(tuned, sizes[0])
        while len(sizes) > 1 and _large_tile(tuned, sizes[1]) == tile:
            sizes.pop(0)
        most = min(last, sizes.pop(0) if len(sizes) > 1 else NO_LIMIT)
        _launch_large_tile(builder, tile, _within(call["x"].shape[0], covered, most))
        covered = most
    return covered


def _large_tile(tuned: Mapping[str, int], size: int) -> LargeTile:
    rows, tokens, parts = _large_names(size)
    return tuned[rows], tuned[tokens], tuned[parts]


def _within(tokens: Dim, below: int, most: int) -> Dim:
    """1 from `below` + 1 to `most` tokens, else 0."""
    if isinstance(tokens, int):
        return int(below < tokens <= most)
    return f"max(0, min(1, {tokens} - {below}, {most + 1} - {tokens}))"


def _some_beyond(tokens: Dim, covered: int) -> Dim:
    """1 in a step of more than `covered` tokens, else 0."""
    return int(tokens > covered) if isinstance(tokens, int) else f"max(0, min(1, {tokens} - {covered}))"


def _beyond(launch: Launch, tokens: Dim, covered: int) -> Launch:
    """The launch in steps of more than `covered` tokens only."""
    x, y, z = launch.grid
    return launch if covered == 0 else replace(launch, grid=(product(x, _some_beyond(tokens, covered)), y, z))


def _launch(builder: Builder, tile: Tile, here: Dim, of_x: Placed | None = None) -> None:
    """`here`: 1 in steps that this tile serves, else 0. `of_x`: None where x comes step by step. Raises `KernelError` for a tile that the
    kernel does not have."""
    call = builder.call
    group, n = _group(call), call["weight"].size(0)
    if not _is_a_tile(call, tile):
        raise KernelError(f"tile {tile} is none of those for packed weights in groups of {group}")
    row_groups = ceil_div(tile.rows, TILE)
    x = Tma(call["x"], tile.tokens, _panel(call))
    values = {
        **_flags(call),
        "TOKENS": tile.tokens,
        "COLUMNS": tile.columns,
        "ROW_GROUPS": row_groups,
        "K_GROUPS": tile.turns,
        "SPLITS": tile.parts,
        "BLOCKS": tile.blocks,
        "FOLDED": _folded(call, tile.tokens),
    }
    if tile.tokens == PADDED[0]:
        w_stages, x_stages, shared_bytes = _rings(call, tile, of_x)
        norm = call.normed if of_x and of_x.normed else None
        operands = _operands(call)
        tokens = operands.pop("num_tokens")
        operands |= {"NormWeight": norm.weight if norm else call["x"], "NormScale": (norm and norm.out_scale) or call["x"]}
        builder.launch(
            "packed_gemm.packed_gemm",
            {"X": x, "XRows": norm.x if norm else call["x"], **operands, "eps": F32(norm.eps if norm else 0.0), "num_tokens": tokens},
            grid=(product(ceil_div(n, tile.rows), here), tile.parts),
            constexprs={
                **values,
                "W_STAGES": w_stages,
                "X_STAGES": x_stages,
                "WHOLE_X": of_x.rows if of_x else 0,
                "NORMED": of_x.tokens if of_x and norm else 0,
                "SUBNORMAL": of_x is not None and of_x.subnormal,
                "NORM_HALF": norm is not None and norm.x.dtype == "fp16",
                "SHARED_BYTES": shared_bytes,
            },
            warps=4 * row_groups * tile.turns + (3 if group else 2),
            cuda=True,
        )
    else:
        stages, x_stages, shared_bytes = _ring(call, tile)
        clusters = n // (2 * tile.rows) if tile.paired else ceil_div(n, tile.rows)
        builder.launch(
            "packed_gemm_pipelined.packed_gemm_pipelined",
            {"X": x, **_operands(call)},
            grid=(product(clusters, here), 2 if tile.paired else tile.parts),
            constexprs={**values, "PAIRED": tile.paired, "RING": stages, "X_RING": x_stages, "SHARED_BYTES": shared_bytes},
            warps=4 * (row_groups * tile.turns + 1),
            cuda=True,
        )


def _is_a_tile(call: OpCall, tile: Tile) -> bool:
    """Whether the kernel has the tile; for that of 9 to 128 tokens, also whether its ring fits into shared memory."""
    whole = tile.rows % TILE == 0 or (tile.paired and call["weight"].size(0) % (2 * tile.rows) == 0)
    if not whole or tile.parts not in (1, 2, 4) or tile.tokens // tile.parts < 4 or not _step_fits(call, tile.columns):
        return False
    return tile.tokens == PADDED[0] or _ring(call, tile)[2] <= _shared_of(tile)


def _groups(call: OpCall, tile: Tile) -> int:
    """Groups of scales in a step."""
    group = _group(call)
    return 1 if not group or group >= tile.columns else tile.columns // group


def _operands(call: OpCall) -> dict[str, Parameter]:
    """Those behind x."""
    x = call["x"]
    return {
        "W": call["weight"],
        "GroupScale": call.get("group_scale") or x,
        "WeightZero": call.get("weight_zero") or x,
        "Bias": call.get("bias") or x,
        "Residual": call.get("residual") or x,
        "XScale": call.get("x_scale") or x,
        "WScale": call.get("weight_scale") or x,
        "OutScale": call.get("out_scale") or x,
        "Y": call.outputs[0],
        "num_tokens": I32(x.shape[0]),
    }


def _flags(call: OpCall) -> dict[str, int]:
    """Macros that do not depend on a tile."""
    x, weight, scale, bias, residual = call["x"], call["weight"], call.get("group_scale"), call.get("bias"), call.get("residual")
    x_scale, w_scale, quantize = call.get("x_scale"), call.get("weight_scale"), call.get("out_scale") is not None
    wide = bias or residual or (None if quantize else call.outputs[0])
    return {
        "N": weight.size(0),
        "K": weight.size(1),
        "FP8": x.dtype == "fp8",
        "HALF": x.dtype == "fp16",
        "OUT_HALF": wide is not None and wide.dtype == "fp16",
        "ACT": call.activation,
        "CODES": _CODES[weight.dtype],
        "GROUP": _group(call),
        "ZEROS": call.get("weight_zero") is not None,
        "SCALE_TYPE": _SCALES[scale.dtype] if scale else 0,
        "X_SCALES": len(x_scale.shape) if x_scale and x.dtype == "fp8" else 0,
        "W_SCALES": len(w_scale.shape) if w_scale else 0,
        "BIASED": bias is not None,
        "ADDED": residual is not None,
        "QUANTIZE": quantize,
    }


def _launch_large_tile(builder: Builder, tile: LargeTile, here: Dim) -> None:
    """`here`: 1 in steps that this tile serves, else 0."""
    call, (rows, tokens, parts) = builder.call, tile
    group, columns, weight = _group(call), _panel(call), call["weight"]
    if tile not in _large_tiles(call):
        raise KernelError(f"tile {tile} is none of {_large_tiles(call)} of many tokens and packed weights")
    groups = 1 if not group or group >= columns else columns // group
    own = tokens // parts
    stored = 64 if rows == 128 and own >= 64 and tokens > 64 else min(own, 32)
    tables = _tables_bytes(call, rows, groups)
    fixed = 8 * stored * (rows // 2 + 4) + (_TABLE_BYTES if weight.dtype == "nf4" else 0) + 32 + (0 if group else tables)
    operands, beside = 128 * tokens + bytes_of(rows * columns, weight.dtype), 16 + (tables if group else 0)
    steps = ceil_div(ceil_div(weight.size(1), columns), parts)
    stages = min((_SM_BYTES - _RESERVED_BYTES - fixed) // (operands + beside), max(2, steps))
    ring = max(stages * operands, 4 * rows * own * max(parts - 1, 1))  # sums of the other blocks come to where operands were
    builder.launch(
        "packed_gemm_large.packed_gemm_large",
        {"X": Tma(call["x"], tokens, _panel(call)), **_operands(call)},
        grid=(product(_programs(call, tokens, ceil_div(call["weight"].size(0), rows), parts), here), parts),
        constexprs={
            **_flags(call),
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


def _folded(call: OpCall, tokens: int) -> bool:
    """Whether scales of groups are factors of the codes. Of fp4 that is exact. Of others it rounds as a weight made wide does; it costs the
    same whatever the tokens, where scaling sums costs as much for 64 of them and waits for the products of each group."""
    x, scale = call["x"], call.get("group_scale")
    if scale is None or x.dtype == "fp8" or not _in_range(call):
        return False
    exact = call["weight"].dtype == "fp4" and scale.dtype in ("fp8", "uint8")
    return exact or tokens >= _FOLDED_FROM


def _in_range(call: OpCall) -> bool:
    """Whether scales of groups are numbers of the inputs' format, but for their last bits."""
    return call["x"].dtype == "bf16" or call["group_scale"].dtype in ("fp16", "fp8")


def _rings(call: OpCall, tile: Tile, of_x: Placed | None = None) -> tuple[int, int, int]:
    """(stages of the weight's ring, stages of x's, bytes of shared memory), as `Shared` of the kernel lays them out."""
    weight, x = call["weight"], call["x"]
    n_rows, owners = tile.rows, 2 * tile.rows
    x_row = bytes_of(tile.columns, x.dtype)
    steps = _steps(call, tile)
    received = (tile.parts - 1) * 4 * owners * tile.tokens // 2 // tile.parts
    fixed = received + 4 * (n_rows if (scale := call.get("weight_scale")) and len(scale.shape) == 2 else 4) + 64
    fixed += _TABLE_BYTES if weight.dtype == "nf4" else 0
    tables = _tables_bytes(call, n_rows, _groups(call, tile))
    w_stage = bytes_of(n_rows * tile.columns, weight.dtype) + 16 + (tables if _group(call) else 0)
    fixed += 0 if _group(call) else tables
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


def _ring(call: OpCall, tile: Tile) -> tuple[int, int, int]:
    """(stages of the weight's ring, stages of x's, bytes of shared memory), as `Shared` of `packed_gemm_pipelined.cu` lays them out.
    Rings of as many stages are one."""
    weight, x, scale = call["weight"], call["x"], call.get("weight_scale")
    rows = ceil_div(tile.rows, TILE) * TILE
    sums_of_rows = 4 * 2 * rows * tile.tokens // 2  # of a warpgroup for each 64 rows
    tables = _tables_bytes(call, rows, _groups(call, tile))
    fixed = 4 * TILE * tile.tokens if tile.paired else (tile.parts - 1) * sums_of_rows // tile.parts
    fixed += 4 * (rows if scale and len(scale.shape) == 2 else 4) + 80
    fixed += (_TABLE_BYTES if weight.dtype == "nf4" else 0) + (0 if _group(call) else tables)
    x_bytes, w_bytes = bytes_of(tile.columns, x.dtype) * tile.tokens, bytes_of(rows * tile.columns, weight.dtype)
    beside = 16 + (tables if _group(call) else 0)
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


def _tables_bytes(call: OpCall, rows: int, groups: int) -> int:
    """Scales and zero points of a step, as `Tables` of the kernels lays them out."""
    scale = call.get("group_scale")
    return rows * ((bytes_of(1, scale.dtype) if scale else 4) * groups + (2 * groups if call.get("weight_zero") else 1))


def _widened(builder: Builder, covered: int) -> OpCall:
    """The op with its weight, and fp8 inputs, made wide in workspaces by launches that are added."""
    call = builder.call
    x, weight, tokens = call["x"], call["weight"], call["x"].shape[0]
    scale, zero, x_scale, w_scale = (call.get(name) for name in ("group_scale", "weight_zero", "x_scale", "weight_scale"))
    n, k, fp8, more = weight.size(0), weight.size(1), x.dtype == "fp8", _some_beyond(tokens, covered)
    wide_x = x
    by_row = fp8 and x_scale is not None and len(x_scale.shape) == 2
    if fp8:
        wide_x = builder.workspace("x", (tokens, k), "bf16")
        block = min(1024, k & -k)
        builder.launch(
            "packed.widen",
            {"X": x, "XScale": x_scale or x, "Y": wide_x},
            grid=(product(tokens, more), k // block),
            constexprs={"N": k, "BLOCK": block, "SCALED": by_row},
            warps=4,
        )
    wide = builder.workspace("weight", (n, k), wide_x.dtype)
    builder.launch(
        "packed.widen_weight",
        {
            "W": Bytes(weight),
            "GroupScale": Bytes(scale or x),
            "WeightZero": zero or x,
            "WScale": w_scale or x,
            "XScale": x_scale or x,
            "Y": wide,
        },
        grid=(product(k // TILE, more), n // TILE),
        constexprs={
            "N": n,
            "K": k,
            "GROUP": _group(call),
            "FORMAT": _layout(call),
            "E8M0": scale is not None and scale.dtype == "uint8",
            "ZERO": zero is not None,
            "SCALED": len(w_scale.shape) if w_scale else 0,
            "X_SCALED": fp8 and x_scale is not None and not by_row,
        },
        warps=4,
        serialize_next=True,
    )
    narrow = ("x_scale", "weight_scale", "group_scale", "weight_zero")
    inputs = {name: None if name in narrow else operand for name, operand in call.inputs.items()}
    return replace(call, inputs={**inputs, "x": wide_x, "weight": wide})


def _layout(call: OpCall) -> str:
    """Name of the order of codes, as `triton_kernels/packed.py` knows it."""
    dtype, inputs = call["weight"].dtype, call["x"].dtype
    if dtype == "int4" and inputs == "fp8":
        return "int4_fp8"
    return "fp4_fp16" if dtype == "fp4" and inputs == "fp16" else dtype
