"""What whole decode steps may try of decode attention of few sequences (`decode_cuda.py`), which an op alone does not show."""

from __future__ import annotations

from trtllm_kernels.dialect.dtypes import bytes_of
from trtllm_kernels.lowering.call import OpCall
from trtllm_kernels.lowering.decode_cuda import DECODE_CUDA_TO, decode_cuda_fits, decode_cuda_tunables
from trtllm_kernels.lowering.space import Choice, table

_TILES = (
    *((1, 4, 3), (2, 4, 3), (4, 2, 3), (4, 4, 2), (4, 4, 3), (4, 4, 6), (8, 2, 3), (8, 4, 3), (8, 4, 2)),
    *((1, 1, 3), (1, 2, 3), (2, 1, 2), (2, 1, 3), (2, 1, 6), (2, 2, 3), (4, 1, 3), (4, 2, 2), (8, 1, 2), (8, 1, 3), (8, 1, 6)),
)
"""(blocks per sequence and KV head, warps, pages in flight per warp)."""
_MOST_BYTES = 192 * 1024
"""Of the pages in flight of a block."""
_SIZES = ("one", "few", "some", "more", "longer_one", "longer_few", "longer_some", "long_one", "long_few", "long_some")
"""Names of the ranges of sequences, and lengths, that have a tile."""


def decode_step_space(call: OpCall) -> tuple[Choice, ...]:
    """A tile for each range of sequences, of those that shared memory holds, and the routine for many sequences in its place."""
    tunables = decode_cuda_tunables(call)
    if not decode_cuda_fits(call) or not tunables[DECODE_CUDA_TO]:
        return ()
    cache = call["kv_cache"]
    page_bytes = 2 * bytes_of(cache.size(4) * cache.size(5), cache.dtype)
    tiles = [
        (splits, warps, stages)
        for splits, warps, stages in _TILES
        if cache.size(5) // 16 % splits == 0 and warps * stages * page_bytes <= _MOST_BYTES
    ]
    names = {size: tuple(f"decode_{size}_{name}" for name in ("splits", "warps", "stages")) for size in _SIZES}
    return (
        *(Choice(f"decode {size}", table(of_size, *tiles)) for size, of_size in names.items() if {*of_size} <= tunables.keys()),
        Choice("decode to", ({DECODE_CUDA_TO: 0},)),
    )
