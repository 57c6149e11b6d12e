"""Lowering of decode attention of few sequences to CUDA C++ (`cuda_kernels/decode_attention.cu`).

How many blocks share a sequence and KV head, and how many warps a block has, is chosen by the number of sequences such that all blocks are
on the GPU at once and what they have asked for fills the time that memory takes to answer; and no more, since the next kernel's weights
need the room. Chosen by whole steps on an H200 (docs/facts/kernels-attention.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.dialect.expr import ceil_div, product
from trtllm_kernels.dialect.types import Dim
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import I32, Builder, OpCall
from trtllm_kernels.lowering.prefill import scale_log2, scales

DECODE_CUDA_TO = "decode_cuda_to"
"""Tunable: most sequences for which the kernel in CUDA C++ is taken; 0: never."""
DECODE_ROTATES = "decode_rotates"
"""Tunable: whether it rotates queries and keys itself, where it can."""
_WARPS = 4
"""Warps per SM that keep enough pages in flight, and leave room for blocks of the next kernel."""
_RING_BYTES = 24 * 1024
"""Of pages in flight per warp, if that is two at least."""
_MOST_PAGE_BYTES = 16 * 1024
_CODES = {"fp8": 1, "int8": 2}
_TUNED = ("splits", "warps", "stages")


@dataclass(frozen=True)
class _Tile:
    """For up to `most` sequences: `splits` blocks per sequence and KV head, of `warps` warps each, which have `stages` pages in flight."""

    name: str
    most: int
    splits: int
    warps: int
    stages: int


def decode_cuda_fits(call: OpCall) -> bool:
    """Whether the kernel fits: codes have scales, or the cache has the queries' dtype."""
    q, cache = call["qkv"], call["kv_cache"]
    head_dim, page = cache.size(5), cache.size(4)
    group = call.integer("num_heads") // call.integer("num_kv_heads")
    scaled = call.get("k_scale") is not None and call.get("v_scale") is not None
    by_row = call.get("kv_scales") is not None
    stored = {"fp8": scaled and not by_row, "int8": by_row and not scaled}.get(
        cache.dtype, cache.dtype == q.dtype and not (scaled or by_row)
    )
    return (
        call.capability == 90
        and q.dtype in ("bf16", "fp16")
        and stored
        and head_dim in (64, 128, 256)
        and page % 16 == 0
        and page <= 64
        and _page_bytes(call) <= _MOST_PAGE_BYTES
        and group <= 8
    )


def _page_bytes(call: OpCall) -> int:
    """Of one KV head's keys and values in a page."""
    cache = call["kv_cache"]
    return 2 * bytes_of(cache.size(4) * cache.size(5), cache.dtype)


def decode_cuda_tunables(call: OpCall) -> dict[str, int]:
    """The defaults, for `OpCall.tuned`."""
    defaults = {DECODE_CUDA_TO: 0, DECODE_ROTATES: 1}
    for tile in _default_tiles(call):
        defaults |= {f"decode_{tile.name}_{name}": getattr(tile, name) for name in _TUNED}
        defaults[DECODE_CUDA_TO] = tile.most if decode_cuda_fits(call) else 0
    return defaults


def _default_tiles(call: OpCall) -> tuple[_Tile, ...]:
    heads, most_splits = call.integer("num_kv_heads"), min(8, call["kv_cache"].size(5) // 16)
    room = _WARPS * call.sm_count
    stages = max(2, _RING_BYTES // _page_bytes(call))
    return (
        _Tile("one", call.sm_count // (8 * heads), 4 if heads >= 8 else most_splits, 4, stages),
        _Tile("few", room // (8 * heads), most_splits, 1, stages),
        _Tile("some", room // heads, 2, 1, stages),
    )


def rotated_tokens(to: int, alone: str) -> Dim:
    """How many of a step's first tokens the kernel may rotate. The arguments are those of `launch_decode_cuda`, and what it returned."""
    return product("D", f"max(0, min(1, {to + 1} - D))", alone) if to else 0


def launch_decode_cuda(builder: Builder, tuned: Mapping[str, int], alone: str) -> int:
    """Adds launches for up to a number of sequences, and returns it. `alone`: 1 in steps that decode by a launch of this kind, else 0."""
    call = builder.call
    to = tuned[DECODE_CUDA_TO]
    if not to:
        return 0
    if not decode_cuda_fits(call):
        raise KernelError(f"{DECODE_CUDA_TO} is {to}, but the kernel in CUDA C++ does not fit; set it to 0")
    below, tiles = 0, _default_tiles(call)
    for tile in tiles:
        most = to if tile is tiles[-1] else min(to, tile.most)
        if most > below:
            here = product(f"max(0, min(1, D - {below}, {most + 1} - D))", alone)
            splits, warps, stages = (tuned[f"decode_{tile.name}_{name}"] for name in _TUNED)
            _launch(builder, _Tile(tile.name, most, splits, warps, stages), here)
            below = most
    return to


def _launch(builder: Builder, tile: _Tile, here: Dim) -> None:
    """`here`: 1 in steps that this tile serves, else 0."""
    call, out = builder.call, builder.call.outputs[0]
    q, cache, table = call["qkv"], call["kv_cache"], call["block_table"]
    heads, head_dim, page, codes = call.integer("num_kv_heads"), cache.size(5), cache.size(4), _CODES.get(cache.dtype, 0)
    group = call.integer("num_heads") // heads
    splits, warps, stages, columns = tile.splits, tile.warps, tile.stages, head_dim // 16
    if columns % splits or splits > 8:
        raise KernelError(
            f"{splits} blocks cannot share a head of {head_dim} dimensions; they may be a power of two up to {min(8, columns)}"
        )
    stage_bytes = _page_bytes(call) + (8 * page if codes == _CODES["int8"] else 16)
    part_bytes = 16 * ceil_div(group, 2) * (8 * columns // splits + 1)
    builder.launch(
        "decode_attention.decode_attention",
        {
            "QKV": q,
            "Cache": cache.slice(call.integer("layer")),
            "BlockTable": table,
            "Slots": call["seq_slots"],
            "KvLens": call["kv_lens"],
            **scales(call),
            "CosSin": call.rotation or call["kv_lens"],
            "Out": out,
            "scale_log2": scale_log2(call),
            "table_stride": I32(table.size(1)),
        },
        grid=(product("D", heads, here), splits),
        constexprs={
            "HKV": heads,
            "G": group,
            "D": head_dim,
            "PAGE": page,
            "SPLITS": splits,
            "WARPS": warps,
            "STAGES": stages,
            "CODES": codes,
            "HALF": codes > 0 or q.dtype == "fp16",
            "IN_HALF": q.dtype == "fp16",
            "OUT_HALF": q.dtype == "fp16",
            "QUANTIZE": call.get("out_scale") is not None,
            "ROTATES": call.rotation is not None,
            "SHARED_BYTES": warps * stages * stage_bytes + (splits * warps if splits > 1 else 1) * part_bytes + 16,
        },
        warps=warps,
        cuda=True,
    )
