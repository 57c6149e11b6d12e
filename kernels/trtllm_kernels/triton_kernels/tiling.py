"""Tiles of a persistent GEMM, for the kernels that end in an activation (`gate_up`, `linear_gelu`): how it begins, and which tiles a
program computes.

Every program computes the same number of tiles. What is left over is one tile each for some programs or, if it divides into no more halves
than there are programs, half a tile each: 52 tiles left over on 132 programs cost half a tile's time instead of a whole one's.
"""

import triton
import triton.language as tl

from trtllm_kernels.triton_kernels.pdl import let_next_start, wait_for_previous
from trtllm_kernels.triton_kernels.quantize import result_scale


@triton.jit
def begin(XScale, WScale, OutScale, SCALED: tl.constexpr, QUANTIZE: tl.constexpr, PDL: tl.constexpr):
    """(factor that dequantizes the sums, scale of the result), after the wait for x. The scales point at one fp32 each."""
    let_next_start(PDL)
    out_scale = result_scale(OutScale, QUANTIZE)
    dequantize = 1.0
    if SCALED:
        dequantize = tl.load(WScale)
    wait_for_previous(PDL)
    if SCALED:
        dequantize *= tl.load(XScale)
    return dequantize, out_scale


@triton.jit
def locate_tile(tile, tiles_m, tiles_n, GROUP: tl.constexpr):
    """(row block, column block). Goes down groups of GROUP row blocks, so that a weight tile is reused from L2."""
    group = tile // (GROUP * tiles_n)
    rows = tl.minimum(tiles_m - group * GROUP, GROUP)
    return group * GROUP + (tile % (GROUP * tiles_n)) % rows, (tile % (GROUP * tiles_n)) // rows


@triton.jit
def whole_tiles(tiles, PROGRAMS: tl.constexpr, HALVES: tl.constexpr):
    """How many of the tiles, counted from the first, are computed whole."""
    even = tiles // PROGRAMS * PROGRAMS
    return tl.where(2 * (tiles - even) <= PROGRAMS, even, tiles) if HALVES else tiles
