"""The same load on more GPUs: cells that differ in nothing but their layout (tp, pp, replicas), each against the one with fewest GPUs.

Speed-up is of output tokens/s over that cell's; efficiency is speed-up over the ratio of GPUs. A group needs two layouts. Means over
repeats; rows that are not `ok` count for nothing.
"""

from __future__ import annotations

import itertools
import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console

from trtllm_dashboards.points import Point, having, points, started
from trtllm_dashboards.tables import Column, show
from trtllm_results.record.cell import ALIGN_FIELDS, Cell
from trtllm_results.record.row import Row

LAYOUT = ("tp", "pp", "replicas")
SIZE = "max_batch_size"
RATE = "output_tokens_per_s"
COLUMNS = (
    Column("cell", whole=True),
    Column("layout", hoist=False),
    Column("gpus", "GPUs", kind="number"),
    Column(RATE, "output", unit="tok/s", kind="number"),
    Column("speed_up", "speed-up", unit="x", kind="number", places=2),
    Column("efficiency", unit="%", kind="number", places=0),
    Column("ttft_p50_ms", "TTFT p50", unit="ms", kind="number", priority=1),
    Column("tpot_p50_ms", "TPOT p50", unit="ms", kind="number", priority=1),
    Column("energy_per_output_token_j", "energy", unit="J/tok", kind="number", places=2, priority=2),
)


@dataclass(frozen=True)
class Scaled:
    """One cell beside the one of its group with fewest GPUs."""

    point: Point
    speed_up: float

    @property
    def gpus(self) -> int:
        return self.point.cell.gpus

    def efficiency(self, fewest: int) -> float:
        return self.speed_up * fewest / self.gpus


def layout_name(cell: Cell) -> str:
    """`tp2 x2` for two copies over two GPUs each; `one GPU`."""
    parts = [f"tp{cell.tp}"] * (cell.tp > 1) + [f"pp{cell.pp}"] * (cell.pp > 1) + [f"x{cell.replicas}"] * (cell.replicas > 1)
    return " ".join(parts) or "one GPU"


def matched(measured: Iterable[Point]) -> list[list[Scaled]]:
    """Groups of cells that differ in layout alone, each by GPUs, those of one layout left out."""
    loads: dict[str, list[Point]] = {}
    for point in sorted(having(measured, RATE), key=started):  # of two versions of one cell the newer
        loads.setdefault(_load(point), []).append(point)
    scaled = []
    for layouts in itertools.chain.from_iterable(map(_by_size, loads.values())):
        members = sorted(layouts, key=lambda point: (point.cell.gpus, point.cell.replicas, point.cell.pp))
        first = _mean(members[0], RATE)
        if len(members) > 1 and first:
            scaled.append([Scaled(point, (_mean(point, RATE) or 0.0) / first) for point in members])
    return scaled


def _by_size(same_load: Sequence[Point]) -> Iterator[Iterable[Point]]:
    """Groups of points with engines of one size (max batch size), by layout. Either each copy has the size of the one engine, or all copies
    together have it, which is the default where no size is given."""
    fewest = min(point.cell.replicas for point in same_load)
    for size in sorted({_size(point) for point in same_load if point.cell.replicas == fewest}):
        fitting = [point for point in same_load if _size(point) in (size, -(-size * fewest // point.cell.replicas))]
        yield {layout_name(point.cell): point for point in sorted(fitting, key=lambda point: _size(point) == size)}.values()


def _size(point: Point) -> int:
    """Max batch size of each copy; 0 where it is unknown."""
    return int(point.cell.settings.get(SIZE) or 0)


def _load(point: Point) -> str:
    """Everything that two layouts of one cell have in common, except the size of their engines."""
    cell = point.cell
    settings = {name: value for name, value in cell.settings.items() if name != SIZE}
    same = {name: getattr(cell, name) for name in (*ALIGN_FIELDS, "workload_hash", "target") if name not in LAYOUT}
    return json.dumps([point.source, point.environment.device, same, settings], sort_keys=True, default=str)


def print_scaling(rows: Sequence[Row], console: Console) -> None:
    """A table of speed-up, efficiency and latency; nothing where no two cells differ in layout alone."""
    lines = []
    for group in matched(points(rows, every_version=True)):
        for one in group:
            cell = one.point.cell
            figures = {column.key: _mean(one.point, column.key) for column in COLUMNS[3:]}
            plain = f"b{cell.batch} " * bool(cell.batch) + f"{cell.request_rate:g}/s " * bool(cell.request_rate) + f"{cell.isl}/{cell.osl}"
            ours = {"cell": f"{cell.precision} {plain}".strip(), "layout": layout_name(cell), "gpus": one.gpus}
            lines.append({**figures, **ours, "speed_up": one.speed_up, "efficiency": 100 * one.efficiency(group[0].gpus)})
    if lines:
        used = [column for column in COLUMNS if any(line.get(column.key) is not None for line in lines)]
        show(lines, used, title="the same load on more GPUs", console=console)


def _mean(point: Point, figure: str) -> float | None:
    values = [row.figures[figure] for row in point.rows if figure in row.figures]
    return statistics.fmean(values) if values else None
