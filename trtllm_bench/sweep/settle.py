"""A grid made ready to run: models named, input checked, and one engine sized for all the points it serves."""

from __future__ import annotations

from dataclasses import replace

from trtllm_bench.measure.prepare import sized, with_model
from trtllm_bench.measure.workload import make_workload
from trtllm_bench.spec.measurement import WorkloadSpec
from trtllm_bench.sweep.spec import GridPoint, SweepSpec
from trtllm_bench.targets.registry import target_kind, vocabulary_of


def settled(spec: SweepSpec) -> list[list[GridPoint]]:
    """The points of each engine. Raises the components' errors for what cannot work, before anything is built."""
    return [_settled(points) for points in spec.engines()]


def _settled(points: list[GridPoint]) -> list[GridPoint]:
    specs = [with_model(point.spec) for point in points]
    target_kind(specs[0].target).check(specs[0])
    longest = longest_sequence([spec.workload for spec in specs], vocabulary_of(specs[0]))
    engine = sized(specs[0].engine, max(spec.load.concurrency for spec in specs), longest)
    return [replace(point, spec=replace(spec, engine=engine)) for point, spec in zip(points, specs, strict=True)]


def longest_sequence(workloads: list[WorkloadSpec], vocabulary: int) -> int:
    """Tokens of the longest sequence of all; only datasets have to be read for it."""
    fixed = [sum(one.lengths) for one in workloads if one.dataset is None]
    read = [make_workload(one, vocabulary).longest_sequence for one in workloads if one.dataset is not None]
    return max(fixed + read)
