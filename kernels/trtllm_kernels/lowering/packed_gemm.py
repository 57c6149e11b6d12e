"""Lowering of products with packed weights (`formats`), whatever the op.

On Hopper `cuda_kernels/packed_gemm.cu` takes up to 8 tokens, `cuda_kernels/packed_gemm_pipelined.cu` up to 128, one specialisation a padded
size, of which a step launches one or none, and `cuda_kernels/packed_gemm_large.cu` any number more. What none can multiply, or a tactic
does not let them, is decoded into a workspace, in the inputs' format, and the op runs as it does with a wide weight. All products of a step
share that memory, so an engine holds one wide weight at most, the widest, and only while it multiplies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from trtllm_kernels.dialect.expr import ceil_div, product
from trtllm_kernels.dialect.packing import TILE, check_shape
from trtllm_kernels.dialect.types import Dim, Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import F32, Builder, Bytes, OpCall, Tma
from trtllm_kernels.lowering.packed_call import (
    beyond,
    few_fit,
    flags_of,
    group_of,
    layout_of,
    many_rows,
    operands_of,
    panel,
    scales_in_range,
    some_beyond,
    step_fits,
    within,
)
from trtllm_kernels.lowering.packed_large import LARGE_SIZES, LARGE_TO, default_large, large_fits, large_names, large_tiles, launch_large
from trtllm_kernels.lowering.packed_tiles import (
    PADDED,
    TILE_FIELDS,
    Placed,
    Tile,
    default_tile,
    few_rings,
    is_a_tile,
    pipelined_rings,
    placed_forms,
    tunable_name,
    whole_fits,
    with_long_steps,
)
from trtllm_kernels.lowering.packed_triton import launch_mma, mma_space, mma_tunables
from trtllm_kernels.lowering.skinny_gemm import NO_LIMIT, NORMS_TO
from trtllm_kernels.lowering.space import PREFILL, Choice, grid, table

PACKED_TO = "packed_to"
"""Tunable: largest number of tokens for which the kernels of up to 128 tokens are taken; 0: never."""
_NORMED = 2
"""Tokens whose norm products take by default: each block has whole rows for it, and at 4 tokens steps are slower than with the norms'
kernels (docs/facts/kernels-packed-few-tokens.md)."""
_FOLDED_FROM = 64
"""Tokens of a tile from which scales of groups are factors of the codes."""


def packed_tunables(call: OpCall) -> dict[str, int]:
    """The defaults, for `OpCall.tuned`."""
    defaults = {
        PACKED_TO: 0 if not few_fit(call) else 64 if large_fits(call) and many_rows(call) else PADDED[-1],
        LARGE_TO: NO_LIMIT if large_fits(call) else 0,
    }
    defaults |= {NORMS_TO: _NORMED} if few_fit(call) else {}
    defaults |= mma_tunables(call, group_of(call))
    for size in LARGE_SIZES:
        defaults |= dict(zip(large_names(size), default_large(call, size), strict=True))
    for padded in PADDED:
        tile = default_tile(call, padded)
        defaults |= {tunable_name(padded, field): getattr(tile, field) for field in TILE_FIELDS}
    return defaults


def packed_space(call: OpCall) -> tuple[Choice, ...]:
    """A tile for each padded size, and the number of tokens up to which they are taken."""
    if not few_fit(call):
        return mma_space(call, group_of(call))
    columns = tuple(n for n in (128, 256) if step_fits(call, n))
    few = [(64, 2, 2, 2), (64, 4, 1, 1), (64, 4, 2, 1), (128, 2, 1, 1), (128, 2, 2, 1)]
    few += [(64, 1, 1, 2), (64, 1, 2, 2), (64, 2, 1, 1), (64, 2, 2, 1), (64, 2, 1, 2), (128, 1, 1, 1), (128, 1, 1, 2), (128, 1, 2, 1)]
    some = [(64, 2, 2, 1), (64, 2, 2, 2), (64, 3, 1, 1), (64, 3, 2, 1), (64, 4, 1, 1), (64, 4, 2, 1)]
    some += [(128, 1, 1, 1), (128, 1, 1, 2), (128, 1, 2, 1), (192, 1, 1, 1), (224, 1, 1, 1), (256, 1, 1, 1)]

    def choice(padded: int) -> Choice:
        lines = [(*one, n) for one in (few if padded == PADDED[0] else some) for n in columns]
        if padded > PADDED[0]:
            lines = [line for line in lines if is_a_tile(call, Tile(padded, *line))]
        return Choice(f"packed {padded}", table(tuple(tunable_name(padded, field) for field in TILE_FIELDS), *lines))

    def large(size: int) -> Choice:
        tiles = [(rows, of_tile, parts) for rows, of_tile, parts in large_tiles(call) if of_tile < 2 * size]
        return Choice(f"large {size}", table(large_names(size), *tiles), (PREFILL,), (size - size // 4, size))

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
    covered = launch_mma(builder, tuned, group_of(call), layout_of(call)) or _launch_few(builder, tuned)
    covered = launch_large(builder, tuned, covered)
    if covered == NO_LIMIT:
        return builder.finish()
    if isinstance(tokens := call["x"].shape[0], int) and tokens <= covered:
        return builder.finish()
    wide = _widened(builder, covered)
    rest = {name: value for name, value in call.tactic.items() if name not in ours}
    if covered:
        rest |= {"skinny_to": 0} | ({} if call.op == "linear_gelu" else {"gemv": 0})
    lowered = lower_wide(replace(wide, tactic=rest))
    builder.launches += [beyond(launch, tokens, covered) for launch in lowered.launches]
    builder.kernels |= {spec.key: spec for spec in lowered.kernels}
    builder.workspaces |= lowered.workspaces
    return builder.finish()


def _launch_few(builder: Builder, tuned: Mapping[str, int]) -> int:
    """Adds launches of the kernels of up to 128 tokens. Returns the number of tokens up to which they serve."""
    call = builder.call
    most = min(tuned[PACKED_TO], PADDED[-1]) if few_fit(call) else 0
    for below, padded in zip((0, *PADDED), PADDED, strict=False):
        if below < most:
            tile = Tile(padded, *(tuned[tunable_name(padded, field)] for field in TILE_FIELDS))
            last = min(most, padded)
            for of_x, of_tile in placed_forms(call, tile) if padded == PADDED[0] else ():
                to = min(last, of_x.tokens)
                if below < to:
                    _launch(builder, of_tile, within(call["x"].shape[0], below, to), of_x)
                    below = to
            if below < last:
                _launch(builder, tile, within(call["x"].shape[0], below, last))
    return most


def packed_norms_to(call: OpCall) -> int:
    """Largest number of tokens of which this product can take the norm before it, as it is tuned; 0: none."""
    ours = packed_tunables(call)
    tuned = {**ours, **{name: value for name, value in call.tactic.items() if name in ours}}
    tile = with_long_steps(call, Tile(PADDED[0], *(tuned[tunable_name(PADDED[0], field)] for field in TILE_FIELDS)))
    to = min(tuned.get(NORMS_TO, 0), tuned[PACKED_TO], PADDED[0])
    if to < 1 or tile.parts > 2:
        return 0
    return to if to > 1 and whole_fits(call, tile, PADDED[0]) else int(whole_fits(call, tile, 1))


def _launch(builder: Builder, tile: Tile, here: Dim, of_x: Placed | None = None) -> None:
    """`here`: 1 in steps that this tile serves, else 0. `of_x`: None where x comes step by step. Raises `KernelError` for a tile that the
    kernel does not have."""
    call = builder.call
    group, n = group_of(call), call["weight"].size(0)
    if not is_a_tile(call, tile):
        raise KernelError(f"tile {tile} is none of those for packed weights in groups of {group}")
    row_groups = ceil_div(tile.rows, TILE)
    x = Tma(call["x"], tile.tokens, panel(call))
    values = {
        **flags_of(call),
        "TOKENS": tile.tokens,
        "COLUMNS": tile.columns,
        "ROW_GROUPS": row_groups,
        "K_GROUPS": tile.turns,
        "SPLITS": tile.parts,
        "BLOCKS": tile.blocks,
        "FOLDED": _folded(call, tile.tokens),
    }
    if tile.tokens == PADDED[0]:
        w_stages, x_stages, shared_bytes = few_rings(call, tile, of_x)
        norm = call.normed if of_x and of_x.normed else None
        operands = operands_of(call)
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
        stages, x_stages, shared_bytes = pipelined_rings(call, tile)
        clusters = n // (2 * tile.rows) if tile.paired else ceil_div(n, tile.rows)
        builder.launch(
            "packed_gemm_pipelined.packed_gemm_pipelined",
            {"X": x, **operands_of(call)},
            grid=(product(clusters, here), 2 if tile.paired else tile.parts),
            constexprs={**values, "PAIRED": tile.paired, "RING": stages, "X_RING": x_stages, "SHARED_BYTES": shared_bytes},
            warps=4 * (row_groups * tile.turns + 1),
            cuda=True,
        )


def _folded(call: OpCall, tokens: int) -> bool:
    """Whether scales of groups are factors of the codes. Of fp4 that is exact. Of others it rounds as a weight made wide does; it costs the
    same whatever the tokens, where scaling sums costs as much for 64 of them and waits for the products of each group."""
    x, scale = call["x"], call.get("group_scale")
    if scale is None or x.dtype == "fp8" or not scales_in_range(call):
        return False
    exact = call["weight"].dtype == "fp4" and scale.dtype in ("fp8", "uint8")
    return exact or tokens >= _FOLDED_FROM


def _widened(builder: Builder, covered: int) -> OpCall:
    """The op with its weight, and fp8 inputs, made wide in workspaces by launches that are added."""
    call = builder.call
    x, weight, tokens = call["x"], call["weight"], call["x"].shape[0]
    scale, zero, x_scale, w_scale = (call.get(name) for name in ("group_scale", "weight_zero", "x_scale", "weight_scale"))
    n, k, fp8, more = weight.size(0), weight.size(1), x.dtype == "fp8", some_beyond(tokens, covered)
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
            "GROUP": group_of(call),
            "FORMAT": layout_of(call),
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
