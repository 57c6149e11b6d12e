"""Where a kernel of a step meets the one before it, on GPUs that can have both at once (programmatic dependent launch, sm_90 and later).

Every kernel begins with `let_next_start` and then `wait_for_previous`, once and in every thread. The first lets the driver place the next
kernel's blocks as soon as every block of this one has begun, on what room the last ones leave: so it comes first, since it takes nothing from
this kernel, whose blocks all have theirs. The second returns when the kernel before has ended and its writes are visible.

Between the two a kernel may load constants (weights, scales of weights, norm weights, tables) and touch nothing else: no result of the
step, no input of it, and no store at all, because the kernels before may still be reading what it would overwrite. An activation's scale
counts as a result: with scales by row it is one.

What "the kernel before has ended" is worth: it ended after its own wait, hence after the kernel before it had ended, and so on to the
first of the step. One kernel that does not wait would break that chain for all after it, so even those wait that would gain nothing by
starting early. Routines of a library never let a successor start early nor start early themselves, and break nothing.

`OVERLAP` is chosen by the lowering; without it neither instruction is emitted.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait


@triton.jit
def let_next_start(OVERLAP: tl.constexpr):
    if OVERLAP:
        gdc_launch_dependents()


@triton.jit
def wait_for_previous(OVERLAP: tl.constexpr):
    if OVERLAP:
        gdc_wait()
