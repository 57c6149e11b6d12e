"""Stored baselines: a file that moves only by an explicit `accept`, and remembers every place it has been.

    {"schema_version": 1, "name": ..., "history": [{accepted_at, revision, note, environment, cells: {key: {cell, figures: {name:
    [runs]}}}}]}

The newest entry is the baseline. The older ones are what makes drift visible: twenty changes of -0.3%, each within its margin, are -6%,
and no pairwise gate sees them. `drift` looks at the whole history for a slide (Mann-Kendall) and for shifts (change points), and names
the entries.
"""

from __future__ import annotations

import datetime
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_results import stats
from trtllm_results.errors import ResultsError
from trtllm_results.gate.config import GateConfig
from trtllm_results.gate.run import refuse_if_different, throttled
from trtllm_results.gate.verdict import GateReport, Judged, combine, judge
from trtllm_results.metrics.registry import METRICS
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import ALIGN_FIELDS, Row

BASELINE_VERSION = 1
DRIFT_P = 0.05


@dataclass(frozen=True)
class Measured:
    """Runs of one cell: figure -> one value a run."""

    label: str
    cell: Mapping[str, Any]
    figures: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Entry:
    """One accepted state."""

    accepted_at: str
    revision: str
    note: str
    environment: Environment
    cells: Mapping[str, Measured]


@dataclass(frozen=True)
class Baseline:
    name: str
    history: tuple[Entry, ...] = field(default_factory=tuple)

    @property
    def current(self) -> Entry:
        return self.history[-1]


def measured_cells(rows: Sequence[Row]) -> tuple[dict[str, Measured], Environment]:
    """The ok rows by cell, with their (single) environment. Raises `ResultsError` for none, mixed conditions, or a figure that is zero or
    NaN."""
    ok = [row for row in rows if row.status == "ok"]
    if not ok:
        raise ResultsError("There is no successful measurement among these results; nothing can be judged.")
    refuse_if_different([row.environment for row in ok])
    groups: dict[str, list[Row]] = {}
    for row in ok:
        groups.setdefault(_key(row), []).append(row)
    cells = {}
    for key, members in groups.items():
        names = [name for name in members[0].figures if METRICS.get(name) and METRICS[name].better]
        figures = {name: [row.figures[name] for row in members if name in row.figures] for name in names}
        cells[key] = Measured(members[0].cell.label, dict(members[0].cell.align), figures)
    return cells, ok[0].environment


def _key(row: Row) -> str:
    return " ".join(f"{name}={getattr(row.cell, name)}" for name in ALIGN_FIELDS)


def accept(baseline: Baseline | None, name: str, rows: Sequence[Row], note: str) -> Baseline:
    """`baseline` (None: a new one) with `rows` as its newest entry."""
    cells, environment = measured_cells(rows)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = Entry(now, environment.git_revision or environment.source_hash, note, environment, cells)
    return Baseline(name, (*(baseline.history if baseline else ()), entry))


def save(baseline: Baseline, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"schema_version": BASELINE_VERSION, **asdict(baseline)}, indent=1) + "\n")
    temporary.replace(path)


def load(path: Path) -> Baseline:
    """Raises `ResultsError` if the file is missing, not a baseline, or of a newer version."""
    try:
        content = json.loads(path.read_text())
        version = int(content["schema_version"])
        if version > BASELINE_VERSION:
            raise ResultsError(f"Baseline {path} has version {version}, newer than this tool's {BASELINE_VERSION}; upgrade trtllm-bench.")
        history = tuple(
            Entry(
                accepted_at=one["accepted_at"],
                revision=one["revision"],
                note=one["note"],
                environment=Environment(**one["environment"]),
                cells={key: Measured(**cell) for key, cell in one["cells"].items()},
            )
            for one in content["history"]
        )
        if not history:
            raise ResultsError(f"Baseline {path} has an empty history; run gate accept.")
        return Baseline(content["name"], history)
    except FileNotFoundError:
        raise ResultsError(f"There is no baseline at {path}; make one with gate accept.") from None
    except ResultsError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResultsError(f"{path} is not a baseline file of trtllm-bench.") from error


def check(
    baseline: Baseline, rows: Sequence[Row], config: GateConfig, noise: Mapping[str, float] | None = None, candidate: str = "candidate"
) -> GateReport:
    """Judges `rows` against the newest entry.

    `noise` maps figures to the calibrated standard deviation of ln(value) between sessions: two sessions differ by more than their
    repeats show, so it widens every error by sqrt(2) of itself. Raises `ResultsError` when nothing is in common or conditions differ.
    """
    cells, environment = measured_cells(rows)
    base = baseline.current
    refuse_if_different([base.environment, environment])
    common = [key for key in base.cells if key in cells]
    if not common:
        wanted = next(iter(base.cells.values())).label
        raise ResultsError(f"The candidate has no cell in common with baseline {baseline.name}; measure {wanted} and the like.")
    items = [
        _judged(base.cells[key], cells[key], figure, margin, noise or {}) for key in common for figure, margin in config.margins.items()
    ]
    findings = judge(items, config.alpha)
    slides = drift(baseline, config, cells)
    why = throttled([row.environment for row in rows], [row.figures for row in rows])
    verdict = "inconclusive" if why else combine(findings)
    if slides and config.drift == "fail" and verdict != "inconclusive":
        verdict = "fail"
    missing = [f"{cell.label} is in the baseline but was not measured" for key, cell in base.cells.items() if key not in cells]
    suspect = list(dict.fromkeys(text for row in rows for text in row.warnings))
    return GateReport(
        f"{baseline.name} ({base.revision[:12]})",
        candidate,
        verdict,
        findings,
        config.alpha,
        0,
        tuple(missing + suspect),
        tuple(slides),
        why,
    )


def _judged(base: Measured, new: Measured, figure: str, margin: float, noise: Mapping[str, float]) -> Judged:
    for side, cell in (("baseline", base), ("candidate", new)):
        if not cell.figures.get(figure):
            raise ResultsError(f"{cell.label} has no {figure} in the {side}; measure it or remove it from [margins].")
        bad = [value for value in cell.figures[figure] if not value > 0 or math.isinf(value)]
        if bad:
            raise ResultsError(f"{figure} of {cell.label} in the {side} is {bad[0]:g}; a measurement like that cannot be judged.")
    a, b = list(base.figures[figure]), list(new.figures[figure])
    n = min(len(a), len(b))
    evidence = stats.log_ratio(a, b).widened(math.sqrt(2) * noise.get(figure, 0.0)) if n >= 2 else None
    return Judged(
        label=new.label,
        figure=figure,
        margin=margin,
        evidence=evidence,
        a_value=float(np.exp(np.mean(np.log(a)))),
        b_value=float(np.exp(np.mean(np.log(b)))),
        blocks=n,
        sample_sd=evidence.error * math.sqrt(n) if evidence else 0.0,
    )


def drift(baseline: Baseline, config: GateConfig, candidate: Mapping[str, Measured] | None = None) -> list[str]:
    """One sentence for each figure that lost more than its margin over the history although every step was accepted."""
    found = []
    for key, newest in baseline.current.cells.items():
        for figure, margin in config.margins.items():
            entries = [entry for entry in baseline.history if entry.cells.get(key) and entry.cells[key].figures.get(figure)]
            sign = -1 if METRICS[figure].better == "lower" else 1
            levels = [sign * float(np.mean(np.log(entry.cells[key].figures[figure]))) for entry in entries]
            names = [f"{entry.revision[:10] or '?'} of {entry.accepted_at[:10]}" for entry in entries]
            if candidate and candidate.get(key) and candidate[key].figures.get(figure):
                levels.append(sign * float(np.mean(np.log(candidate[key].figures[figure]))))
                names.append("the candidate")
            sentence = _slide(levels, names, margin)
            if sentence:
                found.append(f"{newest.label}, {figure}: {sentence}")
    return found


def history_records(baseline: Baseline, figures: Sequence[str]) -> list[dict[str, Any]]:
    """One flat record a (cell, figure, state): value, change to the state before, total change since the first (relative)."""
    found = []
    for key in baseline.current.cells:
        for figure in figures:
            values: list[float] = []
            for entry in baseline.history:
                runs = entry.cells[key].figures.get(figure) if key in entry.cells else None
                if not runs:
                    continue
                values.append(float(np.exp(np.mean(np.log(runs)))))
                found.append(
                    {
                        "cell": entry.cells[key].label,
                        "figure": figure,
                        "accepted": entry.accepted_at[:10],
                        "revision": entry.revision[:10],
                        "value": values[-1],
                        "change": values[-1] / values[-2] - 1 if len(values) > 1 else None,
                        "total": values[-1] / values[0] - 1,
                        "note": entry.note,
                    }
                )
    return found


def _slide(levels: Sequence[float], names: Sequence[str], margin: float) -> str:
    bound = math.log1p(-margin)
    if len(levels) < 4:
        return ""
    fall, p = stats.trend(levels)
    edges = [0, *stats.change_points(levels), len(levels)]
    segments = [float(np.mean(levels[i:j])) for i, j in itertools.pairwise(edges)]
    if p < DRIFT_P and fall < bound:
        worst = int(np.argmin(np.diff(levels))) + 1
        return (
            f"slid by {math.expm1(fall):.1%} over {len(levels)} states since {names[0]} (p = {p:.3f}), more than the {margin:.1%} "
            f"tolerated at once; largest step at {names[worst]}"
        )
    lost = segments[-1] - max(segments)
    if len(segments) > 1 and lost < bound:
        start = edges[int(np.argmax(segments)) + 1]
        below = f"lies {math.expm1(lost):.1%} below its best level since the shift at {names[start]}"
        return f"{below}, more than the {margin:.1%} tolerated at once"
    return ""
