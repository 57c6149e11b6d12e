"""A comparison as records, Markdown, CSV or JSON. Terminal tables are drawn by the command line from the same records."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from trtllm_results.compare.align import SAME_WITHIN, Change, Comparison
from trtllm_results.compare.published import Beside
from trtllm_results.gpus import gpu_class
from trtllm_results.metrics.registry import brief

MEANS = "arithmetic means, changes are of geometric means over repeats"
"""What the values of both sides are."""


def explanations(comparison: Comparison) -> list[str]:
    """What the verdict words in this comparison promise, one sentence each."""
    words = {change.verdict for change in comparison.changes}
    tested = sum(change.interval is not None for change in comparison.changes)
    lines = []
    if tested > 1:
        lines.append(
            f"{tested} comparisons judged together: the chance that any word for a change is wrong is 5% at most, and that any `same` is, "
            "2.5% (Holm); intervals are of one comparison each"
        )
    if "same" in words:
        lines.append(f"same: shown to differ by less than {SAME_WITHIN:.0%}")
    if "inconclusive" in words:
        lines.append(
            f"inconclusive: neither a change nor a difference below {SAME_WITHIN:.0%} is shown; it does not mean that both are the same. "
            "More repeats on both sides narrow the interval"
        )
    return lines


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """One flat record a change; `change`, `low` and `high` are relative (0.031 for +3.1%)."""
    return [_record(change) for change in comparison.changes]


def _record(change: Change) -> dict[str, Any]:
    return {
        **change.cell,
        "label": change.label,
        "figure": change.figure,
        "unit": change.unit,
        "base": change.base,
        "other": change.other,
        "base_value": change.base_value,
        "other_value": change.other_value,
        "base_repeats": change.base_repeats,
        "other_repeats": change.other_repeats,
        "change": change.change,
        "low": None if change.interval is None else change.interval.low,
        "high": None if change.interval is None else change.interval.high,
        "p_value": change.p_value,
        "rank_p_value": change.rank_p_value,
        "same_p_value": change.same_p_value,
        "verdict": change.verdict,
        "warnings": "; ".join(change.warnings),
    }


def beside_records(comparisons: Sequence[Beside]) -> list[dict[str, Any]]:
    """One flat record a published figure."""
    return [
        {
            "model": one.ours.cell.model,
            "precision": one.ours.cell.precision,
            "isl": one.ours.cell.isl,
            "osl": one.ours.cell.osl,
            "batch": one.ours.cell.batch,
            "tp": one.ours.cell.tp,
            "target": one.ours.cell.target,
            "gpu": gpu_class(one.ours.environment.device),
            "ours": one.ours_tokens_per_s,
            "repeats": one.repeats,
            "source": one.theirs.source,
            "their_gpu": gpu_class(one.theirs.gpu),
            "theirs": one.theirs.output_tokens_per_s,
            "ratio": one.ratio,
            "same_gpu": one.same_gpu,
            "implausible": "" if one.theirs.implausible is None else one.theirs.implausible.text,
            "ours_implausible": "" if one.doubt is None else one.doubt.text,
            "differs": "; ".join(one.differs),
            "here": one.here,
        }
        for one in comparisons
    ]


def to_json(comparison: Comparison, rows: Sequence[dict[str, Any]] | None = None) -> str:
    """The comparison. `rows`: its `records` in another order."""
    content = {
        "sets": comparison.sets,
        "means": MEANS,
        "changes": records(comparison) if rows is None else rows,
        "left_out": comparison.left_out,
        "notes": [*comparison.notes, *explanations(comparison)],
    }
    return json.dumps(content, indent=1)


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Records as CSV with a header; empty when there are none."""
    if not rows:
        return ""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def percent(value: float | None) -> str:
    return "" if value is None else f"{value * 100:+.1f}%"


def interval_text(low: float | None, high: float | None) -> str:
    return "one repeat" if low is None or high is None else f"{percent(low)} to {percent(high)}"


def in_cell(text: str) -> str:
    """Text as a cell of a Markdown table holds it: a model's name may have a bar."""
    return text.replace("|", "\\|")


def to_markdown(comparison: Comparison, rows: Sequence[dict[str, Any]] | None = None) -> str:
    """A table a pull request can hold. `rows`: the comparison's `records` in another order."""
    lines = ["| cell | figure | base | other | change | 95% interval | verdict |", "|---|---|--:|--:|--:|---|---|"]
    for one in records(comparison) if rows is None else rows:
        figure = f"{one['figure']} ({one['unit']})" if one["unit"] else one["figure"]
        lines.append(
            f"| {in_cell(one['label'])} | {figure} | {brief(one['base_value'])} | {brief(one['other_value'])} | {percent(one['change'])} "
            f"| {interval_text(one['low'], one['high'])} | {one['verdict']} |"
        )
    head = f"Base **{comparison.sets[0]}**, against {', '.join(f'**{name}**' for name in comparison.sets[1:])}; {MEANS}.\n\n"
    tail = "".join(f"\n- left out: {label} ({why})" for label, why in comparison.left_out) + "".join(
        f"\n- {note}" for note in [*comparison.notes, *explanations(comparison)]
    )
    return head + "\n".join(lines) + "\n" + (tail + "\n" if tail else "")


def lettered(comparisons: Sequence[Beside]) -> tuple[list[str], dict[str, str]]:
    """The letters of each figure's differences, and what each letter means: a difference shared by twenty rows is said once.

    The GPU is left out: tables show it.
    """
    meanings: dict[str, str] = {}
    marks = []
    for one in comparisons:
        parts = [part for part in one.differs if one.same_gpu or part != one.differs[0]]
        marks.append("".join(meanings.setdefault(part, _letter(len(meanings))) for part in parts))
    return marks, {letter: part for part, letter in meanings.items()}


def _letter(index: int) -> str:
    return chr(ord("a") + index) if index < 26 else f"({index})"


def beside_markdown(comparisons: Sequence[Beside]) -> str:
    header = "| model | precision | ISL/OSL | TP | ours, tok/s | source | GPU there | theirs, tok/s | ours / theirs | differs |"
    lines = [header, "|---|---|---|--:|--:|---|---|--:|--:|---|"]
    marks, meanings = lettered(comparisons)
    for one, mark in zip(beside_records(comparisons), marks, strict=True):
        lines.append(
            f"| {in_cell(one['model'])} | {in_cell(one['precision'])} | {one['isl']}/{one['osl']} | {one['tp']} | {one['ours']:,.0f} "
            f"| {one['source']} | {one['their_gpu']} | {one['theirs']:,.0f} | {one['ratio']:.2f} | {mark} |"
        )
    here = dict.fromkeys(
        f"here, {one['model']} {one['precision']} {one['isl']}/{one['osl']}: {one['here']}" for one in beside_records(comparisons)
    )
    notes = [f"{letter}: {part}" for letter, part in meanings.items()]
    return "\n".join(lines) + "\n\n" + "".join(f"- {note}\n" for note in [*notes, *here])
