"""Which rows speak for a case: the newest version's repeats, a gate's arms apart; and how a figure is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from trtllm_results.compare.align import compare
from trtllm_results.compare.published import beside
from trtllm_results.errors import ResultsError
from trtllm_results.gate.baseline import measured_cells
from trtllm_results.metrics.registry import brief
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.selection import ResultSet, keep
from trtllm_results.store.table import read_rows
from trtllm_results.versions import newest, versions

RECORDED = Path(__file__).parents[2] / "results" / "recorded" / "h100"
GPU = Environment(gpu="NVIDIA H100 80GB HBM3", driver="1")


def row(rate: float, day: int, driver: str = "1", repeat: int = 0, **more: object) -> Row:
    cell = Cell("gptj-6b", "fp8", 256, 1920, 128, kv_dtype="fp8")
    started = f"2026-01-{day:02d}T00:00:00.000+00:00"
    return Row(cell, replace(GPU, driver=driver), repeat=repeat, figures={"output_tokens_per_s": rate}, started_at=started, **more)  # type: ignore[arg-type]


def test_the_version_measured_last_speaks_for_a_case_however_fast_the_others_were() -> None:
    rows = [row(3059.4, 1), row(3046.0, 1, repeat=1), row(3037.6, 2, driver="2")]
    assert [len(group) for group in versions(rows)] == [2, 1]
    assert [[one.figures["output_tokens_per_s"] for one in group] for group in newest(rows)] == [[3037.6]]
    assert {one.ours_tokens_per_s for one in beside(rows)} == {3037.6}
    change = compare([ResultSet("a", tuple(rows)), ResultSet("b", tuple(rows[:2]))]).changes[0]
    assert (change.base_value, change.base_repeats) == (pytest.approx(3037.6), 1)


def test_a_baseline_is_of_the_newest_versions() -> None:
    rows = read_rows(RECORDED / "llama-3.1-8b-fp8")
    cells, _ = measured_cells(rows)
    (cell,) = (one for one in cells.values() if one.label == "llama-3.1-8b fp8 b512 128/2048")
    assert [round(rate) for rate in cell.figures["output_tokens_per_s"]] == [24_387]


def test_a_gates_arms_are_two_cases_and_never_two_versions() -> None:
    rows = read_rows(RECORDED / "gate" / "ab")
    a, b = newest(rows)
    assert (a[0].arm, b[0].arm, len(a), len(b)) == ("A", "B", 10, 10)  # one warm-up run each counts for nothing
    split = [ResultSet(arm, tuple(keep(rows, [f"arm={arm}"]))) for arm in "AB"]
    with pytest.raises(ResultsError, match="they differ in arm"):
        compare(split)
    assert compare(split, ignore=["arm"]).changes[0].verdict == "slower"


def test_a_figure_is_written_one_way() -> None:
    assert [brief(v) for v in (1048576, 1048580.4, 24751.3, 0.000024753, 7.1, 9999.96)] == [
        "1,048,576",
        "1,048,580",
        "24,751",
        "0.00002475",
        "7.1",
        "10,000",
    ]
