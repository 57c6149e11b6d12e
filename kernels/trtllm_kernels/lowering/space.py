"""What tuning may try: for each op, which tunables are chosen together, which values they may take, and in which steps that shows.

Candidates are data and optimistic: one that needs more shared memory than a block has, or spills registers, is found out by compiling it
and one that a shape does not admit lowers to the same launches as another, so neither is written down here as a rule. Lists are short,
since every entry costs a compilation and a measurement: values around the default, one decision at a time, and not a full product.

Left out is what shows only where kernels run at once, which races of single ops do not: decode attention beside prompts and, where a kernel
begins before the one before it has ended, tiles of one-token products and how much of a weight is asked for ahead.

A *threshold* is a number of tokens from which another routine takes over. It is judged at token counts of its own, after the tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product

from trtllm_kernels.dialect.dtypes import elements_in
from trtllm_kernels.lowering.call import OpCall, next_power_of_2
from trtllm_kernels.lowering.gemm import ALGORITHM_SIZES, algorithm_of, fused_fits
from trtllm_kernels.lowering.prefill import cuda_context_fits, cuda_fits
from trtllm_kernels.lowering.skinny_gemm import IN_TRITON, SKINNY_TO, skinny_cuda_fits, skinny_fits, skinny_sizes

Candidate = Mapping[str, int]

DECODE, PREFILL, CHUNK = "decode", "prefill", "chunk"
"""Steps: one token of each of many sequences; a whole prompt; a part of a prompt whose beginning is in the cache."""
NEVER = 1 << 29
"""A threshold no step reaches."""
TOKENS = (32, 64, 128, 192, 256, 384, 512, 1024)
"""Where thresholds are judged."""
PROPOSALS = (1, 2, 3, 4, 5)
"""Of cuBLASLt's heuristic, after its first."""


@dataclass(frozen=True)
class Choice:
    """Tunables decided together. `tokens`: where a threshold is judged, in place of the token counts asked for."""

    name: str
    candidates: tuple[Candidate, ...]
    steps: tuple[str, ...] = (DECODE,)
    tokens: tuple[int, ...] = ()

    @property
    def tunables(self) -> frozenset[str]:
        return frozenset(name for candidate in self.candidates for name in candidate)


def _grid(**values: Iterable[int]) -> tuple[Candidate, ...]:
    return tuple(dict(zip(values, combination, strict=True)) for combination in product(*values.values()))


def _tiles(names: tuple[str, ...], *rows: tuple[int, ...]) -> tuple[Candidate, ...]:
    return tuple(dict(zip(names, row, strict=True)) for row in rows)


def _columns(call: OpCall) -> tuple[Choice, ...]:
    """Kernels over blocks of columns; no more warps than leave a thread four elements."""
    widest = next_power_of_2(max(call.outputs[0].size(1), 128))
    blocks = [block for block in (256, 512, 1024, 2048, 4096) if block <= widest] or [widest]
    return (Choice("columns", tuple(c for c in _grid(block=blocks, warps=(1, 2, 4, 8)) if c["block"] >= 128 * c["warps"])),)


def _rows(call: OpCall) -> tuple[Choice, ...]:
    return (Choice("rows", _grid(warps=(1, 2, 4, 8, 16))),)


def _heads(call: OpCall) -> tuple[Choice, ...]:
    return (Choice("heads", _grid(block_h=(2, 4, 8, 16, 32), warps=(1, 2, 4))),)


def _prepare(call: OpCall) -> tuple[Choice, ...]:
    return (Choice("step", _grid(block=(64, 128, 256), warps=(2, 4))),)


def _one_token(call: OpCall) -> tuple[Choice, ...]:
    """Our kernel at several tiles, or cuBLASLt; that first, since a tile that does not fit the shape comes to the same."""
    if call.capability >= 90:
        return ()
    wide = 1 if call["weight"].dtype == "fp8" else 2
    tiles = ((2, 2048, 4), (4, 1024, 4), (4, 2048, 2), (4, 2048, 8), (8, 1024, 4), (8, 2048, 8), (2, 4096, 4), (16, 512, 4))
    ours = tuple({"gemv_rows": max(2, rows // wide), "gemv_columns": columns, "gemv_warps": warps} for rows, columns, warps in tiles)
    return (Choice("one token", ({"gemv": 0}, *ours)),)


def _skinny_gemm(call: OpCall) -> tuple[Choice, ...]:
    """A tile for each padded size, whole and divided: rows, bytes of K, warps, stages, splits; in CUDA C++ blocks an SM and parts of K. And
    up to how many tokens they are taken."""
    if not skinny_fits(call):
        return ()
    tiles: tuple[tuple[int, ...], ...] = (
        *((64, 512, 4, 3, 1), (64, 256, 4, 3, 1), (64, 256, 4, 6, 1), (64, 128, 4, 8, 1), (128, 256, 8, 4, 1)),
        *(((64, 512, 4, 3, 2), (64, 256, 4, 3, 2), (128, 256, 8, 4, 4)) if call.op == "linear" else ()),
    )
    in_cuda = ((1, 1), (1, 2), (2, 1), (2, 2)) if skinny_cuda_fits(call) else ()
    dtype = call["weight"].dtype
    rows, k, *rest = tiles[0]
    in_both = (
        *((rows, elements_in(k, dtype), *rest, *one) for one in in_cuda),
        *((rows, elements_in(k, dtype), *rest, 0, 1) for rows, k, *rest in tiles),
    )
    cuda_names = ("blocks", "parts")
    names = ("rows", "k", "warps", "stages", "splits", *cuda_names)

    def choice(padded: int) -> Choice:
        these, values = (names, in_both) if padded in IN_TRITON else (cuda_names, in_cuda)
        return Choice(f"few {padded}", _tiles(tuple(f"skinny{padded}_{name}" for name in these), *values))

    sizes = skinny_sizes(call)
    return (*map(choice, sizes), Choice("few to", _grid(**{SKINNY_TO: (0, *sizes[:-1])}), (PREFILL,), sizes))


def _algorithm(size: int) -> Choice:
    """cuBLASLt's other proposals, judged at the largest size they are taken for and at one well below."""
    return Choice(f"algorithm to {size}", _grid(**{algorithm_of(size): PROPOSALS}), (PREFILL,), (size - size // 4, size))


def _linear(call: OpCall) -> tuple[Choice, ...]:
    few = _skinny_gemm(call)
    covered = skinny_sizes(call)[-1] if few else 0
    ours = (*_one_token(call), *few) if call["x"].dtype != "fp32" else ()
    scale = call.get("weight_scale")
    by_torch = scale is not None and len(scale.shape) == 2
    return ours if by_torch else (*ours, *(_algorithm(size) for size in ALGORITHM_SIZES if size > covered))


def _activated(call: OpCall) -> tuple[Choice, ...]:
    if call["x"].dtype == "fp32":
        return ()
    few = (_one_token(call) if call.op == "gate_up_silu" else ()) + _skinny_gemm(call)
    if not fused_fits(call):
        return few
    names = ("block_m", "block_n", "block_k", "group", "warps", "stages")
    k = 64 if call["x"].dtype != "fp8" else 128
    rows: tuple[tuple[int, ...], ...] = (
        (128, 256, k, 4, 8, 4),
        (128, 256, k, 16, 8, 4),
        (128, 256, k, 8, 8, 3),
        (128, 256, k // 2, 8, 8, 4),
        (128, 128, k, 8, 8, 4),
        (128, 128, k, 8, 4, 4),
        (256, 128, k, 8, 8, 3),
        (64, 256, k, 8, 4, 4),
        (64, 256, k, 8, 8, 4),
    )
    tiles = Choice("tiles", _tiles(names, *rows), (PREFILL,))
    halves = Choice("halves", ({"halves": 1},), (PREFILL,))
    threshold = Choice("fused from", tuple({"fused_from": n} for n in (*TOKENS, NEVER)), (PREFILL,), TOKENS)
    return (*few, tiles, halves, threshold)


def _paged_attention(call: OpCall) -> tuple[Choice, ...]:
    decode = Choice("decode", _grid(decode_warps=(1, 2, 4), decode_stages=(2, 3, 4, 6, 8)))
    split = Choice("split", _grid(split_target=tuple(n * call.sm_count for n in (1, 2, 4, 8)), split_tokens=(32, 64, 128, 256)))
    names = ("block_m", "block_n", "warps", "stages")
    fresh = (
        *((64, 64, 4, 3),) * cuda_fits(call),
        *((64, 64, 4, 2), (64, 64, 4, 4), (64, 128, 4, 2), (64, 32, 4, 2), (64, 32, 4, 3)),
        *((128, 64, 8, 2), (128, 64, 8, 3), (128, 64, 4, 2), (128, 32, 8, 2), (128, 32, 8, 3), (128, 128, 8, 2)),
    )
    by_triton = {"uncached_prefill_cuda": 0} if cuda_fits(call) else {}
    chunks = {"context_cuda": 0} if cuda_context_fits(call) else {}
    context = (
        *((128, 64, 8, 2),) * cuda_context_fits(call),
        *((128, 64, 8, 3), (128, 32, 8, 2), (128, 32, 4, 2), (64, 64, 4, 2), (64, 32, 4, 2), (64, 32, 4, 3), (128, 64, 4, 2)),
    )
    return (
        decode,
        split,
        Choice(
            "fresh prompts",
            tuple({**by_triton, **tile} for tile in _tiles(tuple(f"uncached_prefill_{name}" for name in names), *fresh)),
            (PREFILL,),
        ),
        Choice(
            "context chunks", tuple({**chunks, **tile} for tile in _tiles(tuple(f"context_{name}" for name in names), *context)), (CHUNK,)
        ),
    )


_SPACES: Mapping[str, Callable[[OpCall], tuple[Choice, ...]]] = {
    "embedding": _columns,
    "rms_norm": _rows,
    "layer_norm": _rows,
    "linear": _linear,
    "linear_sample": _linear,
    "gate_up_silu": _activated,
    "linear_gelu": _activated,
    "quantize": _columns,
    "quantize_rows": _rows,
    "split": _columns,
    "rope": _heads,
    "silu_mul": _columns,
    "silu_mul_packed": _columns,
    "gelu": _columns,
    "add": _columns,
    "gather_rows": _columns,
    "add_rms_norm": _rows,
    "add_layer_norm": _rows,
    "prepare_step": _prepare,
    "rope_kv_write": _heads,
    "paged_attention": _paged_attention,
}


def choices(call: OpCall) -> tuple[Choice, ...]:
    return _SPACES[call.op](call)
