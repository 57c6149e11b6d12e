"""Hardware counters of one kernel of a cell: Nsight Compute around the op that launches it, at the cell's shape.

Compute replays a kernel many times and saves the memory it writes; doing so in a serving engine, whose cache takes most of the device, is
slow and disturbs what follows. So the op is run alone (`trtllm_bench.micro`): same launches, same tactics, the batch and the cache length
the cell has half-way through its outputs. This module is both ends: what starts the tool, and (`python -m`) what runs under it.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from trtllm_bench.errors import BenchError, RunFailure
from trtllm_bench.roofline.counts import StepShape
from trtllm_bench.tracing import nsight
from trtllm_bench.tracing.ncu_export import Counters, read_ncu

WARM, RUNS = 3, 2
LOG = "ncu.csv"


@dataclass(frozen=True)
class CountedKernel:
    """The op to run under the tool. `kernel`: part of the name of a kernel, an op or a role."""

    model: str
    precision: str
    kernel: str
    sequences: int
    isl: int
    osl: int
    max_num_tokens: int
    page_size: int = 32
    flags: tuple[tuple[str, str], ...] = ()
    """More for the compiler, such as the cache's type."""


def collect(target: CountedKernel, folder: Path) -> list[Counters]:
    """Runs Nsight Compute; its CSV stays in `folder`. Raises `BenchError` where the tool is absent or may not measure."""
    tool = nsight.find("ncu")
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    command = [sys.executable, "-m", __name__, json.dumps(asdict(target))]
    try:
        nsight.run(nsight.ncu_command(tool, command, log), "ncu")
    except RunFailure:
        if not (log.is_file() and "ERR" in _text(log)):  # the log says why, and `read_ncu` raises that
            raise
    return read_ncu(_text(log))


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def run_target(target: CountedKernel, arch: str) -> str:
    """Runs the op between `cudaProfilerStart` and its end; returns its name. Raises `BenchError` when no op launches such a kernel."""
    import torch

    from trtllm_bench.micro.bench import Bench
    from trtllm_bench.micro.cases import KernelCase
    from trtllm_engines.runtime.launch_order import LaunchOrder

    cases = [KernelCase(name, shape) for name, shape in shapes_of(target)]
    bench = Bench(target.model, target.precision, arch, cases, target.page_size, **dict(target.flags))
    for case in cases:
        order = LaunchOrder(bench.plan, arch)
        launched: dict[int, list[str]] = {}
        for launch in order.active(case.shape.symbols):
            launched.setdefault(launch.op, []).append(launch.function or launch.library)
        names = {op.name: launched.get(index, []) for index, op in enumerate(bench.plan.ops)}
        for bound in bench.ops(case):
            if any(target.kernel in name for name in (*names[bound.op.name], bound.op.op, bound.cost.role)):
                for _ in range(WARM):
                    bound.run()
                torch.cuda.synchronize()
                torch.cuda.cudart().cudaProfilerStart()  # type: ignore[no-untyped-call]
                for _ in range(RUNS):
                    bound.run()
                torch.cuda.synchronize()
                torch.cuda.cudart().cudaProfilerStop()  # type: ignore[no-untyped-call]
                return bound.op.name
    raise BenchError(f"no kernel, op or role of {target.model} is named '{target.kernel}' at this cell's shape")


def shapes_of(target: CountedKernel) -> list[tuple[str, StepShape]]:
    """The cell's steps: decoding half-way through the outputs, and its prompts."""
    prompts = max(1, min(target.sequences, target.max_num_tokens // max(target.isl, 1)))
    return [
        ("decode", StepShape.decode(target.sequences, target.isl + target.osl / 2)),
        ("prefill", StepShape.prefill(prompts, min(target.isl, target.max_num_tokens))),
    ]


if __name__ == "__main__":
    from trtllm_bench.machine import arch_of, gpus

    given = json.loads(sys.argv[1])
    run_target(CountedKernel(**{**given, "flags": tuple(map(tuple, given["flags"]))}), arch_of(gpus()[0]))
