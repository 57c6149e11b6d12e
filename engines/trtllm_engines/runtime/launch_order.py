"""The launches a step makes, in order, and the op each belongs to: how a kernel seen by a profiler finds the op that made it.

Computed from the plan and the step's sizes alone, so it holds for a CUDA graph's replay as well as for eager launches, on a trace made
anywhere. A launch whose grid is empty at these sizes is left out, as the driver leaves it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from trtllm_engines.compiler.plan import Plan
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.observer import StepObserver
from trtllm_kernels.dialect.expr import compile_all
from trtllm_kernels.dialect.types import SYMBOLS


class Program(Protocol):
    """A bound program (`trtllm_kernels.launch.driver.BoundProgram`)."""

    def run(self, first: int = 0, end: int | None = None) -> None: ...


@dataclass(frozen=True)
class PlannedLaunch:
    op: int
    """Index into the plan's ops."""
    function: str
    """Name of the kernel as a profiler shows it; empty for a library routine, whose kernels the library chooses."""
    library: str
    concurrent: bool = False
    """Runs while the launch before it does."""


class LaunchOrder:
    def __init__(self, plan: Plan, arch: str) -> None:
        """Raises `EngineError` when the plan was not built for `arch`."""
        if any(arch not in op.tactics for op in plan.ops):
            raise EngineError(f"the plan has no launches for {arch}; it was built for {', '.join(plan.fingerprint.arches)}")
        self._num_ops = len(plan.ops)
        self._launches: list[PlannedLaunch] = []
        grids: list[int | str] = []
        for index, op in enumerate(plan.ops):
            for launch in op.tactics[arch].launches:
                self._launches.append(PlannedLaunch(index, launch.kernel.rpartition("-")[0], launch.library, launch.concurrent))
                grids += launch.grid
        self._grids = compile_all(grids)

    def active(self, symbols: Mapping[str, int]) -> list[PlannedLaunch]:
        """Launches of a step with these sizes (all of `SYMBOLS`)."""
        grids = self._grids(*(symbols[name] for name in SYMBOLS))
        return [launch for i, launch in enumerate(self._launches) if min(grids[3 * i : 3 * i + 3]) > 0]

    def ends(self, symbols: Mapping[str, int]) -> Sequence[int]:
        """[ops + 1]: active launches before each op, and in all."""
        counts = [0] * (self._num_ops + 1)
        for launch in self.active(symbols):
            counts[launch.op + 1] += 1
        for index in range(self._num_ops):
            counts[index + 1] += counts[index]
        return counts


def run_in_groups(program: Program, groups: Sequence[tuple[str, int, int]], ends: Sequence[int], observer: StepObserver) -> None:
    """Runs `program` group of ops by group (`op_groups`) and tells `observer` of each; `ends` is `LaunchOrder.ends` of the step."""
    for label, first_op, end_op in groups:
        first, end = ends[first_op], ends[end_op]
        if first == end:
            continue
        observer.ops_begin(label)
        try:
            program.run(first, end)
        finally:
            observer.ops_end()
