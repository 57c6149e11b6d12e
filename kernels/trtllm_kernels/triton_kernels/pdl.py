"""Where a kernel of a step meets the one before it, on GPUs that run the end of one and the start of the next at once (sm_90 and later).

Every kernel calls `let_next_start`, then `wait_for_previous`, once and in every thread (programmatic dependent launch); but one launched
`concurrent` the one before it (`types.Launch`) does not wait: that one began only after all before it had ended.

`let_next_start` permits the next kernel's blocks to begin once every block of this one has called it or ended. It is the first statement:
by then all blocks of this kernel have their place, so the next one's take only what they leave, and it cannot be too early for the
results, since the next kernel waits for those itself.

`wait_for_previous` returns when the kernel before has ended and its writes are visible. Until then a kernel may load what no kernel of a
step writes, and that only: constants (weights, their scales, norm weights, tables), the step's inputs (slots, lengths, the block table:
complete before the first kernel begins, see below), and what `prepare_step` made of them (positions, cache slots), because the kernel after
that one begins when it has ended (`types.Launch`, settles). No other result of the step, and no store at all, because the kernels before
may still be reading what it would overwrite. An activation's scale counts as a result: by row it is one.
Anything may be asked into L2 (`ahead.py`), which loads nothing.

Only the kernel right before is waited for. But that one ended after its own wait, so after the end of the one before it, and so on to the
first of the run, which `driver.BoundProgram` launches in the ordinary way. A kernel that did not wait would break this chain for all
after it: so those wait, too, that gain nothing by it, and the machine code says whether a kernel does (`CubinInfo.waits`). Routines of a
library are launched in the ordinary way and so begin when all before has ended.

PDL is the lowering's to choose, by the architecture; without it nothing is emitted.
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
