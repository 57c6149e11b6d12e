"""Lowerings register themselves: the decorator names the ops, what tuning may try for them and, where kernels differ in it, which
sequences of a step each kernel serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from trtllm_kernels.dialect.ops import OP_SPECS
from trtllm_kernels.dialect.types import Lowered
from trtllm_kernels.errors import KernelError
from trtllm_kernels.lowering.call import OpCall, capability
from trtllm_kernels.lowering.space import Choice

Phase = Literal["decode", "context"]
LowerFunction = Callable[[OpCall], Lowered]


@dataclass(frozen=True)
class Lowering:
    lower: LowerFunction
    space: Callable[[OpCall], tuple[Choice, ...]]
    kernel_phases: Mapping[str, Phase] = field(default_factory=dict)
    """Kernel function -> the sequences of a step that it serves; a kernel of all of them is not in it."""
    step_space: Callable[[OpCall], tuple[Choice, ...]] | None = None
    """What whole decode steps may try; None: what `space` has for decode steps."""
    capabilities: tuple[int, ...] = ()
    """Compute capabilities it has kernels for; empty for all."""
    normed_to: Callable[[OpCall], int] | None = None
    """Of products: in steps of up to how many tokens it can take the norm of its rows itself (`OpCall.normed`); 0 for none."""


LOWERINGS: dict[str, Lowering] = {}
"""By op."""


def has_kernels(op: str, arch: str) -> bool:
    """Whether `op` lowers on `arch`."""
    capabilities = LOWERINGS[op].capabilities if op in LOWERINGS else (0,)
    return not capabilities or capability(arch) in capabilities


def lowers(
    *ops: str,
    space: Callable[[OpCall], tuple[Choice, ...]],
    step_space: Callable[[OpCall], tuple[Choice, ...]] | None = None,
    kernel_phases: Mapping[str, Phase] | None = None,
    capabilities: tuple[int, ...] = (),
    normed_to: Callable[[OpCall], int] | None = None,
) -> Callable[[LowerFunction], LowerFunction]:
    """Registers the decorated function as the lowering of `ops`. Raises `KernelError` for an op without a specification."""

    def register(lower: LowerFunction) -> LowerFunction:
        for op in ops:
            if op not in OP_SPECS:
                raise KernelError(f"op {op!r} has no specification; register one in trtllm_kernels.dialect.ops")
            LOWERINGS[op] = Lowering(lower, space, kernel_phases or {}, step_space, capabilities, normed_to)
        return lower

    return register
