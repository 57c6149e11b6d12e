"""The table of accuracy beside speed: one line per cell, figures of accuracy with half of their 95% interval, the longer side of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from trtllm_dashboards.points import short_device
from trtllm_dashboards.tables import Column, sentence, show, to_markdown
from trtllm_results.compare.quality import QualityLine, scored_on
from trtllm_results.metrics.registry import HEADLINE, common_words
from trtllm_results.record.row import ACCURACY

COLUMNS = (
    Column("label", "cell", whole=True, hoist=False),
    Column("device"),
    Column("target"),
    Column(HEADLINE, "output", unit="tok/s", kind="number", priority=1),
    Column("speedup", "speed-up", kind="number", places=2, hoist=False),
    Column("perplexity", kind="number", places=3, hoist=False, priority=4),
    Column("change", "change, %", hoist=False, whole=True),
    Column("divergence", "KL, nats", hoist=False, whole=True, priority=2),
    Column("agreement", "top-1, %", hoist=False, whole=True, priority=3),
    Column("task", "task, %", hoist=False, whole=True, priority=1),
    Column("front", "*", hoist=False),
)
PLACE = ("device", "target")
"""Speeds in different ones are no alternatives."""


def quality_markdown(lines: Sequence[QualityLine]) -> str:
    """The table and what it means, in Markdown."""
    rows = [_row(line) for line in lines]
    return f"{to_markdown(rows, _used(rows))}\n{_meaning(lines)}\n"


def print_quality(lines: Sequence[QualityLine], console: Console) -> None:
    """Nothing where no line is."""
    if not lines:
        return
    rows = [_row(line) for line in lines]
    shared, labels = common_words([str(row["label"]) for row in rows])
    for row, label in zip(rows, labels, strict=True):
        row["label"] = label
    used = _used(rows)
    by_place = [column.key for column in used if column.key in PLACE]
    used = [column for column in used if column.key not in PLACE]
    places = dict.fromkeys(tuple(str(row[key]) for key in by_place) for row in rows)
    for place in places:  # a table each, so that what it names has room
        title = " ".join(["accuracy beside speed", *([f"on {', '.join(place)}"] if place else [])]) + (f": {shared}" if shared else "")
        show([row for row in rows if tuple(str(row[key]) for key in by_place) == place], used, title=title, console=console)
        if len(places) > 1:
            console.print()
    sentence(console, _meaning(lines), "dim")


def _used(rows: Sequence[Mapping[str, object]]) -> list[Column]:
    """Columns with values; the device and the target where they differ."""
    values = {column.key: {row.get(column.key) for row in rows} - {None, ""} for column in COLUMNS}
    return [column for column in COLUMNS if len(values[column.key]) > (column.key in PLACE)]


def _row(line: QualityLine) -> dict[str, object]:
    figures = line.figures
    return {
        "label": line.row.label,
        "device": short_device(line.row.environment.device),
        "target": line.row.cell.target,
        HEADLINE: line.output_tokens_per_s,
        "speedup": line.speedup,
        "perplexity": figures.get("perplexity"),
        "change": interval(figures, "perplexity_change", 100, 2, sign=True),
        "divergence": interval(figures, "kl_divergence", 1, 4),
        "agreement": interval(figures, "top1_agreement", 100, 1),
        "task": interval(figures, "task_accuracy", 100, 0),
        "front": "*" if line.on_front else "",
    }


def interval(figures: Mapping[str, float], name: str, scale: float, places: int, sign: bool = False) -> str:
    """`+0.70 ±0.31`; "" where the figure is not there."""
    if name not in figures:
        return ""
    sides = [abs(figures[f"{name}_{end}"] - figures[name]) for end in ("low", "high") if f"{name}_{end}" in figures]
    text = f"{scale * figures[name]:{'+' if sign else ''}.{places}f}"
    return f"{text} ±{scale * max(sides):.{places}f}" if sides else text


def _meaning(lines: Sequence[QualityLine]) -> str:
    parts = ["± longer half of the 95% interval"]
    for line in {scored_on(line.row): line for line in reversed(lines)}.values():
        details: Mapping[str, Any] = line.row.extra.get(ACCURACY, {})
        if "text" in details:
            scored = f"{line.figures.get('accuracy_tokens', 0.0):,.0f} tokens of {details['text']}"
            parts.append(f"{scored}, second halves of windows of {details['length']} tokens or fewer, as served")
    if any("perplexity_change" in line.figures for line in lines):
        parts.append("change, KL and top-1 against the widest precision")
    if any("task_accuracy" in line.figures for line in lines):
        parts.append("task: values found by key, exactly")
    parts.append("* no other is better in both speed and quality")
    return "; ".join(parts)
