"""The brief's cases over GPUs, as the page shows them: ours of these results beside what NVIDIA and the brief print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trtllm_dashboards.gpu_comparison import KINDS, Bar, compare_gpus
from trtllm_results.errors import ResultsError
from trtllm_results.record.row import Row

OURS = ("ours", "predicted")


def gpu_section(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Cases, each with its GPUs and their bars, for JSON; None where no case of the brief was measured or predicted here."""
    try:
        comparison = compare_gpus([row for row in rows if not row.arm])
    except ResultsError:
        return None
    if not any(bar.kind in OURS for case in comparison.cases for bars in case.bars.values() for bar in bars):
        return None
    cases = [
        {"title": case.title, "gpus": [{"gpu": gpu, "bars": [_bar(bar) for bar in bars]} for gpu, bars in case.bars.items()]}
        for case in comparison.cases
    ]
    return {"cases": cases, "kinds": KINDS, "notes": [*comparison.doubts, *comparison.notes]}


def _bar(bar: Bar) -> dict[str, Any]:
    half = (bar.rate.high - bar.rate.low) / 2 if bar.rate.n > 1 else None
    return {
        "kind": bar.kind,
        "mean": bar.rate.mean,
        "half": half,
        "detail": bar.detail,
        "doubt": bar.doubt,
    }
