"""The project brief's table over GPUs: each of its cases with the brief's figure, NVIDIA's, and ours, GPU by GPU.

The cases are those the brief has figures for, so no list is kept here. NVIDIA's is the highest it published for the case on that GPU. Ours
is the fastest cell at any precision, since the question is what a GPU can do; where nothing was measured, what `sweep --predict` stored
stands in, marked. An A100 has no FP8 units, so figures of it are in half precision whatever the brief prints.

Plain data, without matplotlib: the plot and the page draw the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trtllm_dashboards.points import Estimate, Point, having, points
from trtllm_results.compare.published import ISL_TOLERANCE, Published, load, recorded
from trtllm_results.errors import ResultsError
from trtllm_results.gpus import gpu_class, sheet_of
from trtllm_results.model_sizes import canonical
from trtllm_results.record.row import OUR_TARGETS, PREDICTED, Row
from trtllm_results.store.layout import ROWS
from trtllm_results.store.table import read_rows

FIGURE = "output_tokens_per_s"
BRIEF, NVIDIA = "project brief", "TensorRT-LLM perf-overview"
GPUS = ("H200", "H100", "A100", "L40S")
ALWAYS = ("H100", "A100", "L40S")
"""GPUs of the brief; another is shown where we measured on it."""
Kind = Literal["ours", "predicted", "nvidia", "brief"]
KINDS: dict[Kind, str] = {
    "ours": "ours, measured",
    "predicted": "ours, predicted by the step model",
    "nvidia": "NVIDIA's published figure, TensorRT-LLM",
    "brief": "the project brief",
}


@dataclass(frozen=True)
class Bar:
    """Output tokens/s of all GPUs. `detail`: version and precision; `doubt`: why the figure cannot be, where it cannot."""

    kind: Kind
    rate: Estimate
    detail: str
    doubt: str = ""


@dataclass(frozen=True)
class Case:
    """One row of the brief: bars by GPU, in the order of `GPUS`, each GPU's in the order of `KINDS`."""

    model: str
    isl: int
    osl: int
    bars: dict[str, tuple[Bar, ...]]

    @property
    def title(self) -> str:
        return f"{self.model}, {self.isl}/{self.osl}"


@dataclass(frozen=True)
class GpuComparison:
    cases: tuple[Case, ...]
    doubts: tuple[str, ...]
    """Figures that cannot be, and why."""
    notes: tuple[str, ...]
    """What differs between ours and theirs, and what predictions rest on."""


def recorded_rows() -> list[Row]:
    """Rows of every store recorded in this checkout, ours and predicted; none where the package is installed without them."""
    h100 = recorded()
    if h100 is None:
        return []
    rows: list[Row] = []
    for table in sorted(h100.parent.rglob(ROWS)):
        rows += read_rows(Path(table).parent)
    return rows


def compare_gpus(rows: Iterable[Row], published: Sequence[Published] | None = None) -> GpuComparison:
    """Ours (of `rows`, predictions among them) beside the brief's and NVIDIA's; other engines' rows are left out. Raises `ResultsError`
    without a figure of the brief."""
    published = load() if published is None else published
    briefs = [one for one in published if one.source.startswith(BRIEF)]
    if not briefs:
        raise ResultsError("the published figures contain none of the project brief, so there is no case to compare")
    mine = [p for p in having(points(list(rows)), FIGURE) if p.environment.gpu and p.cell.gpus == 1 and p.cell.target in OUR_TARGETS]
    cases, notes = [], []
    for model, isl, osl in dict.fromkeys((one.model, one.isl, one.osl) for one in briefs):
        of_case = [p for p in mine if _matches(p, model, isl, osl)]
        bars = {}
        for gpu in GPUS:
            ours = _ours([p for p in of_case if gpu_class(p.environment.gpu) == gpu])
            if gpu not in ALWAYS and not any(bar.kind == "ours" for bar, _ in ours):
                continue
            bars[gpu] = (*(bar for bar, _ in ours), *_theirs(published, gpu, model, isl, osl))
            notes += [note for _, point in ours for note in _differences(point, model, isl)]
        cases.append(Case(model, isl, osl, bars))
    doubts = [
        f"{KINDS[bar.kind]}, {gpu}, {bar.rate.mean:,.0f} tok/s: {bar.doubt}"
        for case in cases
        for gpu, shown in case.bars.items()
        for bar in shown
        if bar.doubt
    ]
    told = dict.fromkeys([*_formats(briefs), *notes])
    said_by_others = {note for note in told for other in told if other != note and other.startswith(note)}
    return GpuComparison(tuple(cases), tuple(doubts), tuple(note for note in told if note not in said_by_others))


def _matches(point: Point, model: str, isl: int, osl: int) -> bool:
    cell = point.cell
    same = canonical(cell.model) == canonical(model) and cell.osl == osl
    return same and abs(cell.isl - isl) <= ISL_TOLERANCE * isl


def _ours(of_gpu: list[Point]) -> list[tuple[Bar, Point]]:
    """Our fastest, measured if anything was."""
    candidates = [p for p in of_gpu if not p.rows[0].predicted] or of_gpu
    best = max(candidates, key=lambda p: _rate(p).mean, default=None)
    if best is None:
        return []
    kind: Kind = "predicted" if best.rows[0].predicted else "ours"
    doubt = best.implausible
    detail = f"{best.cell.precision}, batch {best.cell.batch:,}" + ", one run" * (kind == "ours" and len(best.rows) == 1)
    return [(Bar(kind, _rate(best), detail, "" if doubt is None else doubt.text), best)]


def _rate(point: Point) -> Estimate:
    rate = point.get(FIGURE)
    assert rate is not None, "only points that carry the figure are asked"
    return rate


def _theirs(published: Sequence[Published], gpu: str, model: str, isl: int, osl: int) -> list[Bar]:
    """NVIDIA's highest, and the brief's."""
    bars = []
    sources: tuple[tuple[Kind, str], ...] = (("nvidia", NVIDIA), ("brief", BRIEF))
    for kind, source in sources:
        of_case = [
            one
            for one in published
            if one.source.startswith(source)
            and gpu_class(one.gpu) == gpu
            and canonical(one.model) == canonical(model)
            and (one.isl, one.osl, one.tp) == (isl, osl, 1)
        ]
        if of_case:
            best = max(of_case, key=lambda one: one.output_tokens_per_s)
            rate, doubt = best.output_tokens_per_s, best.implausible
            detail = " ".join([best.source.removeprefix(source).strip(), best.precision]).strip()
            bars.append(Bar(kind, Estimate(rate, rate, rate, 1), detail, "" if doubt is None else doubt.text))
    return bars


def _formats(briefs: Sequence[Published]) -> list[str]:
    """A precision printed for a GPU without it."""
    lacking = [one for one in briefs if (sheet := sheet_of(one.gpu)) is not None and one.precision not in sheet.flops_per_s]
    return [
        f"the brief prints {one.precision} for the {gpu_class(one.gpu)}, which has no {one.precision} units; NVIDIA's figures of it are in "
        "half precision, and so are our predictions"
        for one in lacking
    ]


def _differences(point: Point, model: str, isl: int) -> list[str]:
    """What our cell does not share with the case, and what a prediction rests on."""
    basis = point.rows[0].extra.get(PREDICTED, ()) if point.rows[0].predicted else ()
    notes = [f"predictions for the {gpu_class(point.environment.gpu)}: {'; '.join(map(str, basis))}"] if basis else []
    if point.cell.isl != isl:
        notes.append(f"ours of {model} at {isl}/{point.cell.osl} has ISL {point.cell.isl}")
    if point.cell.model.lower() != model:
        notes.append(f"ours of {model} is {point.cell.model}, which has the same shapes")
    return notes
