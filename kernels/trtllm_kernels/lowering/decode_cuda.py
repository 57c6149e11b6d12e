"""Lowering of decode attention to CUDA C++: of few sequences by a kernel that divides them (`cuda_kernels/decode_attention.cu`), and of
more by persistent kernels, of short ones by one that divides none (`cuda_kernels/decode_attention_many.cu`), of long ones by one that gives
each SM an equal share (`cuda_kernels/decode_attention_even.cu`).

Whether sequences are short is a matter of the step, by its longest one (symbol `L`), and not of how long an engine's sequences may become.

How few sequences are divided, and up to which number, is a matter of their length (`decode_tiles`).
"""

from __future__ import annotations

from collections.abc import Mapping

from trtllm_kernels.dialect.dtypes import bytes_of, elements_in
from trtllm_kernels.dialect.expr import ceil_div, product
from trtllm_kernels.dialect.types import LEAST_KEYS, Dim
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import I32, Builder, OpCall, Parameter, Tma
from trtllm_kernels.lowering.decode_tiles import (
    CODES,
    SHORT_KEYS,
    TUNED,
    Tile,
    default_tiles,
    divided_above,
    longest,
    most_sequences,
    page_bytes,
    shared_bytes,
    steps_of_tiles,
)
from trtllm_kernels.lowering.prefill import scale_log2, scales
from trtllm_kernels.lowering.space import NEVER, Candidate, table

DECODE_CUDA_TO = "decode_cuda_to"
"""Tunable: most sequences for which the kernel that divides sequences is taken; 0: never."""
DECODE_MANY_TO = "decode_many_to"
"""Tunable: most sequences for which a persistent kernel is taken, from the first on that the other does not take; 0: never."""
DECODE_SHORT = "decode_short"
"""Tunable: keys of the longest sequence up to which that is the one that divides no sequence. It is compared with `L`, so it should be a
value of that."""
DECODE_ROTATES = "decode_rotates"
"""Tunable: whether they rotate queries and keys themselves, where they can."""
_MOST_PAGE_BYTES = 16 * 1024
"""Of a KV head's keys and values in a page."""
_MANY_STAGE_BYTES = 8 * 1024
"""Keys and values that a stage of a persistent kernel holds at most, unless that is fewer than 16 tokens."""
_MANY_BYTES = 216 * 1024
"""Of pages in flight per SM."""
_EVEN_BYTES = 226 * 1024
"""Of those, and of one piece of a sequence's results for each warp."""
_END_ROWS = 8
"""Of the boxes by which they read a sequence's last page."""


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
        and page_bytes(call) <= _MOST_PAGE_BYTES
        and group <= 8
    )


def decode_many_fits(call: OpCall) -> bool:
    """Whether the persistent kernels fit: rows of the cache are whole lines of 128 bytes."""
    cache = call["kv_cache"]
    return decode_cuda_fits(call) and bytes_of(cache.size(5), cache.dtype) % 128 == 0


def decode_many_tiles(call: OpCall) -> tuple[Candidate, ...]:
    """Tiles of the persistent kernel for short sequences that tuning tries."""
    page, of_page, default = call["kv_cache"].size(4), page_bytes(call), _many_keys(call)
    tiles: list[tuple[int, ...]] = []
    for keys in {default: None, page: None}:
        stages = _MANY_BYTES * page // (of_page * keys)
        tiles += [(1, keys, warps, stages // warps) for warps in (4, 6, 8, 12) if stages >= 2 * warps]
        tiles += [(1, keys, 8, 2), (2, keys, 4, stages // 8)] * (stages >= 16)
    return table(tuple(f"decode_many_{name}" for name in ("blocks", "keys", "warps", "stages")), *dict.fromkeys(tiles))


def _many_keys(call: OpCall) -> int:
    """Tokens that a stage of a persistent kernel holds: a page, or part of one."""
    keys = page = call["kv_cache"].size(4)
    while keys > 16 and keys % 32 == 0 and page_bytes(call) * keys > _MANY_STAGE_BYTES * page:
        keys //= 2
    return keys


def _stage_bytes(call: OpCall, keys: int) -> int:
    """Of a stage of a persistent kernel's ring, with what belongs to it."""
    cache = call["kv_cache"]
    return page_bytes(call) * keys // cache.size(4) + (8 * keys if CODES.get(cache.dtype) == CODES["int8"] else 0) + 24


def _piece_bytes(call: OpCall) -> int:
    """Of a part of a (sequence, KV head): weighted values, a maximum and a sum of weights of each head, in pairs of heads."""
    head_dim, group = call["kv_cache"].size(5), call.integer("num_heads") // call.integer("num_kv_heads")
    return 8 * ceil_div(group, 2) * (head_dim + 2)


def _even_stages(call: OpCall, keys: int, warps: int) -> int:
    """Most stages of each warp's ring that fit beside the pieces."""
    return (_EVEN_BYTES // warps - _piece_bytes(call)) // _stage_bytes(call, keys)


def few_in_cuda(call: OpCall) -> dict[str, int]:
    """Tunables that leave all but few sequences to Triton."""
    return {DECODE_CUDA_TO: most_sequences(call) if decode_cuda_fits(call) else 0, DECODE_MANY_TO: 0}


def decode_cuda_tunables(call: OpCall) -> dict[str, int]:
    """The defaults, for `OpCall.tuned`."""
    of_page, keys = page_bytes(call), _many_keys(call)
    stages = max(1, _MANY_BYTES * call["kv_cache"].size(4) // (of_page * keys))
    warps = max(1, min(8, stages // 3))
    even_warps, even_stages = 12, 2
    of_codes = call["kv_cache"].dtype in CODES and call["kv_cache"].size(5) <= 128  # a thread of larger heads needs more registers
    if not of_codes or _even_stages(call, keys, even_warps) < even_stages:
        even_warps, even_stages = warps, min(3, _even_stages(call, keys, warps))
    return {
        **few_in_cuda(call),
        DECODE_MANY_TO: NEVER if decode_many_fits(call) else 0,
        DECODE_SHORT: SHORT_KEYS,
        DECODE_ROTATES: 1,
        **{f"decode_{tile.name}_{name}": getattr(tile, name) for tile in default_tiles(call) for name in TUNED},
        "decode_many_blocks": 1,
        "decode_many_keys": keys,
        "decode_many_warps": warps,
        "decode_many_stages": max(1, stages // warps),
        "decode_even_keys": keys,
        "decode_even_warps": even_warps,
        "decode_even_stages": max(1, even_stages),
    }


def _short(call: OpCall, tuned: Mapping[str, int]) -> Dim:
    """1 in steps without long sequences, else 0; a number where no sequence can be long, or each is."""
    short = tuned[DECODE_SHORT]
    if longest(call) <= short:
        return 1
    return f"max(0, min(1, {short + 1} - L))" if short >= LEAST_KEYS else 0


def _even(call: OpCall, tuned: Mapping[str, int]) -> str:
    """1 in steps whose SMs have equal shares of keys and values, else 0; empty if there are none."""
    to, many_to, short = tuned[DECODE_CUDA_TO], tuned[DECODE_MANY_TO], tuned[DECODE_SHORT]
    if many_to <= to or longest(call) <= short:
        return ""
    longer = (f"min(D - {most}, L - {max(short, above)})" for above, most in divided_above(call, to).items())
    return f"max(0, min(1, {many_to + 1} - D, max(min(D - {to}, L - {short}), {', '.join(longer)})))"


def rotated_tokens(call: OpCall, tuned: Mapping[str, int], alone: str) -> Dim:
    """How many of a step's first tokens the kernels may rotate. The arguments are those of `launch_decode_cuda`."""
    to = decoded_to(tuned)
    return product("D", f"max(0, min(1, {to + 1} - D))", alone) if to and tuned[DECODE_ROTATES] else 0


def shares_evenly(call: OpCall, tuned: Mapping[str, int], alone: str) -> Dim:
    """1 in steps whose SMs have equal shares of keys and values, else 0. The arguments are those of `launch_decode_cuda`."""
    even = _even(call, tuned)
    return product(even, alone) if even else 0


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
        raise KernelError(f"{DECODE_MANY_TO} is {many_to}, but the persistent kernels do not fit; set it to 0")
    here: Dim = alone
    divided: dict[int, int] = {}
    if even := _even(call, tuned):
        _launch_even(builder, tuned, product(even, alone))
        here = product(f"1 - {even}", alone)
        divided = {above: most for above, most in divided_above(call, to).items() if above >= tuned[DECODE_SHORT]}
    for tile, steps in steps_of_tiles(call, tuned, to, divided).items():
        _launch(builder, tile, product(" + ".join(one.here for one in steps), here))
    if many_to > to and (short := _short(call, tuned)):
        _launch_many(builder, tuned, product(f"max(0, min(1, D - {to}, {many_to + 1} - D))", short, alone))
    return decoded_to(tuned)


def _launch_many(builder: Builder, tuned: Mapping[str, int], here: Dim) -> None:
    """`here`: 1 in steps that this kernel serves, else 0."""
    call = builder.call
    cache = call["kv_cache"]
    heads, page = call.integer("num_kv_heads"), cache.size(4)
    blocks, keys, warps, stages = (tuned[f"decode_many_{name}"] for name in ("blocks", "keys", *TUNED[1:]))
    if page % keys or keys % 16:
        raise KernelError(f"decode_many_keys is {keys}; it must be a multiple of 16 that divides a page of {page} tokens")
    layer = cache.slice(call.integer("layer"))
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
            "SHARED_BYTES": warps * stages * _stage_bytes(call, keys) + 8 * keys + 32,
        },
        warps=warps,
        cuda=True,
    )


def _launch_even(builder: Builder, tuned: Mapping[str, int], here: Dim) -> None:
    """`here`: 1 in steps that this kernel serves, else 0."""
    call = builder.call
    cache = call["kv_cache"]
    keys, warps, stages = (tuned[f"decode_even_{name}"] for name in ("keys", *TUNED[1:]))
    page = cache.size(4)
    if page % keys or keys % 16:
        raise KernelError(f"decode_even_keys is {keys}; it must be a multiple of 16 that divides a page of {page} tokens")
    layer = cache.slice(call.integer("layer"))
    pieces = builder.workspace("pieces", (2 * call.sm_count, _piece_bytes(call) // 4))
    parameters = _parameters(call)
    constants = {**_constants(call), "STEP": keys, "SHARES": call.sm_count}
    builder.launch(
        "decode_attention_even.decode_attention_even",
        {
            "Pages": Tma(layer, keys, elements_in(128, cache.dtype)),
            "Ends": Tma(layer, _END_ROWS, elements_in(128, cache.dtype)),
            **{name: parameter for name, parameter in parameters.items() if name != "scale_log2"},
            "Pieces": pieces,
            "scale_log2": parameters["scale_log2"],
            "table_stride": I32(call["block_table"].size(1)),
            "num_seqs": I32("D"),
        },
        grid=(product(call.sm_count, here),),
        constexprs={
            **constants,
            "WARPS": warps,
            "STAGES": stages,
            "SHARED_BYTES": warps * (stages * _stage_bytes(call, keys) + _piece_bytes(call)) + 8 * keys + 32,
        },
        warps=warps,
        cuda=True,
    )
    builder.launch(
        "decode_attention_merge.decode_attention_merge",
        {
            "Pieces": pieces,
            "KvLens": call["kv_lens"],
            "VScale": parameters["VScale"],
            "OutScale": parameters["OutScale"],
            "Out": call.outputs[0],
            "num_seqs": I32("D"),
        },
        grid=(product(call.sm_count - 1, here),),
        constexprs={**constants, "SHARED_BYTES": 0},
        warps=cache.size(5) // 16,
        cuda=True,
    )


def _launch(builder: Builder, tile: Tile, here: Dim) -> None:
    """`here`: 1 in steps that this tile serves, else 0."""
    call = builder.call
    cache = call["kv_cache"]
    heads, head_dim = call.integer("num_kv_heads"), cache.size(5)
    splits, warps, stages, columns = tile.splits, tile.warps, tile.stages, head_dim // 16
    if columns % splits or splits > 8:
        raise KernelError(
            f"{splits} blocks cannot share a head of {head_dim} dimensions; they may be a power of two up to {min(8, columns)}"
        )
    builder.launch(
        "decode_attention.decode_attention",
        {**_parameters(call), "table_stride": I32(call["block_table"].size(1))},
        grid=(product("D", heads, here), splits),
        constexprs={
            **_constants(call),
            "SPLITS": splits,
            "WARPS": warps,
            "STAGES": stages,
            "SHARED_BYTES": shared_bytes(call, tile),
        },
        warps=warps,
        cuda=True,
    )


def _parameters(call: OpCall) -> dict[str, Parameter]:
    """What all of them take, in order."""
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
    """Macros of all."""
    q, cache, heads = call["qkv"], call["kv_cache"], call.integer("num_kv_heads")
    codes, half = CODES.get(cache.dtype, 0), q.dtype == "fp16"
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
