"""A sweep on this machine: the runner with the targets, workloads and environment that are really there."""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_bench.measure.accuracy import SweepAccuracy, engine_of
from trtllm_bench.measure.session import open_session
from trtllm_bench.measure.workload import workload_of
from trtllm_bench.sweep.progress import SweepView
from trtllm_bench.sweep.runner import Sweep
from trtllm_bench.sweep.spec import GridPoint, SweepSpec
from trtllm_bench.targets.registry import runs_on_gpu
from trtllm_results.record.environment import Environment
from trtllm_results.store.table import Store


def sweep_here(
    store: Store,
    spec: SweepSpec,
    engines: Sequence[Sequence[GridPoint]],
    view: SweepView,
    command: str,
    scored: SweepAccuracy | None = None,
) -> Sweep:
    """`engines`: the settled points of `spec`. Rows go into `store`, and name `command`. `scored` measures the accuracy of engines."""
    return Sweep(
        engines=engines,
        repeats=spec.repeats,
        store=store,
        open_session=lambda point: open_session(point, view.stage),
        make_workload=workload_of,
        watcher=view,
        environment=lambda point: Environment.capture(use_gpu=runs_on_gpu(point)),
        command=command,
        axes=tuple(spec.axes),
        accuracy=None if scored is None else lambda session: scored.measure(engine_of(session)),
        accuracy_asked={} if scored is None else scored.spec.described(),
    )
