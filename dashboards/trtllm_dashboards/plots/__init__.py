"""Figures for reports and documents: `render(kind, rows, out)` writes PNG and SVG.

One kind is one file of this folder with a `draw(material) -> Figure`; a kind that lacks its figures says which are missing. matplotlib is
imported when the first figure is drawn, so listing the kinds costs nothing.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.points import RowSets, as_sets
from trtllm_results.record.row import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pyarrow import Table

    from trtllm_results.compare.published import Published

KINDS: Mapping[str, str] = {
    "throughput": "output throughput against batch size",
    "latency": "latency against throughput, as load grows",
    "pareto": "throughput per GPU against speed per user",
    "percentiles": "TTFT and TPOT percentiles against load",
    "precision": "speed-up of each precision",
    "quality": "what each precision costs in perplexity, against throughput",
    "scaling": "throughput with more GPUs",
    "roofline": "how near the hardware's limits",
    "energy": "power and energy per token",
    "cost": "cost of a million output tokens against speed per user",
    "gpus": "the project brief's cases over H200, H100, A100 and L40S, beside published figures",
    "published": "ours beside published figures",
    "history": "a cell over time, with change points",
    "repeats": "density of the repeats of a cell (--y: of which figure)",
    "axes": "any field against any other (--x, --y, --by, --row, --col)",
    "timeline": "when each request of one run waited, prefilled and decoded",
}

NEED_NO_ROWS = frozenset({"gpus"})
"""Kinds that draw published figures, whether there are results or not."""


@dataclass(frozen=True)
class Axes:
    """Fields of the record that were asked for; `row` and `col` hold one at most."""

    x: str = ""
    y: str = ""
    by: tuple[str, ...] = ()
    row: tuple[str, ...] = ()
    col: tuple[str, ...] = ()


@dataclass(frozen=True)
class Material:
    """What figures are drawn from: result sets by name, published figures (None: those shipped), a reader of per-request tables, the fields
    chosen for the axes, and sentences on the prices that costs are of."""

    sets: RowSets
    published: Sequence[Published] | None = None
    requests: Callable[[Row], Table | None] = lambda row: None
    axes: Axes = Axes()
    prices: Sequence[str] = ()

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.sets.values() for row in rows]


NO_AXES = Axes()


def figure(kind: str, material: Material) -> Figure:
    """Draw one kind. Raises `DashboardError` for an unknown kind or when no row carries what it needs."""
    if kind not in KINDS:
        raise DashboardError(f"there is no plot '{kind}'; choose one of {', '.join(KINDS)}")
    if not any(material.sets.values()) and kind not in NEED_NO_ROWS:
        raise DashboardError("there are no rows to plot; check the store and the filters")
    from trtllm_dashboards.plots.style import themed

    module = importlib.import_module(f"{__name__}.{kind}")
    with themed():
        drawn: Figure = module.draw(material)
    return drawn


def render(
    kind: str,
    rows: Sequence[Row] | RowSets,
    out: Path | str,
    *,
    formats: Sequence[str] = ("png", "svg"),
    published: Sequence[Published] | None = None,
    requests: Callable[[Row], Table | None] = lambda row: None,
    axes: Axes = NO_AXES,
    prices: Sequence[str] = (),
) -> list[Path]:
    """Draw `kind` from `rows` (one set, or several by name) and write `out/<kind>.png` and `.svg`. Returns the files written.

    `published` overrides the figures that `kind="published"` draws beside ours; `requests` reads a row's per-request table (`timeline`);
    `axes` are the fields of `kind="axes"`; `prices` are the sentences (`Price.notes`) below a figure that shows costs.
    """
    from trtllm_dashboards.plots.style import save

    drawn = figure(kind, Material(as_sets(rows), published, requests, axes, prices))
    return list(save(drawn, Path(out), kind, formats))
