"""Weights asked into L2 before their turn: what a program does between loading its own first tiles and waiting (`overlap.py`).

While a one-token product waits for x, only what its programs hold in registers is on the way; then memory idles until the kernels before
it have ended. L2 has room for more: the rest of the program's own rows, the rows of programs that do not fit the chip at once, and the
beginning of the next product's weight. Only programs of the first wave ask, each for an equal share; the lowering sizes shares so that none
passes a tensor's end. A line is asked for once, nothing waits for it, and no result depends on it.

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
def ask_rows(at, K: tl.constexpr, ROWS: tl.constexpr, LINES: tl.constexpr, PROGRAMS: tl.constexpr, THREADS: tl.constexpr):
    """The first LINES lines at `at` and at the same place of the ROWS - 1 rows after, K elements each. PROGRAMS 0: every program asks."""
    ELEMENTS: tl.constexpr = 1024 // at.dtype.element_ty.primitive_bitwidth
    for begin in tl.static_range(0, ROWS * LINES, THREADS):
        line = begin + tl.arange(0, THREADS)
        wanted = line < ROWS * LINES
        if PROGRAMS:
            wanted &= tl.program_id(0) < PROGRAMS
        _ask(at + (line // LINES * K + line % LINES * ELEMENTS), wanted)


@triton.jit
def ask_share(at, LINES: tl.constexpr, PROGRAMS: tl.constexpr, THREADS: tl.constexpr):
    """This program's LINES lines of PROGRAMS times as many at `at`."""
    ELEMENTS: tl.constexpr = 1024 // at.dtype.element_ty.primitive_bitwidth
    ask_rows(at + tl.program_id(0).to(tl.int64) * (LINES * ELEMENTS), 0, 1, LINES, PROGRAMS, THREADS)
