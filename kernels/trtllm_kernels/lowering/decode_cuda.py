"""Lowering of decode attention to CUDA C++: of few sequences, or long ones, by a kernel that divides them
(`cuda_kernels/decode_attention.cu`), and of many short ones by a persistent kernel (`cuda_kernels/decode_attention_many.cu`).

Of few: how many blocks share a sequence and KV head, and how many warps a block has, is chosen by the number of sequences such that all
blocks are on the GPU at once and what they have asked for fills the time that memory takes to answer; and no more, since the next kernel's
weights need the room. Chosen by whole steps on an H200 (docs/facts/kernels-attention.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from trtllm_kernels.dialect.dtypes import bytes_of, elements_in
from trtllm_kernels.dialect.expr import ceil_div, product
from trtllm_kernels.dialect.types import Dim
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import I32, Builder, OpCall, Parameter, Tma
from trtllm_kernels.lowering.prefill import scale_log2, scales
from trtllm_kernels.lowering.space import NEVER, Candidate, table

DECODE_CUDA_TO = "decode_cuda_to"
"""Tunable: most sequences for which the kernel that divides sequences is taken; 0: never."""
DECODE_MANY_TO = "decode_many_to"
"""Tunable: most sequences for which the persistent kernel is taken, from the first on that the other does not take; 0: never."""
DECODE_ROTATES = "decode_rotates"
"""Tunable: whether they rotate queries and keys themselves, where they can."""
_WARPS = 4
"""Warps per SM that keep enough pages in flight, and leave room for blocks of the next kernel."""
_RING_BYTES = 24 * 1024
"""Of pages in flight per warp, if that is two at least."""
_MOST_PAGE_BYTES = 16 * 1024
_FEW_PAGE_BYTES = 8 * 1024
"""Bytes of a page of codes up to which the kernel for few sequences is faster than Triton's for many, too."""
_MANY_STAGE_BYTES = 8 * 1024
"""Keys and values that a stage of the persistent kernel holds at most, unless that is fewer than 16 tokens."""
_PERSISTENT_TOKENS = 1024
"""Of an engine's longest sequence, up to which the persistent kernel is the faster one; it divides no sequence."""
_MANY_BYTES = 216 * 1024
"""Of pages in flight per SM."""
_END_ROWS = 8
"""Of the boxes by which it reads a sequence's last page."""
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


def decode_many_fits(call: OpCall) -> bool:
    """Whether the persistent kernel fits."""
    cache = call["kv_cache"]
    return decode_cuda_fits(call) and bytes_of(cache.size(5), cache.dtype) % 128 == 0


def decode_many_tiles(call: OpCall) -> tuple[Candidate, ...]:
    """Tiles of the persistent kernel that tuning tries."""
    page, page_bytes, default = call["kv_cache"].size(4), _page_bytes(call), _many_keys(call)
    tiles: list[tuple[int, ...]] = []
    for keys in {default: None, page: None}:
        stages = _MANY_BYTES * page // (page_bytes * keys)
        tiles += [(1, keys, warps, stages // warps) for warps in (4, 6, 8, 12) if stages >= 2 * warps]
        tiles += [(1, keys, 8, 2), (2, keys, 4, stages // 8)] * (stages >= 16)
    return table(tuple(f"decode_many_{name}" for name in ("blocks", "keys", "warps", "stages")), *dict.fromkeys(tiles))


def _many_keys(call: OpCall) -> int:
    """Tokens that a stage of the persistent kernel holds: a page, or part of one."""
    keys = page = call["kv_cache"].size(4)
    while keys > 16 and keys % 32 == 0 and _page_bytes(call) * keys > _MANY_STAGE_BYTES * page:
        keys //= 2
    return keys


def _page_bytes(call: OpCall) -> int:
    """Of one KV head's keys and values in a page."""
    cache = call["kv_cache"]
    return 2 * bytes_of(cache.size(4) * cache.size(5), cache.dtype)


def few_in_cuda(call: OpCall) -> dict[str, int]:
    """Tunables that leave all but few sequences to Triton."""
    return {DECODE_CUDA_TO: _default_tiles(call)[-1].most if decode_cuda_fits(call) else 0, DECODE_MANY_TO: 0}


def decode_cuda_tunables(call: OpCall) -> dict[str, int]:
    """The defaults, for `OpCall.tuned`."""
    tiles, page_bytes, codes = _default_tiles(call), _page_bytes(call), call["kv_cache"].dtype in _CODES
    keys = _many_keys(call)
    stages = max(1, _MANY_BYTES * call["kv_cache"].size(4) // (page_bytes * keys))
    warps = max(1, min(8, stages // 3))
    more = {}
    if decode_many_fits(call) and _longest(call) <= _PERSISTENT_TOKENS:
        more = {DECODE_MANY_TO: NEVER}
    elif decode_many_fits(call) and codes and page_bytes <= _FEW_PAGE_BYTES:
        more = {DECODE_CUDA_TO: NEVER}
    return {
        **few_in_cuda(call),
        **more,
        DECODE_ROTATES: 1,
        **{f"decode_{tile.name}_{name}": getattr(tile, name) for tile in tiles for name in _TUNED},
        "decode_many_blocks": 1,
        "decode_many_keys": keys,
        "decode_many_warps": warps,
        "decode_many_stages": max(1, stages // warps),
    }


def _longest(call: OpCall) -> int:
    """Tokens of the longest sequence that the page table has room for."""
    return call["block_table"].size(1) * call["kv_cache"].size(4)


def _default_tiles(call: OpCall) -> tuple[_Tile, ...]:
    heads, most_splits = call.integer("num_kv_heads"), min(8, call["kv_cache"].size(5) // 16)
    room = _WARPS * call.sm_count
    stages = max(2, _RING_BYTES // _page_bytes(call))
    return (
        _Tile("one", call.sm_count // (8 * heads), 4 if heads >= 8 else most_splits, 4, stages),
        _Tile("few", room // (8 * heads), most_splits, 1, stages),
        _Tile("some", room // heads, 2, 1, stages),
    )


def rotated_tokens(tuned: Mapping[str, int], alone: str) -> Dim:
    """How many of a step's first tokens the kernels may rotate. The arguments are those of `launch_decode_cuda`."""
    to = decoded_to(tuned)
    return product("D", f"max(0, min(1, {to + 1} - D))", alone) if to and tuned[DECODE_ROTATES] else 0


def decoded_to(tuned: Mapping[str, int]) -> int:
    """Most sequences that decode by these kernels."""
    return max(tuned[DECODE_CUDA_TO], tuned[DECODE_MANY_TO])


def launch_decode_cuda(builder: Builder, tuned: Mapping[str, int], alone: str) -> int:
    """Adds launches for up to a number of sequences, and returns it. `alone`: 1 in steps that decode by a launch of this kind, else 0."""
    call = builder.call
    to, many_to = tuned[DECODE_CUDA_TO], tuned[DECODE_MANY_TO]
    if to and not decode_cuda_fits(call):
        raise KernelError(f"{DECODE_CUDA_TO} is {to}, but the kernel in CUDA C++ does not fit; set it to 0")
    if many_to and not decode_many_fits(call):
        raise KernelError(f"{DECODE_MANY_TO} is {many_to}, but the persistent kernel does not fit; set it to 0")
    below, tiles = 0, _default_tiles(call)
    for tile in tiles if to else ():
        most = to if tile is tiles[-1] else min(to, tile.most)
        if most > below:
            here = product(f"max(0, min(1, D - {below}, {most + 1} - D))", alone)
            splits, warps, stages = (tuned[f"decode_{tile.name}_{name}"] for name in _TUNED)
            _launch(builder, _Tile(tile.name, most, splits, warps, stages), here)
            below = most
    if many_to > to:
        _launch_many(builder, tuned, product(f"max(0, min(1, D - {to}, {many_to + 1} - D))", alone))
    return decoded_to(tuned)


def _launch_many(builder: Builder, tuned: Mapping[str, int], here: Dim) -> None:
    """`here`: 1 in steps that this kernel serves, else 0."""
    call = builder.call
    cache = call["kv_cache"]
    heads, page = call.integer("num_kv_heads"), cache.size(4)
    blocks, keys, warps, stages = (tuned[f"decode_many_{name}"] for name in ("blocks", "keys", *_TUNED[1:]))
    if page % keys or keys % 16:
        raise KernelError(f"decode_many_keys is {keys}; it must be a multiple of 16 that divides a page of {page} tokens")
    codes = _CODES.get(cache.dtype, 0)
    layer = cache.slice(call.integer("layer"))
    stage_bytes = _page_bytes(call) * keys // page + (8 * keys if codes == _CODES["int8"] else 0) + 24
    items = product(heads, "D")
    builder.launch(
        "decode_attention_many.decode_attention_many",
        {
            "Pages": Tma(layer, keys, elements_in(128, cache.dtype)),
            "Ends": Tma(layer, _END_ROWS, elements_in(128, cache.dtype)),
            **_parameters(call),
            "table_stride": I32(call["block_table"].size(1)),
            "num_items": I32(items),
        },
        grid=(product(f"min({blocks * call.sm_count}, {items})", here),),
        constexprs={
            **_constants(call),
            "STEP": keys,
            "WARPS": warps,
            "STAGES": stages,
            "BLOCKS": blocks,
            "SHARED_BYTES": warps * stages * stage_bytes + 8 * keys + 32,
        },
        warps=warps,
        cuda=True,
    )


def _launch(builder: Builder, tile: _Tile, here: Dim) -> None:
    """`here`: 1 in steps that this tile serves, else 0."""
    call = builder.call
    cache = call["kv_cache"]
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
        {**_parameters(call), "table_stride": I32(call["block_table"].size(1))},
        grid=(product("D", heads, here), splits),
        constexprs={
            **_constants(call),
            "SPLITS": splits,
            "WARPS": warps,
            "STAGES": stages,
            "SHARED_BYTES": warps * stages * stage_bytes + (splits * warps if splits > 1 else 1) * part_bytes + 16,
        },
        warps=warps,
        cuda=True,
    )


def _parameters(call: OpCall) -> dict[str, Parameter]:
    """What both kernels take, in order."""
    return {
        "QKV": call["qkv"],
        "Cache": call["kv_cache"].slice(call.integer("layer")),
        "BlockTable": call["block_table"],
        "Slots": call["seq_slots"],
        "KvLens": call["kv_lens"],
        **scales(call),
        "CosSin": call.rotation or call["kv_lens"],
        "Out": call.outputs[0],
        "scale_log2": scale_log2(call),
    }


def _constants(call: OpCall) -> dict[str, int]:
    """Macros of both."""
    q, cache, heads = call["qkv"], call["kv_cache"], call.integer("num_kv_heads")
    codes, half = _CODES.get(cache.dtype, 0), q.dtype == "fp16"
    return {
        "HKV": heads,
        "G": call.integer("num_heads") // heads,
        "D": cache.size(5),
        "PAGE": cache.size(4),
        "CODES": codes,
        "HALF": codes > 0 or half,
        "IN_HALF": half,
        "OUT_HALF": half,
        "QUANTIZE": call.get("out_scale") is not None,
        "ROTATES": call.rotation is not None,
        "ROTARY": cache.size(5) if call.rotation is None else call.rotation.size(1),
        "INTERLEAVED": call.interleaved,
    }
