"""Lowering of products with packed weights where Hopper's kernels are not (A100, L40S): `triton_kernels/packed_few.py`, up to 256 tokens.

One specialisation a padded number of tokens, of which a step launches one or none; 128 and 256 are 64 in two and in four programs, each of
which decodes the weight anew. One made wide is decoded once a step, but costs 4 bytes a weight more, written and read. By the step model
that is even with 256 tokens on an A100, where the library takes over, and with some 450 on an L40S.

No tile is tuned yet, since these GPUs have not run it; on an H200 more stages and parts were faster. A program reads 4 KB a step, K is
split where rows are too few for some programs an SM, and as many stages are in flight as let all programs run at once. On Hopper, where
tests force this kernel, two warps keep `tl.dot` from wgmma, whose operand is not in this order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from trtllm_kernels.dialect.dtypes import FP8_CAPABILITY, bits_of, bytes_of
from trtllm_kernels.dialect.expr import ceil_div, product
from trtllm_kernels.dialect.types import Dim
from trtllm_kernels.lowering.call import I32, Builder, Bytes, OpCall, Operand, Parameter, shared_limit
from trtllm_kernels.lowering.skinny_gemm import within
from trtllm_kernels.lowering.space import PREFILL, Choice, grid, table

MMA_TO = "mma_to"
"""Tunable: largest number of tokens for which this kernel is taken; 0: never."""
MMA_PADDED = (16, 32, 64, 128, 256)
MMA_TILE_TOKENS = 64
"""Tokens of the largest tile; each tile decodes the weight once."""
_PROGRAMS = {16: 3.5, 32: 2.5}
"""Programs for each SM, of these numbers of tokens; of more 2. Then K is not split further."""
_STAGES = (6, 5, 4)
_SPLITS = (1, 2, 3, 4, 6, 8)
_LEAST_STEPS = 4
"""Steps of K that a part has."""
_SUM_BLOCK = 256
"""Columns of a token per program that adds the parts."""


@dataclass(frozen=True)
class MmaTile:
    """`rows` of the weight and `columns` of a step, per program; parts of K."""

    rows: int
    columns: int
    warps: int
    stages: int
    splits: int


_FIELDS = tuple(field.name for field in fields(MmaTile))


def mma_takes(inputs: str, weight: str, group: int, capability: int) -> bool:
    """Whether `packed_few.py` multiplies a packed weight of such types. `group`: columns that have a scale in common, 0 if only rows do."""
    if inputs == "fp8":
        return capability >= FP8_CAPABILITY and weight == "int4" and group % 64 == 0
    return inputs in ("bf16", "fp16") and (group % 64 == 0 or group in (16, 32))


def mma_fits(call: OpCall, group: int) -> bool:
    return mma_takes(call["x"].dtype, call["weight"].dtype, group, call.capability)


def mma_tunables(call: OpCall, group: int) -> dict[str, int]:
    """The defaults, for `OpCall.tuned`."""
    defaults = {MMA_TO: MMA_PADDED[-1] if call.capability < 90 and mma_fits(call, group) else 0}
    for padded in MMA_PADDED:
        tile = _default(call, group, padded)
        defaults |= {_name(padded, field): getattr(tile, field) for field in _FIELDS}
    return defaults


def mma_space(call: OpCall, group: int) -> tuple[Choice, ...]:
    """A tile for each padded size, and the number of tokens up to which they are taken."""
    if call.capability >= 90 or not mma_fits(call, group):
        return ()

    def choice(padded: int) -> Choice:
        tile = _default(call, group, padded)
        splits = (1, 2, 4, 8) if call.op == "linear" else (1,)
        lines = [(rows, tile.columns, warps, tile.stages, parts) for rows, warps in _row_warps(call) for parts in splits]
        lines += [(tile.rows, tile.columns, tile.warps, stages, tile.splits) for stages in (3, 6)]
        return Choice(f"mma {padded}", table(tuple(_name(padded, field) for field in _FIELDS), *lines))

    return (*map(choice, MMA_PADDED), Choice("mma to", grid(**{MMA_TO: (0, *MMA_PADDED)}), (PREFILL,), MMA_PADDED))


def _name(padded: int, field: str) -> str:
    return f"mma{padded}_{field}"


def _row_warps(call: OpCall) -> tuple[tuple[int, int], ...]:
    """(rows, warps) of programs: with 64 rows 4 warps decode a tile at once, with 2 they share x."""
    return ((64, 4), (64, 2), (128, 4)) if call["weight"].size(0) % 128 == 0 else ((64, 4), (64, 2))


def _folded(call: OpCall, group: int, padded: int) -> bool:
    """Whether scales of groups are factors of the codes, rounded to the inputs' format: those shorter than a step, and where sums are many
    all that the format holds but for their last bits."""
    if not group or call["x"].dtype == "fp8":
        return False
    in_range = call["x"].dtype == "bf16" or call["group_scale"].dtype in ("fp16", "fp8")
    return group < 64 or (in_range and padded >= (32 if group < 128 else MMA_TILE_TOKENS))


def _default(call: OpCall, group: int, padded: int) -> MmaTile:
    weight = call["weight"]
    n, k = weight.size(0), weight.size(1)
    long = k % 128 == 0 and group % 128 == 0 and bits_of(weight.dtype) == 4 and not _folded(call, group, padded)
    columns = 128 if long and (padded < MMA_TILE_TOKENS or call["x"].dtype == "fp8") else 64
    rows, warps = (64, 2) if call.capability == 90 else (64, 4) if padded == 16 else _row_warps(call)[-1]
    splits, programs = 1, ceil_div(padded, MMA_TILE_TOKENS) * n // rows
    if call.op == "linear":
        enough = _PROGRAMS.get(padded, 2.0) * call.sm_count
        able = [parts for parts in _SPLITS if parts * _LEAST_STEPS * columns <= k] or [1]
        splits = next((parts for parts in able if parts * programs >= enough), able[-1])
    step = bytes_of(rows * columns, weight.dtype) + bytes_of(min(padded, MMA_TILE_TOKENS) * columns, call["x"].dtype)
    room = (shared_limit(call.arch) + 1024) // ceil_div(splits * programs, call.sm_count) - 1024
    stages = next((stages for stages in _STAGES if (stages - 1) * step <= room), _STAGES[-1])
    return MmaTile(rows, columns, warps, stages, splits)


def launch_mma(builder: Builder, tuned: Mapping[str, int], group: int, layout: str) -> int:
    """Adds launches of the kernel. Returns the number of tokens up to which they serve. `layout`: of codes, as `packed.py` names it."""
    call = builder.call
    most = min(tuned[MMA_TO], MMA_PADDED[-1]) if mma_fits(call, group) else 0
    sizes = [padded for below, padded in zip((0, *MMA_PADDED), MMA_PADDED, strict=False) if below < most]
    tiles = {padded: MmaTile(*(tuned[_name(padded, field)] for field in _FIELDS)) for padded in sizes}
    part_rows = max((tile.splits * padded for padded, tile in tiles.items() if tile.splits > 1), default=0)
    parts = builder.workspace("parts", (part_rows, call["weight"].size(0))) if part_rows and call.op == "linear" else None
    for below, padded in zip((0, *sizes), sizes, strict=False):
        here = within(call["x"].shape[0], below, min(most, padded))
        constexprs = {**_format(call, group, layout), "FOLDED": _folded(call, group, padded), "TOKENS": min(padded, MMA_TILE_TOKENS)}
        _launch(builder, tiles[padded], constexprs, here, parts if tiles[padded].splits > 1 else None)
    return most


def _launch(builder: Builder, tile: MmaTile, constexprs: Mapping[str, int | str | bool], here: Dim, parts: Operand | None) -> None:
    """`here`: 1 in steps that this tile serves, else 0. `parts`: where sums go if K is split."""
    call = builder.call
    x, n, tokens, y = call["x"], call["weight"].size(0), call["x"].shape[0], call.outputs[0]
    blocks = ceil_div(tokens, MMA_TILE_TOKENS) if isinstance(tokens, int) else f"ceil_div({tokens}, {MMA_TILE_TOKENS})"
    splits = tile.splits if parts else 1
    builder.launch(
        "packed_few.packed_few",
        {**_operands(call), "Y": parts or y, "num_tokens": I32(tokens)},
        grid=(product(blocks, here), n // tile.rows, splits),
        constexprs={
            **constexprs,
            "BLOCK_N": tile.rows,
            "BLOCK_K": tile.columns,
            "SPLITS": splits,
            **(_endings(call) if parts is None else {"ACT": 0, "BIASED": False, "ADDED": False, "QUANTIZE": False}),
        },
        warps=tile.warps,
        stages=tile.stages,
    )
    if parts is None:
        return
    endings = _endings(call)
    builder.launch(
        "skinny_gemm.skinny_sum",
        {
            "Parts": parts,
            "Bias": call.get("bias") or x,
            "Residual": call.get("residual") or x,
            "XScale": x,
            "WScale": x,
            "Y": y,
            "num_tokens": I32(tokens),
        },
        grid=(product(ceil_div(n, _SUM_BLOCK), here), tokens),
        constexprs={
            "N": n,
            "BLOCK": _SUM_BLOCK,
            "SPLITS": splits,
            "SCALED": False,
            "SCALED_ROWS": False,
            "BIASED": endings["BIASED"],
            "ADDED": endings["ADDED"],
        },
        warps=4,
    )


def _operands(call: OpCall) -> dict[str, Parameter]:
    x = call["x"]
    optional = ("weight_zero", "bias", "residual", "x_scale", "weight_scale", "out_scale")
    names = ("WeightZero", "Bias", "Residual", "XScale", "WScale", "OutScale")
    codes = {"W": Bytes(call["weight"]), "GroupScale": Bytes(call.get("group_scale") or x)}
    return {"X": x, **codes, **{name: call.get(argument) or x for name, argument in zip(names, optional, strict=True)}}


def _format(call: OpCall, group: int, layout: str) -> dict[str, int | str | bool]:
    scale, x_scale, w_scale = call.get("group_scale"), call.get("x_scale"), call.get("weight_scale")
    return {
        "N": call["weight"].size(0),
        "K": call["weight"].size(1),
        "GROUP": group,
        "FORMAT": layout,
        "E8M0": scale is not None and scale.dtype == "uint8",
        "ZERO": call.get("weight_zero") is not None,
        "X_SCALES": len(x_scale.shape) if x_scale and call["x"].dtype == "fp8" else 0,
        "W_SCALES": len(w_scale.shape) if w_scale else 0,
    }


def _endings(call: OpCall) -> dict[str, int | bool]:
    """What is done to sums before they are stored."""
    return {
        "ACT": call.activation,
        "BIASED": call.get("bias") is not None,
        "ADDED": call.get("residual") is not None,
        "QUANTIZE": call.get("out_scale") is not None,
    }
