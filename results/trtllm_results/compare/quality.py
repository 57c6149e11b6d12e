"""Accuracy beside speed: for each cell whose engine was scored, what its precision gains and what it costs.

Cells are set against others of the same shape, load, device and target that were scored on the same text. Of those, the one that others
were scored against (the widest) is the base of the speed-up; on the front are those that no other beats in both, speed and perplexity (or
the task, where no text was scored).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trtllm_results.metrics.registry import HEADLINE, QUALITY
from trtllm_results.record.cell import ALIGN_FIELDS
from trtllm_results.record.row import ACCURACY, NOT_SCORED, Row
from trtllm_results.versions import case_of, measured_at, varied_in, versions

OF_PRECISION = ("model", "precision", "kv_dtype")


@dataclass(frozen=True)
class QualityLine:
    """One cell: its speed, as a mean over repeats, and its engine's accuracy. `speedup` None where the widest was not timed beside it."""

    row: Row
    output_tokens_per_s: float
    speedup: float | None
    figures: dict[str, float]
    on_front: bool

    def record(self) -> dict[str, Any]:
        """As a flat mapping."""
        cell = self.row.cell
        named = {name: getattr(cell, name) for name in ALIGN_FIELDS}
        return {
            "label": self.row.label,
            **named,
            "device": self.row.environment.device,
            "target": cell.target,
            HEADLINE: self.output_tokens_per_s,
            "speedup": self.speedup,
            **self.figures,
            "front": self.on_front,
            "not_scored": not_scored(self.row),
        }


def scored_on(row: Row) -> tuple[str, ...]:
    """What a row's perplexity is of: perplexities of two texts, or of two parts of one, are not set against each other."""
    details = row.extra.get(ACCURACY, {})
    return tuple(str(details.get(name, "")) for name in ("text", "sha256", "length", "windows"))


def not_scored(row: Row) -> str:
    """Why a text or a task that was asked for was not scored; empty where all was."""
    return str(row.extra.get(ACCURACY, {}).get(NOT_SCORED, ""))


def why_not_scored(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Labels of the cells of each reason, in the order of the rows."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        if (reason := not_scored(row)) and row.label not in cells.setdefault(reason, []):
            cells[reason].append(row.label)
    return cells


def beside_speed(rows: Sequence[Row]) -> list[QualityLine]:
    """Of rows that are `ok` and carry accuracy, by shape and load, then by falling quality. An engine measured in several versions of the
    tool or of its machine is told by the newest."""
    varied = varied_in(rows)
    scored = [row for row in rows if HEADLINE in row.figures and any(name in row.figures for name in ("perplexity", "task_accuracy"))]
    cells: dict[tuple[Any, ...], tuple[Row, ...]] = {}
    for repeats in versions(scored):
        cell = (case_of(repeats[0], varied), repeats[0].cell.engine_fingerprint)
        if cell not in cells or measured_at(repeats) > measured_at(cells[cell]):
            cells[cell] = repeats
    groups: dict[tuple[Any, ...], list[tuple[Row, ...]]] = {}
    for repeats in cells.values():
        first = repeats[0]
        shape = tuple(value for name, value in first.case(varied) if name not in OF_PRECISION)
        groups.setdefault((shape, first.environment.device, first.cell.target, scored_on(first)), []).append(repeats)
    return [line for members in groups.values() for line in _lines(members)]


def front(places: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of the (speed, loss) places none other is at least as good as in both and better in one."""
    return [not any(x >= a and y <= b and (x > a or y < b) for x, y in places) for a, b in places]


def loss_of(figures: dict[str, float]) -> float:
    """What is to be small: perplexity, or the share of the task that failed."""
    return figures["perplexity"] if "perplexity" in figures else 1 - figures["task_accuracy"]


def _lines(members: Sequence[Sequence[Row]]) -> list[QualityLine]:
    speeds = [statistics.fmean(row.figures[HEADLINE] for row in repeats) for repeats in members]
    figures = [{name: value for name, value in repeats[-1].figures.items() if name in QUALITY} for repeats in members]
    scored = [index for index, one in enumerate(figures) if "perplexity" in one and "perplexity_change" not in one]
    base = speeds[scored[0]] if len(scored) == 1 else None
    edge = front([(speed, loss_of(one)) for speed, one in zip(speeds, figures, strict=True)])
    lines = [
        QualityLine(repeats[0], speed, None if base is None else speed / base, one, best)
        for repeats, speed, one, best in zip(members, speeds, figures, edge, strict=True)
    ]
    return sorted(lines, key=lambda line: loss_of(line.figures))
