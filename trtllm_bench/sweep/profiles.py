"""`sweep --profile`: after the grid is measured, some of its cells again under the profiler, each linked to its cell's rows.

Afterwards and not on the way, because a profiled run is slower and only the finished grid says which cell is the worst: the one that
uses the least of both the compute and the bandwidth ceiling (or, without ceilings, makes the fewest tokens a second and sequence).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from trtllm_bench.errors import BenchError
from trtllm_bench.measure.workload import workload_of
from trtllm_bench.profiling.cell import ProfileRequest, profile_cell
from trtllm_bench.profiling.record import CellProfile
from trtllm_bench.spec.measurement import MeasurementSpec
from trtllm_bench.sweep.spec import GridPoint
from trtllm_bench.targets.registry import OnBuild, is_own
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store

FOLDER = "profiles"


def parse_which(text: str) -> int | None:
    """How many: 1 for `worst`, None for `all`. Raises `BenchError`."""
    if text == "all":
        return None
    if text == "worst":
        return 1
    if text.isdigit() and int(text) > 0:
        return int(text)
    raise BenchError(f"--profile is '{text}'; give worst, all, or how many of the worst cells")


def check_profiled(engines: Sequence[Sequence[GridPoint]]) -> None:
    """Raises `BenchError` where a grid has targets that cannot be looked into."""
    other = next((points[0].spec.target for points in engines if not is_own(points[0].spec.target)), None)
    if other is not None:
        raise BenchError(f"--profile looks into our own engine; {other} is another target")
    replicas = max(points[0].spec.engine.replicas for points in engines)
    if replicas > 1:
        raise BenchError(f"--profile looks into one engine, and the grid has {replicas} replicas of one; leave --replicas out")


def choose(rows: Sequence[Row], count: int | None) -> list[Row]:
    """One good row per cell, the worst cell first."""
    last = {row.key: row for row in rows if row.status == "ok"}
    known = all("mbu" in row.figures for row in last.values())

    def merit(row: Row) -> float:
        if known:
            return max(row.figures["mbu"], row.figures.get("mfu", 0.0))
        return row.figures.get("output_tokens_per_s", 0.0) / max(row.cell.batch, 1)

    return sorted(last.values(), key=merit)[:count]


def profile_cells(
    rows: Sequence[Row],
    asked: Mapping[str, MeasurementSpec],
    store: Store,
    on_build: OnBuild | None,
    report: Callable[[Row, CellProfile | Exception, Path], None],
) -> None:
    """Profiles these rows' cells, `asked` by cell key; a cell that cannot be profiled is reported and the rest go on."""
    for row in rows:
        spec = asked[row.key]
        relative = Path(FOLDER) / row.key
        try:
            workload = workload_of(spec)
            request = ProfileRequest(spec, workload, command=row.command)
            outcome: CellProfile | Exception = profile_cell(request, store.path / relative, on_build)
        except Exception as error:
            outcome = error
        if isinstance(outcome, CellProfile):
            link(store, row.key, relative)
        report(row, outcome, store.path / relative)


def link(store: Store, key: str, relative: Path) -> None:
    """Every good row of the cell names its profile's folder, relative to the store."""
    rows = [row for row in store.rows() if row.key == key and row.status == "ok"]
    store.append(*(replace(row, extra={**row.extra, "profile": relative.as_posix()}) for row in rows))
