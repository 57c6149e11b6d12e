"""What a page shows of a gate: its verdict first, each block's runs of A and B, and what made B slower where both were profiled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from trtllm_dashboards import profile_page
from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.html.profiles import Profile
from trtllm_results.gate.report import explanations, headline, records
from trtllm_results.gate.run import Blocks
from trtllm_results.gate.stored import judged_again, report_of
from trtllm_results.gate.verdict import GateReport
from trtllm_results.metrics.registry import METRICS, title
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store

CULPRITS = 5
FINDING = ("figure", "unit", "a", "b", "change", "low", "high", "margin", "verdict")
"""What the page shows of a finding, of the gate's own report where there is one."""


def gates(stored: Iterable[tuple[Store, Sequence[Row]]], profiles: Iterable[Profile] = ()) -> list[dict[str, Any]]:
    """One entry a store that a gate filled, for JSON."""
    known = list(profiles)
    return [gate for store, rows in stored if (gate := _gate(store, rows, known)) is not None]


def _gate(store: Store, stored: Sequence[Row], profiles: list[Profile]) -> dict[str, Any] | None:
    rows = [row for row in stored if row.arm]
    said = report_of(store.path)
    judged = judged_again(rows, said) if rows else None
    if judged is None:
        return None
    blocks, report = judged
    told = said if said is not None and all({*one} >= {*FINDING} and one["figure"] in METRICS for one in said["findings"]) else None
    findings = records(report) if told is None else [one for one in told["findings"] if one["figure"] in _figures(report)]
    culprits, note = _culprits(rows, profiles)
    return {
        "store": store.path.name,
        "label": rows[0].label,
        "a": report.a,
        "b": report.b,
        "verdict": report.verdict if told is None else told["verdict"],
        "headline": headline(report) if told is None else str(told.get("headline", "")),
        "level": 1 - 2 * report.alpha,
        "blocks": report.blocks,
        "given": told is not None,
        "findings": [
            {**one, "title": title(one["figure"]), "better": METRICS[one["figure"]].better, "by_block": _by_block(blocks, one["figure"])}
            for one in findings
        ],
        "explanations": explanations(report),
        "warnings": list(dict.fromkeys((*(said or {}).get("warnings", ()), *report.warnings))),
        "culprits": culprits,
        "culprits_note": note,
    }


def _figures(report: GateReport) -> set[str]:
    return {finding.judged.figure for finding in report.findings}


def _by_block(blocks: Blocks, figure: str) -> list[dict[str, Any]]:
    """[blocks] of A's and B's two values and the change between their geometric means."""
    pairs = zip(blocks.values(figure, "A"), blocks.values(figure, "B"), blocks.differences(figure), strict=True)
    return [{"a": a, "b": b, "log_change": change} for a, b, change in pairs]


def _culprits(rows: list[Row], profiles: list[Profile]) -> tuple[list[dict[str, Any]], str]:
    """Kernels by how much longer B takes in them, microseconds an output token; or why none is named."""
    arms: dict[str, Mapping[str, Any]] = {}
    for arm in ("A", "B"):
        keys = {row.key for row in rows if row.arm == arm}
        profile_of_cell = next((profile for profile in profiles if profile.key in keys), None)
        if profile_of_cell is not None:
            try:
                arms[arm] = profile_page.load(profile_of_cell.folder)
            except DashboardError:
                continue
    if len(arms) < 2:
        return (
            [],
            "No kernel is named: that needs a profile of each arm's cell in this store (trtllm-bench profile, with the arm's engine).",
        )
    parts = {arm: profile_page.parts_per_token(profile) for arm, profile in arms.items()}
    longer = {name: parts["B"].get(name, 0.0) - parts["A"].get(name, 0.0) for name in {*parts["A"], *parts["B"]}}
    worst = sorted(longer.items(), key=lambda item: -item[1])[:CULPRITS]
    return [
        {"part": name, "a": parts["A"].get(name, 0.0), "b": parts["B"].get(name, 0.0), "longer": us} for name, us in worst if us > 0
    ], ""
