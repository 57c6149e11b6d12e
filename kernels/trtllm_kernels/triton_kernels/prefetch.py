"""Prefetch into L2: what a program whose loads come after the wait (`pdl.py`) does before it.

Loads by TMA start after the wait, since x comes with them. A prefetch before it costs no registers and no shared memory, nothing waits for
it, and no result depends on it. So even what a running kernel still writes may be prefetched. No line passes a tensor's end: the lowering
counts the lines of a weight, and of the cache it is a page.

It uses a predicate and no branch, so that the code before the wait keeps its order in every thread.
"""

import triton
import triton.language as tl


@triton.jit
def _prefetch_lines(at, enabled):
    """Prefetches the line of 128 bytes at each address `at` whose `enabled` is true."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }",
        "=r,l,r",
        [at, enabled.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def prefetch_rows(at, K: tl.constexpr, ROWS: tl.constexpr, LINES: tl.constexpr, THREADS: tl.constexpr):
    """Prefetches the first LINES lines at `at` and at the same position of the next ROWS - 1 rows, of K elements each."""
    ELEMENTS: tl.constexpr = 1024 // at.dtype.element_ty.primitive_bitwidth
    for begin in tl.static_range(0, ROWS * LINES, THREADS):
        line = begin + tl.arange(0, THREADS)
        _prefetch_lines(at + (line // LINES * K + line % LINES * ELEMENTS), line < ROWS * LINES)
