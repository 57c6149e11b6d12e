"""Result sets named together, the later ones against the first, as `compare` has them: a verdict for each cell they share."""

from __future__ import annotations

from typing import Any

from trtllm_dashboards.points import RowSets
from trtllm_results.compare.align import compare
from trtllm_results.compare.report import MEANS, explanations, records
from trtllm_results.errors import ResultsError
from trtllm_results.metrics.registry import HEADLINE, title
from trtllm_results.store.selection import ResultSet

FIGURES = (HEADLINE, "ttft_p50_ms", "tpot_p50_ms")
FEW = 300
"""Cells up to which all three figures are compared; of more only the throughput."""
SHOWN = ("label", "figure", "unit", "base", "other", "base_value", "other_value", "change", "low", "high", "verdict")
ORDER = {"slower": 0, "worse": 0, "faster": 1, "better": 1, "same": 3}


def compared(sets: RowSets) -> dict[str, Any] | None:
    """Changes for JSON, losses first, and how many cells have which verdict on throughput; None where the sets share no cell."""
    measured = {name: tuple(row for row in rows if not row.predicted) for name, rows in sets.items()}
    named = [ResultSet(name, rows) for name, rows in measured.items() if rows]
    if len(named) < 2:
        return None
    rows = [row for one in named for row in one.rows if row.status == "ok"]
    compared_figures = FIGURES if len({row.key for row in rows}) <= FEW else FIGURES[:1]
    try:
        found = compare(named, [name for name in compared_figures if any(name in row.figures for row in rows)])
    except ResultsError:
        return None
    counts: dict[str, dict[str, int]] = {}
    for change in found.changes:
        if change.figure == HEADLINE:
            of_set = counts.setdefault(change.other, {})
            of_set[change.verdict] = of_set.get(change.verdict, 0) + 1
    changes = sorted(records(found), key=lambda one: (ORDER.get(one["verdict"], 2), one["figure"] != HEADLINE))
    return {
        "base": found.sets[0],
        "counts": counts,
        "changes": [
            {**{name: one[name] for name in SHOWN}, "title": title(one["figure"]), "runs": f"{one['base_repeats']}/{one['other_repeats']}"}
            for one in changes
        ],
        "notes": [f"Values are {MEANS}", *explanations(found), *found.notes],
        "left_out": len(found.left_out),
    }
