"""Stored baselines: a file that moves only by an explicit `accept`, and remembers every place it has been.

    {"schema_version": 1, "name": ..., "history": [{accepted_at, revision, note, same_state, environment, cells: {key: {cell, figures:
    {name: [runs]}}}}]}

One accept is one *session*: runs of one day, which share its temperature, its neighbours and its boot. Two sessions of the same code
differ by more than their repeats show, and no repeat measures that; only further sessions do. `same_state` marks an accept as another
session of the newest state. The newest state's sessions together are the baseline (`sessions.py` has the comparison), and the older
states are what makes drift visible (`drift.py`).
"""

from __future__ import annotations

import datetime
import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_results.errors import ResultsError
from trtllm_results.gate.config import GateConfig
from trtllm_results.gate.drift import find_loss
from trtllm_results.gate.run import refuse_if_different, throttled
from trtllm_results.gate.sessions import SessionNoise, compared, level, session_noise
from trtllm_results.gate.verdict import GateReport, Judged, combine, judge
from trtllm_results.metrics.registry import METRICS
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.document import as_kind, read_document
from trtllm_results.store.files import write_text, writing
from trtllm_results.versions import newest, varied_in

BASELINE_VERSION = 1
GOODPUT = "goodput"


@dataclass(frozen=True)
class Measured:
    """Runs of one cell: figure -> one value per run. `cell` has the fields that cells are lined up by, and the limits of a goodput."""

    label: str
    cell: Mapping[str, Any]
    figures: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Entry:
    """One accepted session. `same_state`: it measured what the entry before it did, on another day."""

    accepted_at: str
    revision: str
    note: str
    environment: Environment
    cells: Mapping[str, Measured]
    same_state: bool = False


@dataclass(frozen=True)
class Baseline:
    name: str
    history: tuple[Entry, ...] = field(default_factory=tuple)

    @property
    def current(self) -> Entry:
        return self.history[-1]

    @property
    def states(self) -> list[list[Entry]]:
        """The sessions of each state, oldest first."""
        states: list[list[Entry]] = []
        for entry in self.history:
            if entry.same_state and states:
                states[-1].append(entry)
            else:
                states.append([entry])
        return states

    def runs(self, key: str, figure: str) -> list[list[Sequence[float]]]:
        """[states][sessions] values of one figure of one cell, where it was measured."""
        states = [
            [entry.cells[key].figures[figure] for entry in state if entry.cells.get(key) and entry.cells[key].figures.get(figure)]
            for state in self.states
        ]
        return [state for state in states if state]


def measured_cells(rows: Sequence[Row]) -> tuple[dict[str, Measured], Environment]:
    """The ok rows of each cell's newest version, with their (single) environment.

    Raises `ResultsError` for none, mixed conditions, or a figure that is zero or NaN.
    """
    ok = [row for group in newest(rows) for row in group]
    if not ok:
        raise ResultsError("there is no successful measurement among these results; nothing can be judged")
    if any(row.predicted for row in ok):
        raise ResultsError(
            "the gate judges measurements, and there are predictions among these; leave them out: results export --where target=native"
        )
    refuse_if_different([row.environment for row in ok])
    varied = varied_in(ok)
    groups: dict[str, list[Row]] = {}
    for row in ok:
        groups.setdefault(_key(row, varied), []).append(row)
    cells = {}
    for key, members in groups.items():
        in_order = sorted(members, key=lambda row: row.repeat)  # a repeat that was made up for comes last in a store
        names = [name for name in members[0].figures if METRICS.get(name) and METRICS[name].better]
        figures = {name: [row.figures[name] for row in in_order if name in row.figures] for name in names}
        limits = {GOODPUT: members[0].settings[GOODPUT]} if GOODPUT in members[0].settings else {}
        cells[key] = Measured(members[0].label, {**dict(members[0].case(varied)), **limits}, figures)
    return cells, ok[0].environment


def _key(row: Row, varied: Sequence[str]) -> str:
    return " ".join(f"{name}={value}" for name, value in row.case(varied))


def accept(baseline: Baseline | None, name: str, rows: Sequence[Row], note: str, same_state: bool = False) -> Baseline:
    """`baseline` (None: a new one) with `rows` as its newest entry; `same_state`: as one more session of its newest state.

    Raises `ResultsError` when a further session has no state to belong to, or was measured under other conditions than that state.
    """
    cells, environment = measured_cells(rows)
    if same_state and baseline is None:
        raise ResultsError("there is no state yet that this could be another session of; accept the first one without --same-state")
    if same_state and baseline is not None:
        refuse_if_different([baseline.current.environment, environment])
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    entry = Entry(now, environment.git_revision or environment.source_hash, note, environment, cells, same_state)
    return Baseline(name, (*(baseline.history if baseline else ()), entry))


def accept_into(path: Path, rows: Sequence[Row], note: str, same_state: bool = False) -> Baseline:
    """Accepts `rows` into the file at `path`, which need not exist. Concurrent accepts wait for each other, so none is lost."""
    with _locked(path):
        old = load(path) if path.exists() else None
        new = accept(old, old.name if old else path.stem, rows, note, same_state)
        save(new, path)
    return new


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds the folder of `path` locked. The folder and not a file beside it: nothing is left over, and `replace` moves no lock away."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def save(baseline: Baseline, path: Path) -> None:
    """Writes the file whole or not at all. Raises `WriteError` where the disk or the folder does not take it."""
    write_text(path, json.dumps({"schema_version": BASELINE_VERSION, **asdict(baseline)}, indent=1) + "\n")


def load(path: Path) -> Baseline:
    """Raises `ResultsError` if the file is missing, not a baseline, or of a newer version."""
    try:
        content = read_document(path)
    except FileNotFoundError:
        raise ResultsError(f"there is no baseline at {path}; make one with gate accept") from None
    except ResultsError as error:
        raise ResultsError(f"{path} is not a baseline file of trtllm-bench: {error}") from None
    if not isinstance(content, dict) or not isinstance(version := content.pop("schema_version", None), int):
        raise ResultsError(f"{path} is not a baseline file of trtllm-bench: it has no schema_version")
    if version > BASELINE_VERSION:
        raise ResultsError(f"baseline {path} has version {version}, newer than this tool's {BASELINE_VERSION}; upgrade trtllm-bench")
    read = as_kind(Baseline, content, f"{path} is not a baseline file of trtllm-bench")
    if not read.history:
        raise ResultsError(f"baseline {path} has an empty history; run gate accept")
    return read


def check(
    baseline: Baseline,
    rows: Sequence[Row],
    config: GateConfig,
    noise: Mapping[str, SessionNoise | float] | None = None,
    candidate: str = "candidate",
) -> GateReport:
    """Judges `rows` against the newest state.

    Two sessions differ by more than their repeats show. How much is taken from the baseline's own sessions, or from `noise` (figure ->
    what a noise file of `gate calibrate` says, or a deviation that is known), the larger of both; without either it is assumed, and the
    report says so. Raises `ResultsError` when nothing is in common or conditions differ.
    """
    cells, environment = measured_cells(rows)
    base = baseline.current
    refuse_if_different([base.environment, environment])
    common = [key for key in base.cells if key in cells]
    if not common:
        missing_label = next(iter(base.cells.values())).label
        raise ResultsError(f"the candidate has no cell in common with baseline {baseline.name}; measure {missing_label} and the like")
    judged = [
        _judged(base.cells[key], cells[key], figure, margin, noise or {}, baseline.runs(key, figure))
        for key in common
        for figure, margin in config.margins.items()
    ]
    findings = judge(judged, config.alpha)
    slides = drift(baseline, config, cells)
    why = throttled([row.environment for row in rows], [row.figures for row in rows])
    verdict = "inconclusive" if why else combine(findings)
    if slides and config.drift == "fail" and verdict != "inconclusive":
        verdict = "fail"
    missing = [f"{cell.label} is in the baseline but was not measured" for key, cell in base.cells.items() if key not in cells]
    suspect = list(dict.fromkeys(text for row in rows for text in row.warnings))
    sources = list(dict.fromkeys(item.note for item in judged if item.note))
    return GateReport(
        f"{baseline.name} ({base.revision[:12]})" if base.revision else baseline.name,
        candidate,
        verdict,
        findings,
        config.alpha,
        0,
        tuple(sources + missing + suspect),
        tuple(slides),
        why,
    )


def _judged(
    base: Measured,
    new: Measured,
    figure: str,
    margin: float,
    noise: Mapping[str, SessionNoise | float],
    states: Sequence[Sequence[Sequence[float]]] = (),
) -> Judged:
    """One figure. `states` is [states][sessions] runs of it; without them the baseline is the one session `base`."""
    for side, cell in (("baseline", base), ("candidate", new)):
        if not cell.figures.get(figure):
            raise ResultsError(f"{cell.label} has no {figure} in the {side}; measure it or remove it from [margins]")
        bad = [value for value in cell.figures[figure] if not value > 0 or math.isinf(value)]
        if bad:
            raise ResultsError(f"{figure} of {cell.label} in the {side} is {bad[0]:g}; a measurement like that cannot be judged")
    limits = [cell.cell.get(GOODPUT) for cell in (base, new)]
    if figure.startswith(GOODPUT) and None not in limits and limits[0] != limits[1]:
        raise ResultsError(
            f"{figure} of {new.label} counts within {limits[0]} in the baseline and within {limits[1]} in the candidate; measure both "
            "under the same limits"
        )
    states = states or [[base.figures[figure]]]
    sessions, runs = states[-1], list(new.figures[figure])
    known = noise.get(figure)
    source = session_noise(states, SessionNoise(known) if isinstance(known, (int, float)) else known)
    comparison = compared(sessions, runs, source, in_pairs=bool(base.cell.get("request_rate")))
    repeats = min(len(runs), *(len(one) for one in sessions))
    return Judged(
        label=new.label,
        figure=figure,
        margin=margin,
        evidence=comparison.evidence if comparison else None,
        a_value=math.exp(float(np.mean([level(one) for one in sessions]))),
        b_value=math.exp(level(runs)),
        blocks=len(runs) if comparison else repeats,
        sample_sd=comparison.evidence.error if comparison else 0.0,
        fixed=comparison.fixed if comparison else None,
        repeat_df=len(runs) - 1.0,
        note=source.sentence,
    )


def drift(baseline: Baseline, config: GateConfig, candidate: Mapping[str, Measured] | None = None) -> list[str]:
    """One sentence for each figure that lost more than its margin over the history although every step was accepted."""
    sentences = []
    for key, last in baseline.current.cells.items():
        for figure, margin in config.margins.items():
            entries = [entry for entry in baseline.history if entry.cells.get(key) and entry.cells[key].figures.get(figure)]
            sign = -1 if METRICS[figure].better == "lower" else 1
            levels = [sign * level(entry.cells[key].figures[figure]) for entry in entries]
            names = [f"{entry.revision[:10] or '?'} of {entry.accepted_at[:10]}" for entry in entries]
            if candidate and candidate.get(key) and candidate[key].figures.get(figure):
                levels.append(sign * level(candidate[key].figures[figure]))
                names.append("the candidate")
            sentence = find_loss(levels, names, margin)
            if sentence:
                sentences.append(f"{last.label}, {figure}: {sentence}")
    return sentences


def history_records(baseline: Baseline, figures: Sequence[str]) -> list[dict[str, Any]]:
    """One flat record a (cell, figure, session): value, change to the session before, total change since the first (relative). Cells of the
    current state come first, then those that it has no more."""
    records = []
    for key in dict.fromkeys(key for entry in (baseline.current, *baseline.history) for key in entry.cells):
        for figure in figures:
            values: list[float] = []
            for entry in baseline.history:
                runs = entry.cells[key].figures.get(figure) if key in entry.cells else None
                if not runs:
                    continue
                values.append(math.exp(level(runs)))
                records.append(
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
    return records
