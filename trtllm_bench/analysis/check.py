"""The step model against what was measured: every cell of a store predicted, and how far off."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from trtllm_bench.analysis.cells import constants_of, hardware_of, plans_of
from trtllm_bench.analysis.predict import predict
from trtllm_bench.errors import BenchError
from trtllm_bench.roofline.counts import StepShape
from trtllm_bench.roofline.hardware import Hardware
from trtllm_bench.spec.measurement import EngineSpec
from trtllm_bench.targets.registry import is_own
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.scheduler import Policy
from trtllm_results.record.row import Row
from trtllm_workloads.synthetic import fixed

FIGURE = "output_tokens_per_s"


@dataclass(frozen=True)
class Checked:
    row: Row
    measured: float
    """Output tokens/s, mean over the repeats."""
    predicted: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def check(
    rows: Sequence[Row], hardware: Hardware | None = None, progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Checked]:
    """Each cell of our own engine with fixed lengths, on its row's GPU or on `hardware`. `progress` is told how many are done of how many.
    Raises `BenchError` when there is none."""
    cells: dict[str, list[Row]] = {}
    for row in rows:
        mine = is_own(row.cell.target) and not row.cell.named_workload and not row.cell.request_rate
        if mine and row.status == "ok" and FIGURE in row.figures:
            cells.setdefault(row.key, []).append(row)
    if not cells:
        raise BenchError("none of these cells is a measured one of our own engine with fixed lengths, which is what can be predicted")
    checked = []
    for done, repeats in enumerate(cells.values(), 1):
        if (one := _checked(repeats, hardware)) is not None:
            checked.append(one)
        progress(done, len(cells))
    return checked


def predict_again(row: Row, hardware: Hardware, on_steps: Callable[[list[tuple[StepShape, int]]], None] | None = None) -> dict[str, float]:
    """Figures that `predict` gives for the run of a row, of fixed lengths, under the row's own settings. `on_steps` and what is raised: as
    there."""
    cell, settings, usual = row.cell, row.cell.settings, EngineSpec()
    figures, _ = predict(
        plans_of(row),
        hardware,
        fixed(cell.num_requests or 4 * max(cell.batch, 1), cell.isl, cell.osl, vocab_size=256, seed=0),
        concurrency=cell.batch,
        policy=cast(Policy, settings.get("policy") or usual.policy),
        kv_cache_fraction=float(settings.get("kv_cache_fraction") or usual.kv_cache_fraction),
        replicas=cell.replicas,
        constants=constants_of(row),
        on_steps=on_steps,
    )
    return figures


def _checked(repeats: Sequence[Row], hardware: Hardware | None) -> Checked | None:
    row = repeats[-1]
    hardware = hardware or hardware_of(row.environment)
    if not hardware.memory_bytes:
        return None
    try:
        predicted = predict_again(row, hardware)
    except EngineError:
        return None
    return Checked(row, statistics.fmean(one.figures[FIGURE] for one in repeats), predicted[FIGURE])


def median_error(checked: Sequence[Checked]) -> float:
    return statistics.median(abs(one.error) for one in checked)
