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
    "published": "ours beside published figures",
    "history": "a cell over time, with change points",
    "timeline": "when each request of one run waited, prefilled and decoded",
}


@dataclass(frozen=True)
class Material:
    """What figures are drawn from: result sets by name, published figures (None: those shipped), and a reader of per-request tables."""

    sets: RowSets
    published: Sequence[Published] | None = None
    requests: Callable[[Row], Table | None] = lambda row: None

    @property
    def rows(self) -> list[Row]:
        return [row for rows in self.sets.values() for row in rows]


def figure(kind: str, material: Material) -> Figure:
    """Draw one kind. Raises `DashboardError` for an unknown kind or when no row carries what it needs."""
    if kind not in KINDS:
        raise DashboardError(f"There is no plot '{kind}'; choose one of {', '.join(KINDS)}.")
    if not any(material.sets.values()):
        raise DashboardError("There are no rows to plot; check the store and the filters.")
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
) -> list[Path]:
    """Draw `kind` from `rows` (one set, or several by name) and write `out/<kind>.png` and `.svg`. Returns the files written.

    `published` overrides the figures that `kind="published"` draws beside ours; `requests` reads a row's per-request table (`timeline`).
    """
    from trtllm_dashboards.plots.style import save

    drawn = figure(kind, Material(as_sets(rows), published, requests))
    return list(save(drawn, Path(out), kind, formats))
