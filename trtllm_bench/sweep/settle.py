"""A grid made ready to run: models named, input checked, and one engine sized for all the points it serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from trtllm_bench.errors import LayoutError
from trtllm_bench.measure.prepare import check_server_flags, misfit, sized, with_model
from trtllm_bench.measure.workload import workload_of
from trtllm_bench.spec.measurement import MeasurementSpec
from trtllm_bench.sweep.spec import GridPoint, SweepSpec
from trtllm_bench.targets.registry import target_kind


def settled(spec: SweepSpec) -> list[list[GridPoint]]:
    """The points of each engine. Raises the components' errors for what cannot work, before anything is built.

    Where this machine can run some layouts, points of the others are `refused` with the reason.
    """
    check_server_flags(*(point.spec for point in spec.points))
    engines = [[replace(point, spec=with_model(point.spec)) for point in points] for points in spec.engines()]
    unfit = {index: error for index, points in enumerate(engines) if (error := _unfit(points[0].spec))}
    if len(unfit) == len(engines):
        raise unfit[0]
    settled = [fitted(points) for points in engines]
    for index, error in unfit.items():
        settled[index] = [replace(point, refused=str(error)) for point in settled[index]]
    return settled


def _unfit(spec: MeasurementSpec) -> LayoutError | None:
    try:
        target_kind(spec.target).check(spec)
    except LayoutError as error:
        return error
    return None


def fitted(points: list[GridPoint]) -> list[GridPoint]:
    """The points of one engine, sized for all that it can serve; a point whose sequences are too long for it says so (`refused`)."""
    first = points[0].spec
    longest = [_longest_sequence(point.spec) for point in points]
    refused = [misfit(point.spec, tokens) for point, tokens in zip(points, longest, strict=True)]
    serving = [n for n, reason in enumerate(refused) if not reason]
    engine = sized(
        first.engine,
        max((points[n].spec.load.concurrency for n in serving), default=0),
        max((longest[n] for n in serving), default=min(longest)),
    )
    return [replace(point, spec=replace(point.spec, engine=engine), refused=reason) for point, reason in zip(points, refused, strict=True)]


def with_room(engines: Sequence[Sequence[GridPoint]], tokens: int) -> list[list[GridPoint]]:
    """Engines that take sequences of `tokens` at least, where the model does and cells are shorter: a text in snippets says little of how
    good an engine's answers are."""
    return [[_with_room(point, tokens) for point in points] for points in engines]


def _with_room(point: GridPoint, tokens: int) -> GridPoint:
    engine = point.spec.engine
    if engine.engine_dir is not None or engine.max_seq_len is None or engine.max_seq_len >= tokens:
        return point
    most = target_kind(point.spec.target).longest(replace(engine, max_seq_len=None))
    engine = replace(engine, max_seq_len=max(engine.max_seq_len, min(tokens, most or tokens)))
    return replace(point, spec=replace(point.spec, engine=engine))


def _longest_sequence(spec: MeasurementSpec) -> int:
    """Tokens of the longest sequence; only datasets have to be read for it."""
    return sum(spec.workload.lengths) if spec.workload.dataset is None else workload_of(spec).longest_sequence
