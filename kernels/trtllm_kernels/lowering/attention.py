"""Lowering of paged attention.

It is several launches over disjoint rows: decode sequences without and with a split of the KV axis (one of the two has a non-empty grid,
chosen by an expression over D, so a captured graph contains the right one), the merge of the split, and context chunks. On Hopper, decode
sequences that do not run beside prompts have kernels of their own (`decode_cuda`): one for few, which merges what it splits, one for many
short ones, and one for long ones, whose parts another launch merges. On Hopper, whole prompts are launched separately from chunks with a
cached past, and either launch is skipped in a step that has none of its kind. The batch's order says which rows are decode rows: sequences
[0, D) decode.

Where a step has both, decode sequences run concurrently with whole prompts on Hopper: decoding waits for memory, prefill for tensor cores.
Prefill is launched first, with one block per SM (`uncached_prefill_attention`), since the second launch would have to wait for room. Its
shared memory decides how many blocks of decode attention fit beside it on an SM: with more, prefill loses more than decoding gains. The
concurrent kernel is slower for the prompts alone, so it is used only where decoding takes longer anyway: up to `concurrent_tokens` prompt
tokens per decode sequence, whatever their lengths, as both times grow with them.
"""

from __future__ import annotations

from trtllm_kernels.dialect.dtypes import bits_of, bytes_of
from trtllm_kernels.dialect.expr import ceil_div, product
from trtllm_kernels.dialect.types import Dim, Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.attention_space import decode_step_space
from trtllm_kernels.lowering.call import FLOATS, I32, Builder, OpCall, Operand, next_power_of_2, power_of_2
from trtllm_kernels.lowering.decode_cuda import (
    DECODE_MANY_TO,
    decode_cuda_fits,
    decode_cuda_tunables,
    decode_many_tiles,
    few_in_cuda,
    launch_decode_cuda,
    rotated_tokens,
    shares_evenly,
)
from trtllm_kernels.lowering.prefill import (
    CONTEXT_HEAD_DIMS,
    cuda_context_fits,
    cuda_context_launch,
    cuda_fits,
    cuda_launch,
    fp8_context_launch,
    fp8_fits,
    fp8_launch,
    reads_uncached_prefill,
    scale_log2,
    scales,
    tiles,
    uncached_prefill_launch,
)
from trtllm_kernels.lowering.registry import lowers
from trtllm_kernels.lowering.space import CHUNK, PREFILL, Choice, grid, table

_MAX_SPLITS = 64
_MOST_AT_ONCE = 128 * 128
"""Elements of the keys that tuning lets a step of decode attention take."""


def _space(call: OpCall) -> tuple[Choice, ...]:
    cache = call["kv_cache"]
    names = ("decode_pages", "decode_ahead", "decode_warps", "decode_stages")
    ahead = table(
        names, *((1, 1, 2, stages) for stages in (3, 4, 6)), *((2, 1, 2, stages) for stages in (2, 3, 4)), (4, 1, 4, 2), (4, 1, 4, 3)
    )
    fitting = (one for one in ahead if one["decode_pages"] * cache.size(4) * cache.size(5) <= _MOST_AT_ONCE)
    as_needed = grid(decode_pages=(1,), decode_ahead=(0,), decode_warps=(1, 2, 4), decode_stages=(2, 3, 4, 6, 8))
    by_triton = few_in_cuda(call) if decode_cuda_fits(call) else {}
    decode = Choice("decode", tuple({**by_triton, **tile} for tile in (*as_needed, *fitting)))
    many = (Choice("decode many", decode_many_tiles(call)),) if decode_cuda_tunables(call)[DECODE_MANY_TO] else ()
    split = Choice("split", grid(split_target=tuple(n * call.sm_count for n in (1, 2, 4, 8)), split_tokens=(32, 64, 128, 256)))
    names = ("block_m", "block_n", "warps", "stages")
    uncached_tiles = (
        *((64, 64, 4, 3),) * cuda_fits(call),
        *((64, 64, 4, 2), (64, 64, 4, 4), (64, 128, 4, 2), (64, 32, 4, 2), (64, 32, 4, 3)),
        *((128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 4, 2), (128, 32, 8, 2), (128, 32, 8, 3), (128, 128, 8, 2)),
    )
    prompts = {"uncached_prefill_cuda": 0} if cuda_fits(call) else {}
    chunks = {"context_cuda": 0} if cuda_context_fits(call) else {}
    context = (
        *((128, 64, 8, 2),) * cuda_context_fits(call),
        *((128, 64, 8, 3), (128, 32, 8, 2), (128, 32, 4, 2), (64, 64, 4, 2), (64, 32, 4, 2), (64, 32, 4, 3), (128, 64, 4, 2)),
    )
    in_fp8 = call.get("queries") is not None
    whole = tuple({**prompts, **tile} for tile in table(tuple(f"uncached_prefill_{name}" for name in names), *uncached_tiles))
    continued = tuple({**chunks, **tile} for tile in table(tuple(f"context_{name}" for name in names), *context))
    return (
        *many,
        decode,
        split,
        *(() if in_fp8 else (Choice("uncached prefill", whole, (PREFILL,)), Choice("context chunks", continued, (CHUNK,)))),
    )


@lowers(
    "paged_attention",
    space=_space,
    step_space=lambda call: (*decode_step_space(call), *_space(call)),
    kernel_phases={
        "decode_attention": "decode",
        "decode_attention_many": "decode",
        "decode_attention_even": "decode",
        "decode_attention_merge": "decode",
        "reduce_splits": "decode",
        "uncached_prefill_attention": "context",
        "context_attention": "context",
    },
)
def paged_attention(call: OpCall) -> Lowered:
    q, cache = call["qkv"], call["kv_cache"]
    heads, kv_heads = call.integer("num_heads"), call.integer("num_kv_heads")
    head_dim, page = cache.size(5), cache.size(4)
    power_of_2("head dimension", head_dim, 16, 256)
    power_of_2("page size", page, 16, 128)
    if heads % kv_heads or heads // kv_heads > 64:
        raise KernelError(f"{heads} query heads cannot be grouped over {kv_heads} KV heads (a whole number of at most 64 each)")
    if call.get("queries") is not None and not fp8_fits(call):
        raise KernelError(
            f"attention of prompts in fp8 has kernels for sm_90, an fp8 cache with scales and heads of "
            f"{' or '.join(map(str, CONTEXT_HEAD_DIMS))} dimensions, not for {call.arch}, {cache.dtype} and {head_dim}"
        )
    if q.dtype not in FLOATS:
        raise KernelError(f"attention computes in {', '.join(FLOATS)}, not {q.dtype}")
    tuned = _tuned(call)
    builder = Builder(call)
    concurrent_steps = _concurrent(call, tuned)
    _decode(builder, tuned, concurrent_steps)
    _context(builder, tuned, concurrent_steps)
    if concurrent_steps:
        uncached_prefill_launch(builder, tuned, "concurrent", concurrent_steps, call.sm_count)
        _decode_launch(builder, tuned, f"D * max(0, {concurrent_steps})", concurrent=True)
    return builder.finish()


def rotated_by_attention(call: OpCall) -> Dim:
    """How many of a step's first tokens, all decoding, attention can rotate and write to the cache itself."""
    tuned = _tuned(call)
    return rotated_tokens(call, tuned, _alone(_concurrent(call, tuned)))


def decodes_in_equal_shares(call: OpCall) -> Dim:
    """1 in steps whose decode attention gives each SM an equal share of keys and values, else 0."""
    tuned = _tuned(call)
    return shares_evenly(call, tuned, _alone(_concurrent(call, tuned)))


def _tuned(call: OpCall) -> dict[str, int]:
    q, cache, heads, kv_heads = call["qkv"], call["kv_cache"], call.integer("num_heads"), call.integer("num_kv_heads")
    head_dim, page = cache.size(5), cache.size(4)
    block_m, block_n, warps, stages = _context_tile(call, q.dtype, head_dim, heads // kv_heads)
    return call.tuned(
        **_decode_tile(cache.dtype, bytes_of(page * head_dim, cache.dtype), heads // kv_heads),
        **decode_cuda_tunables(call),
        split_target=4 * call.sm_count,
        split_tokens=32,
        context_block_m=block_m,
        context_block_n=block_n,
        context_warps=warps,
        context_stages=stages,
        uncached_prefill_cuda=int(cuda_fits(call)),
        context_cuda=int(cuda_context_fits(call)),
        uncached_prefill_block_m=64 if head_dim <= 128 else 128,
        uncached_prefill_block_n=64,
        uncached_prefill_warps=4 if head_dim <= 128 else 8,
        uncached_prefill_stages=3 if head_dim <= 128 else 2,
        concurrent_tokens=32 if _leaves_room(call, q.dtype, head_dim) else 0,
        concurrent_block_m=64,
        concurrent_block_n=64,
        concurrent_warps=4,
        concurrent_stages=3,
        concurrent_decode_warps=_decode_warps(cache.dtype, bytes_of(page * head_dim, cache.dtype)),
        concurrent_decode_stages=3,
    )


def _leaves_room(call: OpCall, dtype: str, head_dim: int) -> bool:
    """Whether one block of `uncached_prefill_attention` per SM leaves shared memory for decode attention; larger heads leave none."""
    return reads_uncached_prefill(call, dtype, head_dim) and head_dim <= 128


def _decode_tile(dtype: str, tile_bytes: int, group: int) -> dict[str, int]:
    """Where a page's keys are 4 KB of codes, one warp that reads page numbers a step ahead keeps three pages in flight, and no warp waits
    for another (docs/facts/kernels-decode-attention.md)."""
    if bits_of(dtype) == 8 and tile_bytes <= 4096 and group <= 8:
        return {"decode_warps": 1, "decode_stages": 4, "decode_pages": 1, "decode_ahead": 1}
    stages = {32: 3, 8: 6}.get(bits_of(dtype), 4)
    return {"decode_warps": _decode_warps(dtype, tile_bytes), "decode_stages": stages, "decode_pages": 1, "decode_ahead": 0}


def _decode_warps(dtype: str, tile_bytes: int) -> int:
    """Few enough that each has some work, enough to hold a page's tile without spilling; one or two with 8 bits (measured on an H100)."""
    return min(2, max(1, tile_bytes // 2048)) if bits_of(dtype) == 8 else min(8, max(1, tile_bytes // 4096))


def _ahead(tuned: dict[str, int]) -> bool:
    """Whether decode attention reads page numbers a step ahead, as it must for several pages at once."""
    return bool(tuned["decode_ahead"] or tuned["decode_pages"] > 1)


def _flags(call: OpCall) -> dict[str, bool]:
    scaled, by_row = call.get("k_scale") is not None, call.get("kv_scales") is not None
    return {"SCALED_CACHE": scaled, "SCALED_ROWS": by_row, "QUANTIZE": call.get("out_scale") is not None}


def _context_tile(call: OpCall, dtype: str, head_dim: int, group: int) -> tuple[int, int, int, int]:
    """(rows, keys, warps, stages) that neither spill registers nor need more shared memory than the architecture has."""
    least = next_power_of_2(group)
    if dtype == "fp32":
        return max(32 if head_dim <= 128 else 16, least), 32 if head_dim <= 64 else 16, 4 if head_dim <= 64 else 8, 1
    if call.capability >= 90:
        return max(128, least), 64 if head_dim <= 128 else 32, 8, 2
    if head_dim <= 128:
        return max(128, least), 32, 4 if head_dim <= 64 else 8, 2
    return max(64, least), 32, 8, 2


def _concurrent(call: OpCall, tuned: dict[str, int]) -> str:
    """1 in steps whose decode sequences, none of them split, run concurrently with whole prompts, else 0 or less; empty if none do. None do
    where prompts are of fp8: the kernel that runs beside decoding multiplies 16 bits."""
    if not tuned["concurrent_tokens"] or call.get("queries") is not None:
        return ""
    tokens, seqs = call["qkv"].shape[0], call["seq_slots"].shape[0]
    enough = f"{tuned['concurrent_tokens']} * D - ({tokens} - D) + 1"
    return f"min(1, {enough}, {seqs} - D - C, D - {_parts_to_fill(call, tuned)} + 1)"


def _alone(concurrent_steps: str) -> str:
    """1 in steps whose decode sequences do not run concurrently with prompts, else 0."""
    return f"1 - max(0, {concurrent_steps})" if concurrent_steps else "1"


def _parts_to_fill(call: OpCall, tuned: dict[str, int]) -> int:
    """Number of parts of all sequences together, per KV head, that fill the GPU."""
    return max(1, tuned["split_target"] // call.integer("num_kv_heads"))


def _most_parts(call: OpCall, longest: int) -> int:
    """Most parts of one sequence; the longest possible sequence justifies `longest`.

    Where kernels overlap, programs of empty parts are worth their launch: with programs on only a few SMs, whole steps of one sequence were
    slower (docs/facts/decode-steps.md).
    """
    return _MAX_SPLITS if call.capability >= 90 and longest > 1 else min(_MAX_SPLITS, longest)


def _decode(builder: Builder, tuned: dict[str, int], concurrent_steps: str) -> None:
    call = builder.call
    table, out, heads = call["block_table"], call.outputs[0], call.integer("num_heads")
    page, head_dim = call["kv_cache"].size(4), call["kv_cache"].size(5)
    most, parts_to_fill = _most_parts(call, ceil_div(table.size(1) * page, tuned["split_tokens"])), _parts_to_fill(call, tuned)
    alone = _alone(concurrent_steps)
    to = launch_decode_cuda(builder, tuned, alone)
    if to >= table.size(0):
        return
    decodes = f"D * max(0, min(1, D - {to}))" if to else "D"
    if most == 1 or parts_to_fill < 2 * (to + 1):
        _decode_launch(builder, tuned, product(decodes, alone))
        return
    splits = f"max(1, min({most}, {parts_to_fill} // max(1, D)))"
    rows, many = f"min({parts_to_fill}, {most} * D)", f"min(1, {splits} - 1)"
    partials = builder.workspace("partials", (product(rows, heads), head_dim))
    stats = builder.workspace("stats", (product(rows, heads), 2))
    _decode_launch(builder, tuned, product(product(decodes, alone), f"max(0, 2 - {splits})"))
    _decode_launch(builder, tuned, product(decodes, many), splits, {"Acc": partials, "Stats": stats})
    builder.launch(
        "decode_attention.reduce_splits",
        {
            "Acc": partials,
            "Stats": stats,
            "KvLens": call["kv_lens"],
            "OutScale": scales(call)["OutScale"],
            "Out": out,
            "num_splits": I32(splits),
        },
        grid=(product(decodes, many, heads),),
        constexprs={
            "HEADS": heads,
            "D": head_dim,
            "PAGE": page,
            "PAGES": tuned["decode_pages"],
            "MAX_SPLITS": next_power_of_2(most),
            "QUANTIZE": call.get("out_scale") is not None,
        },
        warps=4 if call.capability >= 90 else 8,  # with four some spill on sm_89
    )


def _decode_launch(
    builder: Builder,
    tuned: dict[str, int],
    sequences: Dim,
    splits: Dim = 1,
    parts: dict[str, Operand] | None = None,
    *,
    concurrent: bool = False,
) -> None:
    """`parts`: where partial results go if sequences are split."""
    call, out = builder.call, builder.call.outputs[0]
    cache, table, kv_heads = call["kv_cache"], call["block_table"], call.integer("num_kv_heads")
    group, head_dim = call.integer("num_heads") // kv_heads, cache.size(5)
    warps = tuned["concurrent_decode_warps" if concurrent else "decode_warps"]
    builder.launch(
        "decode_attention.decode_attention",
        {
            "QKV": call["qkv"],
            "Cache": cache.slice(call.integer("layer")),
            "BlockTable": table,
            "Slots": call["seq_slots"],
            "KvLens": call["kv_lens"],
            **scales(call),
            "Out": out,
            **(parts or {"Acc": out, "Stats": out}),
            "scale_log2": scale_log2(call),
            "table_stride": I32(table.size(1)),
            "num_splits": I32(splits),
        },
        grid=(kv_heads, sequences, splits),
        constexprs={
            "HKV": kv_heads,
            "G": group,
            "GP": max(8, next_power_of_2(group)),
            "D": head_dim,
            "PAGE": cache.size(4),
            "WORDS": bits_of(cache.dtype) == 8 and head_dim >= 64,
            "SPLIT": parts is not None,
            **_flags(call),
            "CONCURRENT": concurrent,
            "THREADS": 32 * warps,
            "PAGES": 1 if concurrent else tuned["decode_pages"],
            "AHEAD": not concurrent and _ahead(tuned),
        },
        warps=warps,
        stages=tuned["concurrent_decode_stages" if concurrent else "decode_stages"],
        concurrent=concurrent,
    )


def _context(builder: Builder, tuned: dict[str, int], concurrent_steps: str) -> None:
    call = builder.call
    q, cache, table, slots = call["qkv"], call["kv_cache"], call["block_table"], call["seq_slots"]
    kv_heads, head_dim = call.integer("num_kv_heads"), cache.size(5)
    group = call.integer("num_heads") // kv_heads
    separate_prefill = reads_uncached_prefill(call, q.dtype, head_dim)
    if separate_prefill:
        some = f"{slots.shape[0]} - D - C"
        here = f"{some} - {slots.shape[0]} * max(0, {concurrent_steps})" if concurrent_steps else some
        if call.get("queries") is not None:
            fp8_launch(builder, call["queries"], call["keys"], call["values"], here)
        elif tuned["uncached_prefill_cuda"] and cuda_fits(call):
            cuda_launch(builder, here)
        else:
            uncached_prefill_launch(builder, tuned, "uncached_prefill", here, 0)
    if call.get("queries") is not None:
        fp8_context_launch(builder, call["queries"], cache.slice(call.integer("layer")), "C")
        return
    if tuned["context_cuda"] and cuda_context_fits(call):
        cuda_context_launch(builder, cache.slice(call.integer("layer")), "C")
        return
    block_q = tuned["context_block_m"] // group
    builder.launch(
        "context_attention.context_attention",
        {
            "QKV": q,
            "Cache": cache.slice(call.integer("layer")),
            "BlockTable": table,
            "Slots": slots,
            "QueryStart": call["query_start"],
            "KvLens": call["kv_lens"],
            **scales(call),
            "Out": call.outputs[0],
            "scale_log2": scale_log2(call),
            "table_stride": I32(table.size(1)),
            "num_decodes": I32("D"),
            "num_seqs": I32(slots.shape[0]),
        },
        grid=(f"{tiles(call, block_q)} * min(1, C)" if separate_prefill else tiles(call, block_q), kv_heads),
        constexprs={
            "HKV": kv_heads,
            "G": group,
            "D": head_dim,
            "PAGE": cache.size(4),
            "BLOCK_M": tuned["context_block_m"],
            "BLOCK_N": tuned["context_block_n"],
            **_flags(call),
            "SKIP_UNCACHED": separate_prefill,
        },
        warps=tuned["context_warps"],
        stages=tuned["context_stages"],
    )
