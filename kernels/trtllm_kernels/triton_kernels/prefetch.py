"""Memory asked into L2 before its turn: what a program whose loads come after the wait (`overlap.py`) does before it.

Loads by TMA start after it, since x comes with them; what a program asks for before costs no registers and no shared memory, nothing waits
for it, and no result depends on it: so what a running kernel still writes may be asked for, too. No line passes a tensor's end: of a weight
the lowering counts them, of the cache it is a page.

A predicate and no branch: the order of the text before the wait stays that of every thread.
"""

import triton
import triton.language as tl


@triton.jit
def _ask(at, wanted):
    """Asks for the line of 128 bytes at each address `at` that is `wanted`."""
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }",
        "=r,l,r",
        [at, wanted.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def ask_rows(at, K: tl.constexpr, ROWS: tl.constexpr, LINES: tl.constexpr, THREADS: tl.constexpr):
    """The first LINES lines at `at` and at the same place of the ROWS - 1 rows after, K elements each."""
    ELEMENTS: tl.constexpr = 1024 // at.dtype.element_ty.primitive_bitwidth
    for begin in tl.static_range(0, ROWS * LINES, THREADS):
        line = begin + tl.arange(0, THREADS)
        _ask(at + (line // LINES * K + line % LINES * ELEMENTS), line < ROWS * LINES)
