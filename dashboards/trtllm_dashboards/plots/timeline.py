"""One run, request by request: waiting, prefill, decode, and how many requests ran at once.

Of a large run 160 requests are drawn, evenly spaced in order of arrival and not at random: neighbours stay neighbours, so a stall shows as
a step. Of several runs the one under the highest load is drawn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Material, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST = 160
APART = 60
"""Requests up to which a gap is left between two: with more it is a part of a pixel, and some gaps would show and others not."""
PHASES = {"waiting": "#D0D7DE", "prefill": "#E69F00", "decode": "#0072B2"}
Times = npt.NDArray[np.float64]


def draw(material: Material) -> Figure:
    for row in sorted(material.rows, key=lambda r: (-r.cell.batch, -r.cell.request_rate)):
        table = material.requests(row) if row.status == "ok" else None
        if table is not None:
            break
    else:
        raise DashboardError(
            "no row here has a per-request table, which the timeline needs; name the folder the sweep wrote, not an exported table"
        )
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names if name in COLUMNS}
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise DashboardError(f"the per-request table of {row.label} lacks {missing[0]}, which the timeline needs")
    sheet = style.Sheet("Request timeline", f"{row.label}, {row.environment.device}, repeat {row.repeat}")
    drawing, (bars, load) = sheet.panels(["requests", "requests at once"], columns=1, width=9, height=2.7)
    waited, first, end, arrival = phases(columns)
    order = np.argsort(arrival, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(MOST, len(order))).astype(int))]
    _bars(bars, arrival[chosen], waited[chosen], first[chosen], end[chosen])
    _load(load, arrival, first, end)
    load.sharex(bars)
    bars.set_xlim(0, float(end.max()) * 1.01)
    if len(order) > len(chosen):
        sheet.notes.append(f"{len(chosen)} of {len(order)} requests drawn, evenly spaced by arrival.")
    failed = int(np.count_nonzero(~columns["ok"].astype(bool))) if "ok" in columns else 0
    if failed:
        sheet.notes.append(f"{failed} requests that failed are left out.")
    if "scheduled_s" not in columns:
        sheet.notes.append("The target does not report when a request was scheduled: its wait is part of prefill.")
    return sheet.finish(drawing, {name: style.Look(color, "s", "") for name, color in PHASES.items()}, marker_only=True)


REQUIRED = ("intended_s", "first_token_s", "end_s")
COLUMNS = (*REQUIRED, "scheduled_s", "sent_s", "ok")


def phases(columns: dict[str, Any]) -> tuple[Times, Times, Times, Times]:
    """(end of the wait, first token, end, intended arrival) of each request that finished, in seconds from the first arrival."""
    arrival, first, end = (columns[name].astype(float) for name in REQUIRED)
    wait = columns.get("scheduled_s", columns.get("sent_s", columns["intended_s"])).astype(float)
    wait = np.where(np.isfinite(wait), wait, arrival)
    good = np.isfinite(first) & np.isfinite(end)
    if "ok" in columns:
        good &= columns["ok"].astype(bool)
    if not good.any():
        raise DashboardError("none of the run's requests finished; there is no timeline to draw")
    origin = float(arrival.min())
    return wait[good] - origin, first[good] - origin, end[good] - origin, arrival[good] - origin


def _bars(ax: Axes, arrival: Times, waited: Times, first: Times, end: Times) -> None:
    from matplotlib.collections import PolyCollection

    y = np.arange(len(arrival))
    half = 0.42 if len(arrival) <= APART else 0.5
    for (_, color), left, right in zip(PHASES.items(), (arrival, waited, first), (waited, first, end), strict=True):
        corners = [[(a, i - half), (b, i - half), (b, i + half), (a, i + half)] for i, a, b in zip(y, left, right, strict=True)]
        ax.add_collection(PolyCollection(corners, facecolors=color, edgecolors="none", antialiaseds=False))
    ax.set_ylim(len(arrival) - 0.5, -0.5)
    ax.set_yticks([])
    ax.grid(visible=False, axis="y")
    ax.set_ylabel("request, by arrival")
    ax.set_xlabel("time since the first arrival (s)")


def _load(ax: Axes, arrival: Times, first: Times, end: Times) -> None:
    """Number of requests in the system, and of those decoding, as steps; where one ends as another starts, the end counts first."""
    from matplotlib.ticker import MaxNLocator

    for start, color, label in ((arrival, style.SOFT, "in the system"), (first, PHASES["decode"], "decoding")):
        times = np.concatenate([start, end])
        change = np.concatenate([np.ones(len(start)), -np.ones(len(end))])
        order = np.lexsort((change, times))
        ax.step(
            np.concatenate([[0.0], times[order]]), np.concatenate([[0.0], np.cumsum(change[order])]), where="post", color=color, label=label
        )
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    ax.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), borderaxespad=0.2, ncols=2, fontsize=8)
    ax.set_ylabel("requests (count)")
    ax.set_xlabel("time since the first arrival (s)")
