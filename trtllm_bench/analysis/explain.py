"""Where a cell's time went, and where the difference between two cells comes from, summing to the whole.

With a profile attached the parts are kernels and gaps, as measured. Without one they come from the step log: every step's time as taken,
divided by what the step model says its composition needs; what the model does not account for is a part of its own and not spread over the
others. So parts always sum to the measured time, and a large `not accounted for` says: profile this cell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trtllm_bench.analysis.cells import MeasuredCell, constants_of, hardware_of, plans_of
from trtllm_bench.analysis.step_model import PARTS, PipelineModel, StepModel, step_model
from trtllm_bench.errors import BenchError
from trtllm_bench.profiling.record import CellProfile
from trtllm_bench.roofline.costs import step_seconds
from trtllm_bench.roofline.counts import StepShape

IDLE, UNKNOWN = "no step in flight", "not accounted for"
SAMPLED_STEPS = 200


@dataclass(frozen=True)
class Breakdown:
    """Microseconds per output token by part, summing to `per_token_us`."""

    parts: Mapping[str, float]
    source: str
    """`profile` or `step log`."""
    steps: Mapping[str, float] = field(default_factory=dict)
    """Share of the time in steps of each phase."""

    @property
    def per_token_us(self) -> float:
        return sum(self.parts.values())

    def share(self, *names: str) -> float:
        total = self.per_token_us
        return sum(self.parts.get(name, 0.0) for name in names) / total if total else 0.0


def from_profile(profile: CellProfile) -> Breakdown:
    tokens = max(profile.tokens_out, 1)
    phases: dict[str, float] = {}
    for step in profile.steps:
        phases[step.phase] = phases.get(step.phase, 0.0) + step.span_us / profile.window_us
    return Breakdown({name: us / tokens for name, us in profile.parts().items() if us}, "profile", phases)


def from_log(cell: MeasuredCell, model: StepModel | PipelineModel) -> Breakdown:
    """Of a pipeline, whose stages all have a step at once, the parts are those of the stage that takes longest.

    Raises `BenchError` for a row without a step log."""
    steps = read_steps(cell)
    taken, idle = step_times(steps)
    parts = dict.fromkeys((*PARTS, UNKNOWN), 0.0)
    phases: dict[str, float] = {}
    page = model.counter.plan.profile.page_size
    for same, chosen in sampled_steps(steps):
        us = float(taken[same].sum())
        parts[UNKNOWN] += us
        for index in chosen:
            shape = shape_of(steps, index, page, model.stages)
            predicted, weight = model.step(shape), len(same) / len(chosen)
            for name, part in predicted.parts.items():
                parts[name] += part * weight
            parts[UNKNOWN] -= predicted.total_us * weight
        phases[shape.phase] = us / taken.sum()
    parts[IDLE] = float(idle.sum())
    tokens = max(float(cell.row.figures.get("output_tokens", 0)), 1.0)
    return Breakdown({name: us / tokens for name, us in parts.items() if us}, "step log", phases)


def breakdown(cell: MeasuredCell) -> Breakdown:
    """Raises `BenchError` where nothing tells the cell's steps apart."""
    if cell.profile is not None:
        return from_profile(CellProfile.load(cell.profile))
    return from_log(cell, step_model(plans_of(cell.row), hardware_of(cell.row.environment), constants_of(cell.row)))


def read_steps(cell: MeasuredCell) -> dict[str, Any]:
    """The cell's step log by column, of one replica where there are several. Raises `BenchError` for a row without one."""
    table = None if cell.store is None else cell.store.read_side("steps", cell.row)
    if table is None or table.num_rows < 2:
        raise BenchError(
            f"{cell.label} has no step log: explain needs the store folder of a run of our own engine (--out), not a table alone"
        )
    steps = {name: table.column(name).to_numpy() for name in table.column_names}
    if "replica" not in steps:
        return steps
    first = steps["replica"] == steps["replica"].min()  # replicas run beside each other: one's time is that of the run
    return {name: column[first] for name, column in steps.items()}


def step_times(steps: Mapping[str, Any]) -> tuple[Any, Any]:
    """(taken, idle before) of each step, microseconds: from the later of its launch and the end of the step before."""
    done, launched = np.asarray(steps["done_s"]), np.asarray(steps["launched_s"])
    before = np.concatenate([[launched[0]], done[:-1]])
    return step_seconds(steps) * 1e6, np.maximum(launched - before, 0.0) * 1e6


def sampled_steps(steps: Mapping[str, Any]) -> list[tuple[Any, list[int]]]:
    """For each phase that the run has (steps that only decode, only read prompts, or both): the indices of its steps, and at most
    `SAMPLED_STEPS` of them, spread over it, that stand for all. Phases are apart since a step with prompts may take twenty times as long
    as one that decodes: of a run's few, a sample of all steps takes too many or too few."""
    decodes, prompts = np.asarray(steps["decode_tokens"]) > 0, np.asarray(steps["context_seqs"]) > 0
    phases = [np.flatnonzero(phase) for phase in (~prompts, prompts & ~decodes, prompts & decodes)]
    return [(same, same[np.unique(np.linspace(0, len(same) - 1, SAMPLED_STEPS).astype(int))].tolist()) for same in phases if len(same)]


def shape_of(steps: Mapping[str, Any], index: int, page_size: int, stages: int = 1) -> StepShape:
    """What a logged step computed: its prompts taken to be whole and alike, each sequence's last page half full. In a pipeline of `stages`
    a step decodes its share of the sequences that have pages."""
    decodes, prompts = int(steps["decode_tokens"][index]), int(steps["context_seqs"][index])
    tokens = int(steps["context_tokens"][index])
    held = float(steps["kv_pages_used"][index]) * page_size - float(steps["running"][index]) * page_size / 2
    length = max(1.0, (held - tokens) / (decodes * stages)) if decodes else 1.0
    shape = StepShape.decode(decodes, length)
    if not prompts:
        return shape
    lengths = np.full(prompts, tokens // prompts, np.int64)
    lengths[: tokens % prompts] += 1
    context = StepShape(lengths, lengths, 0, prompts)
    return shape + context if decodes else context


@dataclass(frozen=True)
class Difference:
    """Part by part, microseconds per output token; `b - a` over all parts is the difference of the wholes."""

    rows: tuple[tuple[str, float, float], ...]

    @property
    def total(self) -> tuple[float, float]:
        return sum(a for _, a, _ in self.rows), sum(b for _, _, b in self.rows)


def difference(a: Breakdown, b: Breakdown) -> Difference:
    """Raises `BenchError` for a profile against a step log, whose parts differ in kind."""
    if a.source != b.source:
        raise BenchError("one cell has a profile and the other only a step log, whose parts differ in kind; profile both or none")
    names = sorted({*a.parts, *b.parts}, key=lambda name: -abs(b.parts.get(name, 0.0) - a.parts.get(name, 0.0)))
    return Difference(tuple((name, a.parts.get(name, 0.0), b.parts.get(name, 0.0)) for name in names))
