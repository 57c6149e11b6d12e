"""Which tile of a ragged batch of context chunks a program computes.

Sequence s owns tiles from `start(s) // BLOCK_Q + s` on, an upper bound on the tiles before it that needs no prefix sum. So the grid is an
expression over symbols, and a few programs have nothing to do.
"""

import triton
import triton.language as tl


@triton.jit
def locate(tile, QueryStart, num_decodes, num_seqs, BLOCK_Q: tl.constexpr):
    """(sequence, its first row, its rows, the tile's first row within it), among sequences [num_decodes, num_seqs).

    The other sequences have one row each, before these. The last result may lie at or past the sequence's rows: then the tile is empty.
    """
    low = num_decodes
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if (tl.load(QueryStart + middle) - num_decodes) // BLOCK_Q + (middle - num_decodes) <= tile:
            low = middle
        else:
            high = middle
    begin = tl.load(QueryStart + low)
    rows = tl.load(QueryStart + low + 1) - begin
    first = (tile - ((begin - num_decodes) // BLOCK_Q + (low - num_decodes))) * BLOCK_Q
    return low, begin, rows, first
