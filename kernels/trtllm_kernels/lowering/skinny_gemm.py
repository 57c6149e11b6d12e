"""Lowering of skinny GEMMs, those of few tokens: one kernel per padded size, of which a step launches one or none.

On Hopper it is `cuda_kernels/skinny_gemm.cu` where that fits, else `triton_kernels/skinny_gemm.py`, for up to 64 tokens.

What counts is how many bytes are in flight, and not that every SM has as many programs as the next. A tile is as low as the tensor core
allows, Triton's steps of K are as long as shared memory holds three of, and where there is at most one program for two SMs, K is split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from trtllm_kernels.dialect.dtypes import bytes_of, elements_in
from trtllm_kernels.dialect.expr import ceil_div
from trtllm_kernels.dialect.types import SKINNY_TOKENS, Dim
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import I32, Builder, OpCall, Operand, Parameter, Tma
from trtllm_kernels.lowering.skinny_gemm_cuda import (
    CUDA_ROWS,
    HEIGHTS,
    SAMPLED_HEIGHTS,
    CudaTile,
    keeps_rows,
    launch_cuda,
    sampling_parameters,
)
from trtllm_kernels.lowering.space import PREFILL, Choice, grid, table

IN_TRITON = (16, 32, 64)
PADDED = (8, *IN_TRITON, 96, SKINNY_TOKENS)
"""Tokens that a tile holds; these kernels take no more. Those that are not of `IN_TRITON` exist in CUDA C++ only, and where the tile of 16
is Triton's, it takes the tokens of that of 8."""
SKINNY_TO = "skinny_to"
"""Tunable: largest number of tokens for which these kernels are taken; 0: never."""
NORMS_TO = "norms_to"
"""Tunable: largest number of tokens whose norm a product takes itself, where nothing else reads it; 0: never."""
_NORMED = 4
"""Tokens whose norm products take by default (docs/facts/decode-steps.md)."""
LINE_BYTES = 128
_LONG_ROW_BYTES = 16384
_LONG_CUDA_ROW_BYTES = 8192
"""Rows for which, in CUDA C++, a block has an SM to itself at more tokens."""
_EVEN = 0.9
"""Share of the SMs that blocks of another height than 64 must keep busy."""
_SUM_BLOCK = 1024
"""Columns of a token per program that adds the parts."""


def skinny_tunables(call: OpCall) -> dict[str, int]:
    """The defaults, for `OpCall.tuned`."""
    defaults = {SKINNY_TO: IN_TRITON[-1] if call.op == "linear_sample" else skinny_sizes(call)[-1], NORMS_TO: _NORMED}
    for padded in PADDED:
        for name, value in ((_default(call, padded) if padded in IN_TRITON else {}) | _cuda_default(call, padded)).items():
            defaults[f"skinny{padded}_{name}"] = value
    return defaults


def skinny_sizes(call: OpCall) -> tuple[int, ...]:
    """Sizes of `PADDED` for which there are tiles."""
    return PADDED if skinny_cuda_fits(call) else IN_TRITON


def skinny_normed_to(call: OpCall, tuned: Mapping[str, int]) -> int:
    """Up to how many tokens the tile in CUDA C++ of the smallest size, which takes one token too, can take the norm of its rows."""
    tile = _cuda_tile(tuned, PADDED[0])
    fits = skinny_cuda_fits(call) and call["x"].dtype != "int8" and _cuda_takes_fewest(tuned) and keeps_rows(call, tile)
    return min(PADDED[0], tuned[NORMS_TO], tuned[SKINNY_TO]) if fits else 0


def _cuda_takes_fewest(tuned: Mapping[str, int]) -> bool:
    """Whether the tile of the smallest size takes its tokens."""
    return all(_cuda_tile(tuned, padded).blocks > 0 for padded in (PADDED[0], IN_TRITON[0]))


NO_LIMIT = 1 << 30
"""More tokens than any step has."""


def within(tokens: Dim, below: int, most: int) -> Dim:
    """1 from `below` + 1 to `most` tokens, else 0."""
    if isinstance(tokens, int):
        return int(below < tokens <= most)
    return f"max(0, min(1, {tokens} - {below}, {most + 1} - {tokens}))"


def skinny_fits(call: OpCall) -> bool:
    """TMA needs rows that are a multiple of 16 bytes; a weight smaller than the smallest tile is left to the library."""
    weight = call["weight"]
    row_bytes = bytes_of(weight.size(1), weight.dtype)
    return call.capability == 90 and weight.dtype != "fp32" and row_bytes % 16 == 0 and row_bytes >= 128 and weight.size(0) >= 64


def _default(call: OpCall, padded: int) -> dict[str, int]:
    """Chosen by trials on an H100 (QKV, O, down, gate_up and lm_head of Llama-3.1-8B, fp8 and bf16): nowhere 2% slower than the fastest
    tried.

    512 bytes of K in 3 stages, with K split by 2 where a program per 64 rows would leave every other SM idle. But with so few programs, a
    long row or 64 tokens is better read whole in steps of 256 bytes and 6 stages; and where 64 tokens have several programs per SM, 3
    stages of 256 bytes let two programs share it.
    """
    weight = call["weight"]
    row_bytes, tiles = bytes_of(weight.size(1), weight.dtype), ceil_div(weight.size(0), 64)
    k_bytes, stages, splits = 512, 3, 1
    if 2 * tiles > call.sm_count:
        k_bytes = 256 if padded == 64 and tiles > call.sm_count else 512
    elif padded == 64 or row_bytes > _LONG_ROW_BYTES:
        k_bytes, stages = 256, 6
    elif call.op == "linear" and row_bytes > k_bytes:
        splits = 2
    return {"rows": 64, "k": elements_in(k_bytes, weight.dtype), "warps": 4, "stages": stages, "splits": splits, "prefetch": 16}


def skinny_cuda_fits(call: OpCall) -> bool:
    """Whether the CUDA C++ version of `skinny_gemm` fits."""
    x, weight, y = call["x"], call["weight"], call.outputs[0]
    wide = [operand.dtype for operand in (call.get("bias"), call.get("residual")) if operand]
    wide += [] if call.get("out_scale") else [y.dtype]
    return skinny_fits(call) and x.dtype == weight.dtype and weight.size(0) % 16 == 0 and len({*wide}) <= 1 and {*wide} <= {"bf16", "fp16"}


def _cuda_default(call: OpCall, padded: int) -> dict[str, int]:
    """Chosen by layers of Llama-3.1-8B and of one of two ranks of Llama-3.1-70B in fp8 on an H200 (docs/facts/kernels-skinny-gemm.md).

    Where a block per 64 rows would leave every other SM idle, two blocks split K and have an SM each. Where it would leave fewer idle,
    blocks have rows for all SMs, and K is split so that one loads while the other waits for x or ends. Larger weights are divided so that
    the last wave of blocks is full, and long rows or few tokens have an SM's shared memory for themselves.
    """
    tiles, long = ceil_div(call["weight"].size(0), CUDA_ROWS), _row_bytes(call) >= _LONG_CUDA_ROW_BYTES
    fewest, few = padded <= IN_TRITON[0], padded <= IN_TRITON[-1]
    if not skinny_cuda_fits(call):
        blocks, parts, height = 0, 1, CUDA_ROWS
    elif 2 * tiles <= call.sm_count:
        blocks, parts, height = 1, 2, CUDA_ROWS
    elif tiles <= call.sm_count:
        height = _even_height(call) if few else CUDA_ROWS
        blocks = parts = 1 if _busy(call, CUDA_ROWS) > _EVEN and (few or long) else 2
    elif call.op == "linear_sample":
        blocks, parts, height = (1, 1, SAMPLED_HEIGHTS[-1]) if fewest else (2, 1, CUDA_ROWS)
    else:
        height = _even_height(call) if fewest or long or not few else CUDA_ROWS
        blocks, parts = 1 if fewest or (few and height != CUDA_ROWS) else 2, 1
    return {"blocks": blocks, "parts": parts, "height": height}


def fills_sms(call: OpCall) -> bool:
    """Whether the tile of 8 tokens gives nearly every SM a block: then one token is its, too, unless a tactic does without."""
    return (
        call.tactic.get(SKINNY_TO) != 0
        and skinny_cuda_fits(call)
        and 2 * ceil_div(call["weight"].size(0), CUDA_ROWS) >= 0.9 * call.sm_count
    )


def _row_bytes(call: OpCall) -> int:
    return bytes_of(call["weight"].size(1), call["weight"].dtype)


def _busy(call: OpCall, height: int, parts: int = 1) -> float:
    """Share of the SMs that have a block, mean of all waves, if each has one at a time."""
    n = call["weight"].size(0)
    return n * parts / height / call.sm_count / ceil_div(ceil_div(n, height) * parts, call.sm_count)


def _even_heights(call: OpCall, parts: int) -> tuple[int, ...]:
    """Other heights of blocks than 64 that keep nearly all SMs busy, and as many as 64 do."""
    if call.op == "linear_sample":
        return ()
    least = max(_EVEN, _busy(call, CUDA_ROWS, parts))
    fitting = (height for height in HEIGHTS if height % 16 == 0 or call.op != "gate_up_silu")
    return tuple(height for height in fitting if height != CUDA_ROWS and _busy(call, height, parts) >= least)


def _even_height(call: OpCall) -> int:
    """The height that keeps most SMs busy: of equals 64, then the highest, which reads x least."""
    return max((CUDA_ROWS, *_even_heights(call, 1)), key=lambda height: (_busy(call, height), height == CUDA_ROWS, height))


def skinny_space(call: OpCall) -> tuple[Choice, ...]:
    """A tile for each padded size, whole and split: rows, bytes of K, warps, stages, splits; in CUDA C++ blocks per SM, parts of K, and
    heights that give SMs nearly equal shares. And the number of tokens up to which they are taken.
    """
    if not skinny_fits(call):
        return ()
    tiles: tuple[tuple[int, ...], ...] = (
        *((64, 512, 4, 3, 1), (64, 256, 4, 3, 1), (64, 256, 4, 6, 1), (64, 128, 4, 8, 1), (128, 256, 8, 4, 1)),
        *(((64, 512, 4, 3, 2), (64, 256, 4, 3, 2), (128, 256, 8, 4, 4)) if call.op == "linear" else ()),
    )
    dtype = call["weight"].dtype
    rows, k, *rest = tiles[0]
    cuda_names = ("blocks", "parts", "height")
    names = ("rows", "k", "warps", "stages", "splits", *cuda_names)

    def choice(padded: int) -> Choice:
        in_cuda = _cuda_tiles(call, padded) if skinny_cuda_fits(call) else ()
        in_both = (
            *((rows, elements_in(k, dtype), *rest, *one) for one in in_cuda),
            *((rows, elements_in(k, dtype), *rest, 0, 1, CUDA_ROWS) for rows, k, *rest in tiles),
        )
        these, values = (names, in_both) if padded in IN_TRITON else (cuda_names, in_cuda)
        return Choice(f"skinny {padded}", table(tuple(f"skinny{padded}_{name}" for name in these), *values))

    sizes = skinny_sizes(call)
    if call.op == "linear_sample":  # thresholds are judged by prompts, of which it has one row
        return tuple(map(choice, sizes))
    return (*map(choice, sizes), Choice("skinny to", grid(**{SKINNY_TO: (0, *sizes[:-1])}), (PREFILL,), sizes))


def _cuda_tiles(call: OpCall, padded: int) -> tuple[tuple[int, int, int], ...]:
    """(blocks, parts, height): of 64 rows, and of those that share the weight more evenly."""
    others = SAMPLED_HEIGHTS[1:] if call.op == "linear_sample" else ()
    heights = [(height, parts) for parts in (1, 2) for height in (CUDA_ROWS, *_even_heights(call, parts), *others)]
    return tuple(
        (blocks, parts, height)
        for height, parts in heights
        for blocks in (1, 2)
        if (blocks, height, padded) != (2, 2 * CUDA_ROWS, PADDED[-1])  # more registers than two blocks have
    )


def skinny_step_space(call: OpCall) -> tuple[Choice, ...]:
    """For whole decode steps: tiles in CUDA C++ where they fit, small ones that share an SM too, else Triton's. Tokens of the smallest size
    may be left to the next, and their norm to a kernel of its own."""
    if not skinny_cuda_fits(call):
        return skinny_space(call)

    def choice(size: int) -> Choice:
        names = tuple(f"skinny{size}_{name}" for name in ("blocks", "parts", "height"))
        left = ((0, 1, CUDA_ROWS),) * (size == PADDED[0])
        return Choice(f"skinny {size}", table(names, *_cuda_tiles(call, size), (3, 1, CUDA_ROWS), (4, 1, CUDA_ROWS), *left))

    return (*map(choice, PADDED), Choice("norms to", grid(**{NORMS_TO: (0, 2, PADDED[0])})))


@dataclass(frozen=True)
class _Tile:
    """Tile of one padded size in Triton. `prefetch`: KB of its weight that a program prefetches into L2 before it waits."""

    tokens: int
    rows: int
    k: int
    warps: int
    stages: int
    splits: int
    prefetch: int


def _tile(tuned: Mapping[str, int], padded: int) -> _Tile:
    return _Tile(padded, *_values(_Tile, tuned, padded))


def _cuda_tile(tuned: Mapping[str, int], padded: int) -> CudaTile:
    return CudaTile(padded, *_values(CudaTile, tuned, padded))


def _values(tile: type[_Tile | CudaTile], tuned: Mapping[str, int], padded: int) -> list[int]:
    """Values of a tile's tunables: of all its fields but the first, `tokens`."""
    return [tuned[f"skinny{padded}_{field.name}"] for field in fields(tile)[1:]]


def _lines(weight: Operand, tile: _Tile) -> int:
    """Lines of each row that are prefetched. All lie inside the weight, where the last part of K may be shorter than the others."""
    row_bytes = bytes_of(weight.size(1), weight.dtype)
    share = bytes_of(ceil_div(ceil_div(weight.size(1), tile.k), tile.splits) * tile.k, weight.dtype)
    if weight.size(0) % tile.rows or row_bytes % LINE_BYTES:
        return 0
    return max(0, min(tile.prefetch * 1024 // LINE_BYTES // tile.rows, (row_bytes - share * (tile.splits - 1)) // LINE_BYTES))


def launch_skinny(builder: Builder, tuned: Mapping[str, int], scales: Mapping[str, Parameter], below: int, most: int = PADDED[-1]) -> int:
    """Adds launches for more than `below` and up to `most` tokens, or fewer if the tunables say so.

    Returns the number of tokens covered, `below` if none.

    `scales`: XScale, WScale and, for an op that ends in an activation, OutScale.
    """
    call = builder.call
    in_cuda, sizes = skinny_cuda_fits(call), skinny_sizes(call)
    most = min(most, tuned[SKINNY_TO], sizes[-1])
    if most <= below or not skinny_fits(call):
        return below
    parts = None
    if call.op == "linear" and (splits := max(_tile(tuned, padded).splits for padded in IN_TRITON)) > 1:
        parts = builder.workspace("parts", (f"{splits} * min({call['x'].shape[0]}, {IN_TRITON[-1]})", call["weight"].size(0)))
    least = 0
    for padded in sizes:
        cuda = _cuda_tile(tuned, padded)
        if padded < IN_TRITON[0] and not _cuda_takes_fewest(tuned):
            continue
        if least < most:
            normed_to = min(call.normed.to, most) if call.normed and padded == sizes[0] else 0
            here = within(call["x"].shape[0], max(below, least, normed_to), min(most, padded))
            if normed_to:
                launch_cuda(builder, cuda, scales, within(call["x"].shape[0], 0, normed_to), call.normed)
            if in_cuda and cuda.blocks:
                launch_cuda(builder, cuda, scales, here)
            elif padded in IN_TRITON:
                _launch(builder, _tile(tuned, padded), scales, here, parts)
            else:
                raise KernelError(
                    f"skinny{padded}_blocks is 0, but there is no such tile in Triton; set {SKINNY_TO} to {IN_TRITON[-1]} or less"
                )
        least = padded
    return most


def _launch(builder: Builder, tile: _Tile, scales: Mapping[str, Parameter], here: Dim, parts: Operand | None) -> None:
    """`here`: 1 in steps that this tile serves, else 0."""
    call = builder.call
    x, weight, bias, residual, y = call["x"], call["weight"], call.get("bias"), call.get("residual"), call.outputs[0]
    n = weight.size(0)
    count = I32(x.shape[0])
    divided = tile.splits > 1 and parts is not None

    def gemm(function: str, rest: Mapping[str, Parameter], flags: Mapping[str, bool | int]) -> None:
        constexprs = {
            "N": n,
            "K": weight.size(1),
            "BLOCK_N": tile.rows,
            "BLOCK_K": tile.k,
            "TOKENS": tile.tokens,
            "LINES": _lines(weight, tile),
            "THREADS": 32 * tile.warps,
            **flags,
        }
        builder.launch(
            f"skinny_gemm.{function}",
            {"X": Tma(x, tile.tokens, tile.k), "W": Tma(weight, tile.rows, tile.k), "WeightRows": weight, **rest, "num_tokens": count},
            grid=(f"{ceil_div(n, tile.rows)} * {here}", tile.splits if divided else 1),
            constexprs=constexprs,
            warps=tile.warps,
            stages=tile.stages,
        )

    if call.op in ("gate_up_silu", "linear_gelu"):
        quantize = call.get("out_scale") is not None
        scaling = {"SCALED": call.quantized, "SCALED_ROWS": call.by_row}
        if call.op == "gate_up_silu":
            gemm("skinny_gate_up_silu", {**scales, "Y": y}, {**scaling, "QUANTIZE": quantize})
        else:
            flags = {**scaling, "BIASED": bias is not None, "QUANTIZE": quantize}
            gemm("skinny_linear_gelu", {"Bias": bias or x, **scales, "Y": y}, flags)
        return
    epilogue_flags = {"SCALED": call.quantized, "SCALED_ROWS": call.by_row, "BIASED": bias is not None, "ADDED": residual is not None}
    epilogue: Mapping[str, Parameter] = {"Bias": bias or x, "Residual": residual or x, **scales, "Y": y}
    if parts is None or not divided:
        gemm("skinny_linear", {**epilogue, **sampling_parameters(call)}, {**epilogue_flags, "SAMPLED": call.op == "linear_sample"})
        return
    gemm("skinny_parts", {"Parts": parts}, {"SPLITS": tile.splits})
    builder.launch(
        "skinny_gemm.skinny_sum",
        {"Parts": parts, **epilogue, "num_tokens": count},
        grid=(f"{ceil_div(n, _SUM_BLOCK)} * {here}", x.shape[0]),
        constexprs={"N": n, "BLOCK": _SUM_BLOCK, "SPLITS": tile.splits, **epilogue_flags},
        warps=4,
    )
