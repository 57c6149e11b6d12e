"""`sweep --profile`: after the grid is measured, some of its cells again under the profiler, each linked to its cell's rows.

Afterwards and not on the way, because a profiled run is slower and only the finished grid says which cell is the worst: the one that
uses the least of both the compute and the bandwidth ceiling (or, without ceilings, makes the fewest tokens a second and sequence).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from trtllm_bench.errors import BenchError
from trtllm_bench.measure.session import Load
from trtllm_bench.measure.spec import Report, rate_of
from trtllm_bench.profiling.cell import ProfileRequest, profile_cell
from trtllm_bench.profiling.record import CellProfile
from trtllm_bench.sweep.spec import GridCase, SweepSpec
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store
from trtllm_workloads.request import Workload

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


def choose(rows: Sequence[Row], count: int | None) -> list[Row]:
    """One good row a cell, the worst cell first."""
    last = {row.key: row for row in rows if row.status == "ok"}
    known = all("mbu" in row.figures for row in last.values())

    def merit(row: Row) -> float:
        if known:
            return max(row.figures["mbu"], row.figures.get("mfu", 0.0))
        return row.figures.get("output_tokens_per_s", 0.0) / max(row.cell.batch, 1)

    return sorted(last.values(), key=merit)[:count]


def profile_cells(
    rows: Sequence[Row],
    spec: SweepSpec,
    store: Store,
    max_seq_len: int,
    make_workload: Callable[[GridCase], Workload],
    report: Report | None,
    tell: Callable[[Row, CellProfile | Exception, Path], None],
) -> None:
    """Profiles these rows' cells; a cell that cannot be profiled is told and the rest go on."""
    cases = {case: case for case in spec.cases()}
    for row in rows:
        case = _case_of(row, cases)
        workload, wish = make_workload(case), spec.workload_wish(case)
        load = Load(0 if wish.open_loop else case.batch, wish.open_loop, spec.warmup_of(case), spec.warmup_seconds)
        wanted = ProfileRequest(spec.engine_wish(case.precision, max_seq_len), workload, load, None, rate_of(wish, workload), row.command)
        relative = Path(FOLDER) / row.key
        try:
            found: CellProfile | Exception = profile_cell(wanted, store.path / relative, report)
        except Exception as error:
            found = error
        if isinstance(found, CellProfile):
            link(store, row.key, relative)
        tell(row, found, store.path / relative)


def link(store: Store, key: str, relative: Path) -> None:
    """Every good row of the cell names its profile's folder, relative to the store."""
    rows = [row for row in store.rows() if row.key == key and row.status == "ok"]
    store.append(*(replace(row, extra={**row.extra, "profile": relative.as_posix()}) for row in rows))


def _case_of(row: Row, cases: dict[GridCase, GridCase]) -> GridCase:
    cell = row.cell
    return next(
        case
        for case in cases
        if (case.precision, case.batch) == (cell.precision, cell.batch)
        and (case.request_rate == cell.request_rate or not case.request_rate)
        and ((case.isl, case.osl) == (cell.isl, cell.osl) or len({(c.isl, c.osl) for c in cases}) == 1)
    )
