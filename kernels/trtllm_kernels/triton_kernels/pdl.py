"""Programmatic dependent launch (PDL): where a kernel of a step meets the one before it, on GPUs that can overlap the end of one with the
start of the next (sm_90 and later).

Every kernel calls `let_next_start`, then `wait_for_previous`, once and in every thread. The exception is a kernel launched as `concurrent`
(`types.Launch`), which does not wait: the kernel before it began only after everything before that had ended.

`let_next_start` permits the next kernel's blocks to begin once every block of this one has called it or ended. It is the first statement.
By then all blocks of this kernel have their place, so the next kernel's blocks take only what they leave, and it cannot be too early for
the results, since the next kernel waits for those itself.

`wait_for_previous` returns when the kernel before has ended and its writes are visible. Until then a kernel may load only what no kernel of
a step writes: constants (weights, their scales, norm weights, tables) and the step's inputs (slots, lengths, the block table: complete
before the first kernel begins, see below). It may also load what `prepare_step` computed from them (positions, cache slots), because the
kernel after `prepare_step` begins when that has ended (`types.Launch.serialize_next`). And it may load rows of the KV cache that earlier
steps wrote, which is all but the last of a decode sequence. It must not load any other result of the step, and must not store anything,
because the kernels before may still be reading what it would overwrite. The scale of an activation counts as a result: row-wise scales are
one. Anything may be prefetched into L2 (`prefetch.py`), which loads nothing.

A kernel waits only for the one right before it. But that one ended after its own wait, so after the end of the one before it, and so on to
the first of the run, which `driver.BoundProgram` launches in the ordinary way. A kernel that did not wait would break this chain for all
later ones. So kernels that gain nothing by it wait, too, and the machine code says whether a kernel does (`CubinInfo.waits`). Library
routines are launched in the ordinary way and so begin when everything before them has ended.

The lowering chooses PDL by the architecture; without it these functions emit nothing.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def let_next_start(PDL: tl.constexpr):
    if PDL:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(PDL: tl.constexpr):
    if PDL:
        gdc_wait()
