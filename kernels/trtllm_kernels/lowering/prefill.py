"""Lowering of prefill attention: of context chunks and whole prompts to CUDA C++, and of whole prompts, with keys and values read from the
projection, to Triton.

A kernel computes the same in either language. CUDA C++ was faster at every length measured on an H100, so it is the default where it fits;
tuning measures both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from trtllm_kernels.dialect.dtypes import bytes_of, elements_in
from trtllm_kernels.dialect.types import KEY_BLOCK
from trtllm_kernels.lowering.call import F32, I32, Builder, OpCall, Operand, Parameter, Tma

CONTEXT_HEAD_DIMS = (64, 128)
"""Of heads for which kernels in CUDA C++ exist."""
CUDA_TILE = KEY_BLOCK
"""Queries of a tile, and keys of a block, of the kernel in CUDA C++."""
_CUDA_TILES, _CUDA_FP8_TILES = 6, 10
"""Tiles that it keeps in shared memory: two each of queries, keys and values, or in fp8 four each of the latter. With an fp8 cache two
tiles of codes are added, and barriers."""
_CUDA_REST_BYTES = 256
_CUDA_ONES_BYTES = 4 * 1024
"""Behind the tiles of values in fp8."""


def scales(call: OpCall) -> dict[str, Operand]:
    """The scale pointers that kernels take; an arbitrary pointer where there is no scale. A cache scaled by row has those of its layer."""
    rows = call.get("kv_scales")
    named = (("KScale", "k_scale"), ("VScale", "v_scale"), ("OutScale", "out_scale"))
    return {
        **{name: call.get(arg) or call["kv_lens"] for name, arg in named},
        **({} if rows is None else {"KScale": rows.slice(call.integer("layer"))}),
    }


def reads_uncached_prefill(call: OpCall, dtype: str, head_dim: int) -> bool:
    """Whether whole prompts read their keys by TMA from the projection (`uncached_prefill_attention`) rather than from the cache."""
    return call.capability == 90 and dtype in ("bf16", "fp16") and head_dim >= 64


def scale_log2(call: OpCall) -> F32:
    return F32(call.number("scale") * math.log2(math.e))


def tiles(call: OpCall, block_q: int) -> str:
    """Upper bound on the tiles of `block_q` tokens that the context sequences have (`tiles.locate`)."""
    return f"(({call['qkv'].shape[0]} - D) // {block_q} + {call['seq_slots'].shape[0]} - D)"


def _sequences(call: OpCall) -> dict[str, Parameter]:
    """Parameters that both kernels take after their matrices, in order."""
    return {
        "QueryStart": call["query_start"],
        "KvLens": call["kv_lens"],
        "OutScale": scales(call)["OutScale"],
        "Out": call.outputs[0],
        "scale_log2": scale_log2(call),
        "num_decodes": I32("D"),
        "num_seqs": I32(call["seq_slots"].shape[0]),
    }


def uncached_prefill_launch(builder: Builder, tuned: Mapping[str, int], tile: str, some: str, programs: int) -> None:
    """`tile`: prefix of the tunables of its tile. `some`: 1 or more in steps that have whole prompts. `programs`: the kernel's PROGRAMS."""
    call = builder.call
    q, kv_heads, head_dim = call["qkv"], call.integer("num_kv_heads"), call["kv_cache"].size(5)
    block_m, block_n = tuned[f"{tile}_block_m"], tuned[f"{tile}_block_n"]
    count, here = tiles(call, block_m), f"min(1, {some})"
    heads = call.integer("num_heads")
    builder.launch(
        "uncached_prefill_attention.uncached_prefill_attention",
        {
            "Queries": Tma(q, block_m, head_dim),
            "Keys": Tma(q, block_n, head_dim),
            **_sequences(call),
            "num_tiles": I32(count),
        },
        grid=(f"min({programs}, {count} * {heads}) * {here}",) if programs else (f"{count} * {here}", heads),
        constexprs={
            "HKV": kv_heads,
            "G": heads // kv_heads,
            "D": head_dim,
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "QUANTIZE": call.get("out_scale") is not None,
            "PROGRAMS": programs,
        },
        warps=tuned[f"{tile}_warps"],
        stages=tuned[f"{tile}_stages"],
    )


def cuda_fits(call: OpCall) -> bool:
    """Whether the CUDA C++ version of `uncached_prefill_attention` fits."""
    return reads_uncached_prefill(call, call["qkv"].dtype, call["kv_cache"].size(5)) and call["kv_cache"].size(5) in CONTEXT_HEAD_DIMS


def cuda_context_fits(call: OpCall) -> bool:
    """Whether the CUDA C++ version of `context_attention` fits: the cache is fp8 with scales, or of the queries' dtype."""
    q, cache = call["qkv"], call["kv_cache"]
    same = cache.dtype == q.dtype and call.get("k_scale") is None
    codes = cache.dtype == "fp8" and call.get("k_scale") is not None and call.get("v_scale") is not None
    return cuda_fits(call) and (same or codes)


def fp8_fits(call: OpCall) -> bool:
    """Whether the kernels of prompts in fp8 fit: the cache is fp8 with scales."""
    return cuda_context_fits(call) and call["kv_cache"].dtype == "fp8"


def cuda_launch(builder: Builder, some: str) -> None:
    """`some`: as in `uncached_prefill_launch`."""
    q, half = builder.call["qkv"], builder.call["qkv"].dtype == "fp16"
    _launch_cuda(builder, "uncached_prefill_attention", some, {"QKV": _rows_of(q)}, {}, {"HALF": half})


def fp8_context_launch(builder: Builder, queries: Operand, cache: Operand, some: str) -> None:
    """Attention of continued prompts in fp8 over the codes of `cache`, that of the layer; queries as in `fp8_launch`. `some`: as in
    `cuda_context_launch`."""
    call = builder.call
    head_dim, page = call["kv_cache"].size(5), call["kv_cache"].size(4)
    half, tiles_of_codes = call["qkv"].dtype == "fp16", 2
    _launch_cuda(
        builder,
        "context_attention",
        some,
        {"Queries": Tma(queries, CUDA_TILE, head_dim), "Cache": Tma(cache, page, head_dim), **_pages(call)},
        {"table_stride": I32(call["block_table"].size(1))},
        {
            "HALF": half,
            "OUT_HALF": half,
            "CODES": True,
            "FP8": True,
            "PAGE": page,
            "SHARED_BYTES": _fp8_bytes(head_dim, tiles_of_codes),
        },
    )


def fp8_launch(builder: Builder, queries: Operand, keys: Operand, values: Operand, some: str) -> None:
    """Attention of whole prompts in fp8: queries [tokens, Hq*D], keys [tokens + `CUDA_TILE`, Hkv*D] and values [Hkv*D, columns], the last
    two with the cache's scales. `some`: as in `uncached_prefill_launch`."""
    call, scaled = builder.call, scales(builder.call)
    head_dim = call["kv_cache"].size(5)
    _launch_cuda(
        builder,
        "uncached_prefill_attention",
        some,
        {
            "Queries": Tma(queries, CUDA_TILE, head_dim),
            "Keys": Tma(keys, CUDA_TILE, head_dim, interleaved=True),
            "Values": Tma(values, head_dim, CUDA_TILE),
            "KScale": scaled["KScale"],
            "VScale": scaled["VScale"],
        },
        {},
        {"HALF": call["qkv"].dtype == "fp16", "FP8": True, "SHARED_BYTES": _fp8_bytes(head_dim)},
    )


def cuda_context_launch(builder: Builder, cache: Operand, some: str) -> None:
    """`cache`: that of the layer. `some`: 1 or more in steps with continued sequences."""
    call = builder.call
    table, half, codes = call["block_table"], call["qkv"].dtype == "fp16", cache.dtype == "fp8"
    page = call["kv_cache"].size(4)
    _launch_cuda(
        builder,
        "context_attention",
        some,
        {
            "QKV": _rows_of(call["qkv"]),
            "Cache": cache if codes else Tma(cache, page, elements_in(128, cache.dtype)),
            **_pages(call),
        },
        {"table_stride": I32(table.size(1))},
        {"HALF": half or codes, "OUT_HALF": half, "CODES": codes, "PAGE": page},
    )


def _fp8_bytes(head_dim: int, more_tiles: int = 0) -> int:
    return (_CUDA_FP8_TILES + more_tiles) * CUDA_TILE * head_dim + _CUDA_ONES_BYTES + _CUDA_REST_BYTES


def _pages(call: OpCall) -> dict[str, Parameter]:
    """Parameters that attention of continued prompts takes after the cache, in order."""
    scaled = scales(call)
    return {
        "BlockTable": call["block_table"],
        "Slots": call["seq_slots"],
        "KScale": scaled["KScale"],
        "VScale": scaled["VScale"],
    }


def _rows_of(qkv: Operand) -> Tma:
    return Tma(qkv, CUDA_TILE, elements_in(128, qkv.dtype))


def _launch_cuda(
    builder: Builder, name: str, some: str, first: Mapping[str, Parameter], last: Mapping[str, Parameter], own: Mapping[str, int]
) -> None:
    """`first` and `last`: what kernel `name` takes before and after the parameters common to both. `own`: its own constants. Persistent,
    one block per SM."""
    call = builder.call
    q, heads, kv_heads, head_dim = call["qkv"], call.integer("num_heads"), call.integer("num_kv_heads"), call["kv_cache"].size(5)
    tile = CUDA_TILE * head_dim
    builder.launch(
        f"{name}.{name}",
        {**first, **_sequences(call), **last},
        grid=(f"min({call.sm_count}, {tiles(call, CUDA_TILE)} * {heads}) * min(1, {some})",),
        constexprs={
            "HKV": kv_heads,
            "G": heads // kv_heads,
            "D": head_dim,
            "QUANTIZE": call.get("out_scale") is not None,
            "SHARED_BYTES": _CUDA_TILES * bytes_of(tile, q.dtype) + 2 * own.get("CODES", 0) * tile + _CUDA_REST_BYTES,
            **own,
        },
        warps=12,
        cuda=True,
    )
