"""The table of accuracy beside speed: one line per cell, figures of accuracy with half of their 95% interval, the longer side of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from trtllm_dashboards.tables import Column, sentence, show
from trtllm_results.compare.quality import QualityLine
from trtllm_results.metrics.registry import HEADLINE, common_words
from trtllm_results.record.row import ACCURACY

COLUMNS = (
    Column("label", "cell", whole=True, hoist=False),
    Column(HEADLINE, "output", unit="tok/s", kind="number", priority=1),
    Column("speedup", "speed-up", kind="number", places=2, hoist=False),
    Column("perplexity", kind="number", places=3, hoist=False, priority=4),
    Column("change", "change, %", hoist=False, whole=True),
    Column("divergence", "KL, nats", hoist=False, whole=True, priority=2),
    Column("agreement", "top-1, %", hoist=False, whole=True, priority=3),
    Column("task", "task, %", hoist=False, whole=True, priority=1),
    Column("front", "*", hoist=False),
)


def print_quality(lines: Sequence[QualityLine], console: Console) -> None:
    """Nothing where no line is."""
    if not lines:
        return
    rows = [_row(line) for line in lines]
    shared, labels = common_words([str(row["label"]) for row in rows])
    for row, label in zip(rows, labels, strict=True):
        row["label"] = label
    used = [column for column in COLUMNS if any(row.get(column.key) not in (None, "") for row in rows)]
    title = "accuracy beside speed" + (f": {shared}" if shared else "")
    show(rows, used, title=title, console=console)
    sentence(console, _meaning(lines), "dim")


def _row(line: QualityLine) -> dict[str, object]:
    figures = line.figures
    return {
        "label": line.row.label,
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
    details: Mapping[str, Any] = next((line.row.extra.get(ACCURACY, {}) for line in lines if line.row.extra.get(ACCURACY)), {})
    if "text" in details:
        tokens = lines[0].figures.get("accuracy_tokens", 0.0)
        parts.append(f"{tokens:,.0f} tokens of {details['text']}, second halves of windows of {details['length']}, as served")
    if any("perplexity_change" in line.figures for line in lines):
        parts.append("change, KL and top-1 against the widest precision")
    if any("task_accuracy" in line.figures for line in lines):
        parts.append("task: values found by key, exactly")
    parts.append("* no other is better in both speed and quality")
    return "; ".join(parts)
