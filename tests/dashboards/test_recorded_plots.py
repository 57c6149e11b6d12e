"""Every kind of figure over the recorded results: ticks told apart, no text upon another, units, one way to write a number."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.gpu_comparison import GpuComparison, compare_gpus, recorded_rows
from trtllm_dashboards.plots import KINDS, Axes, Material, figure
from trtllm_dashboards.plots.history import in_order, labels
from trtllm_dashboards.plots.style import looks, themed, tick_texts
from trtllm_dashboards.points import points
from trtllm_dashboards.sources import Sources, load
from trtllm_results.compare.published import Published
from trtllm_results.compare.published import load as published
from trtllm_results.metrics.registry import brief
from trtllm_results.record.row import PREDICTED, Row
from trtllm_results.store.table import read_rows

RECORDED = Path(__file__).parents[2] / "results" / "recorded"
UNIT = re.compile(r"\([^()]+\)$|by arrival|oldest first")
NOT_RECORDED = ("scaling", "cost", "quality")
"""Kinds whose figures no recorded H100 store carries."""
SCIENTIFIC = re.compile(r"\d(\.\d+)?e[+-]\d+|\d{8,}")


@pytest.fixture(scope="module")
def recorded() -> Sources:
    return load([str(RECORDED / "h100")])


@pytest.fixture(scope="module")
def all_rows() -> list[Row]:
    return recorded_rows()


@pytest.fixture(scope="module")
def over_gpus(all_rows: list[Row]) -> GpuComparison:
    return compare_gpus(all_rows)


def drawn_texts(drawn: Figure) -> Iterator[Text]:
    """What stands at fixed places: header, footer, titles, names of axes, tick labels within their axis."""
    yield from (text for text in drawn.texts if text.get_text())
    for ax in drawn.axes:
        yield from (text for text in (ax._left_title, ax.xaxis.label, ax.yaxis.label) if text.get_text())  # type: ignore[attr-defined]
        for axis, (low, high) in ((ax.xaxis, sorted(ax.get_xlim())), (ax.yaxis, sorted(ax.get_ylim()))):
            for tick in axis.get_major_ticks():
                if tick.label1.get_text() and low <= tick.get_loc() <= high:
                    yield tick.label1


@pytest.mark.parametrize("kind", KINDS)
def test_recorded_figures_have_distinct_ticks_units_and_no_text_upon_another(kind: str, recorded: Sources) -> None:
    axes = Axes("batch", "output_tokens_per_s", by=("precision",), col=("model",))
    material = Material(recorded.sets, requests=recorded.requests, axes=axes)
    if kind in NOT_RECORDED:
        with pytest.raises(DashboardError, match="needs"):
            figure(kind, material)
        return
    drawn = figure(kind, material)
    with themed():
        canvas = FigureCanvasAgg(drawn)
        engine = drawn.get_layout_engine()
        assert engine is not None
        engine.execute(drawn)  # places everything, and draws nothing
    for ax in drawn.axes:
        for name, axis in ((ax.get_xlabel(), ax.xaxis), (ax.get_ylabel(), ax.yaxis)):
            ticks = [tick.label1.get_text() for tick in axis.get_major_ticks() if tick.label1.get_text()]
            assert len(ticks) == len(set(ticks)), (name, ticks)
            assert UNIT.search(name) or (axis is ax.yaxis and not name), name
    texts = list(drawn_texts(drawn))
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in texts]  # type: ignore[arg-type]
    for (first, a), (second, b) in itertools.combinations(zip(texts, boxes, strict=True), 2):
        wide, high = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert wide < 1.5 or high < 1.5, f"'{first.get_text()}' upon '{second.get_text()}'"
    for text in [*texts, *(text for ax in drawn.axes for text in ax.texts)]:
        assert not SCIENTIFIC.search(text.get_text()), text.get_text()


def test_a_gates_arms_stand_in_their_order_and_the_loss_reads_as_one() -> None:
    rows = read_rows(RECORDED / "h100" / "gate" / "ab")
    line = in_order(points(rows, every_version=True)[::-1])
    assert [point.rows[0].arm for point in line] == ["A", "B"]
    drawn = figure("history", Material({"": rows}))
    (ax,) = drawn.axes
    means = next(line.get_ydata() for line in ax.lines if line.get_linestyle() == "-")
    assert means[0] > means[1]
    assert "-2.6%\n-2.9% to -2.3%" in [text.get_text() for text in ax.texts]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["A, t\n8870366", "B, .slow\n08931a2"]


def test_versions_of_one_day_and_revision_are_named_by_the_setting_that_differs() -> None:
    line = in_order(points(read_rows(RECORDED / "h100" / "nvtx-overhead"), every_version=True))
    assert [text.split("\n")[-1] for text in labels(line)] == ["nvtx_detail -", "nvtx_detail step", "nvtx_detail layer", "nvtx_detail op"]


def test_ticks_of_an_axis_are_written_alike_and_apart() -> None:
    assert tick_texts([0, 24_200, 24_250, 25_000]) == ["0", "24.20k", "24.25k", "25.00k"]
    assert tick_texts([3035, 3040]) == ["3,035", "3,040"]
    assert tick_texts([0.05, 0.5, 1, 5, 1000]) == ["0.05", "0.5", "1", "5", "1k"]
    assert tick_texts([0, 5e6, 15e6]) == ["0", "5M", "15M"]


def test_precisions_keep_their_look_among_other_series() -> None:
    alone, mixed = looks(["fp8_rowwise", "bf16"]), looks(["tp 2", "bf16, tp 1", "bf16, tp 2", "fp8_rowwise, tp 1"])
    assert (alone["bf16"], alone["fp8_rowwise"]) == (mixed["bf16, tp 1"], mixed["fp8_rowwise, tp 1"])
    assert len({(look.color, look.marker) for look in mixed.values()}) == 4


def test_the_briefs_cases_stand_over_its_gpus_with_nvidias_tables_and_ours(over_gpus: GpuComparison, all_rows: list[Row]) -> None:
    assert [case.title for case in over_gpus.cases] == [
        "gptj-6b, 128/128",
        "gptj-6b, 2048/128",
        "llama-2-7b, 128/128",
        "llama-3-8b, 128/128",
    ]
    for case in over_gpus.cases:
        kinds = {gpu: [bar.kind for bar in bars] for gpu, bars in case.bars.items()}
        assert kinds.pop("H200") == ["ours", "nvidia"]
        assert kinds == {"H100": ["ours", "nvidia", "brief"], **{gpu: ["predicted", "nvidia", "brief"] for gpu in ("A100", "L40S")}}
    llama = over_gpus.cases[3].bars
    assert [brief(bar.rate.mean) for bar in llama["H200"]] == ["35,962", "29,526"]
    assert [brief(bar.rate.mean) for bar in llama["H100"]] == ["34,111", "28,837", "16,708"]
    assert [bar.detail for bar in llama["A100"][1:]] == ["v0.17 fp16", "fp8"]
    assert [text.split(": ")[0] for text in over_gpus.doubts] == ["the project brief, A100, 12,085 tok/s"]
    assert "ours of gptj-6b at 2048/128 has ISL 1920" in over_gpus.notes
    measured = [row for row in all_rows if not row.predicted]
    assert [bar.kind for bar in compare_gpus(measured).cases[0].bars["A100"]] == ["nvidia", "brief"]
    assert [bar.kind for bar in compare_gpus([]).cases[0].bars["H100"]] == ["nvidia", "brief"]


def test_a_gpu_beyond_the_briefs_is_shown_where_it_was_measured_and_a_measurement_goes_before_a_prediction(all_rows: list[Row]) -> None:
    best = next(row for row in all_rows if row.cell.model == "llama-3.1-8b" and row.cell.batch == 2048 and not row.predicted)
    on_a100, on_h200 = (
        replace(best, environment=replace(best.environment, gpu=gpu), stored_key="") for gpu in ("NVIDIA A100-SXM4-80GB", "NVIDIA H200")
    )
    case = compare_gpus([*(row for row in all_rows if row.predicted), on_a100, on_h200]).cases[3]
    assert list(case.bars) == ["H200", "H100", "A100", "L40S"]
    assert [case.bars[gpu][0].kind for gpu in case.bars] == ["ours", "nvidia", "ours", "predicted"]
    assert case.bars["A100"][0].doubt.startswith("implausible")


def test_recorded_predictions_say_so_and_stay_near_nvidias_tables(all_rows: list[Row], over_gpus: GpuComparison) -> None:
    predicted = [row for row in all_rows if row.predicted]
    assert {row.environment.gpu for row in predicted} == {"A100 (by the step model)", "L40S (by the step model)"}
    assert all("constants are not fitted" in row.extra[PREDICTED][1] for row in predicted)
    of_model = [bars for case in over_gpus.cases for bars in case.bars.values() if bars[0].kind == "predicted"]
    ratios = [bars[0].rate.mean / bars[1].rate.mean for bars in of_model]
    assert 0.9 < min(ratios) < max(ratios) < 1.3


def test_without_the_briefs_figures_there_is_nothing_to_compare() -> None:
    others: list[Published] = [one for one in published() if not one.source.startswith("project brief")]
    with pytest.raises(ValueError, match="none of the project brief"):
        compare_gpus([], others)
