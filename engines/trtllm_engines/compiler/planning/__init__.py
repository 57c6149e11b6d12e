"""From a list of ops to what the runtime needs of them: which results reuse an input's memory, which launches carry each op out on each
architecture, and where every value lives. In this order: launches depend on reuse, and memory on the launches' workspaces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trtllm_engines.compiler.plan import Buffer, Op, Profile
from trtllm_engines.compiler.planning.plan_memory import plan_memory
from trtllm_engines.compiler.planning.reuse_inputs import reuse_inputs
from trtllm_engines.compiler.planning.select_tactics import select_tactics
from trtllm_engines.errors import EngineError
from trtllm_kernels.dialect.types import TensorSpec


@dataclass(frozen=True)
class Planned:
    """The ops with `reuses` and `tactics` set, the buffer of every value and workspace, and the arena's size in bytes."""

    ops: tuple[Op, ...]
    buffers: Mapping[str, Buffer]
    arena_bytes: int


def plan_ops(
    ops: Sequence[Op],
    values: Mapping[str, TensorSpec],
    specs: Mapping[str, TensorSpec],
    outputs: Sequence[str],
    profile: Profile,
    arches: Sequence[str],
    gpu: str = "",
) -> Planned:
    """`values` are the ops' results; `specs` hold these and every weight, constant and step input; `outputs` are kept for the caller.
    `gpu`: whose recorded tactics to take. Raises `EngineError` for scratch memory that would hide what has its name."""
    reusing = reuse_inputs(ops, values, outputs)
    lowered = select_tactics(reusing, specs, arches, gpu, outputs)
    scratch = {name for op in lowered for one in op.tactics.values() for name in one.workspaces}
    if hidden := scratch & specs.keys():
        raise EngineError(f"scratch memory of an op is called {min(hidden)}, as a tensor of the model is; its lowering needs another name")
    buffers, arena_bytes = plan_memory(lowered, values, outputs, profile)
    return Planned(lowered, buffers, arena_bytes)
