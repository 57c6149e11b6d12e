"""Figures: every kind is drawn from rows, carries units and uncertainty, is the same each time, and says what it lacks."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import KINDS, NEED_NO_ROWS, Axes, Material, figure, render
from trtllm_dashboards.plots.cost import cheapest
from trtllm_dashboards.plots.pareto import front
from trtllm_dashboards.plots.scaling import best_by_count, gpus
from trtllm_dashboards.plots.style import PALETTE, _thinned, look
from trtllm_dashboards.plots.timeline import phases
from trtllm_dashboards.points import Estimate, estimate, grouped, points, ratio, varying
from trtllm_dashboards.scaling import layout_name, matched
from trtllm_results.compare.published import Published
from trtllm_results.cost import Price, priced
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row

FROM_SWEEP = ("throughput", "latency", "pareto", "percentiles", "precision", "roofline", "energy")
UNIT = re.compile(
    r"\((tok/s|tok/s/GPU|tok/s/user|s|ms|W|J/tok|ratio|count|sequences in flight|req/s|tp x pp x replicas)\)|by arrival|oldest first"
)


def texts(drawn: Figure) -> str:
    found = [t.get_text() for t in drawn.texts]
    for ax in drawn.axes:
        found += [ax.get_title(loc="left"), ax.get_xlabel(), ax.get_ylabel(), *(t.get_text() for t in ax.texts)]
    return "\n".join(found)


@pytest.mark.parametrize("kind", FROM_SWEEP)
def test_every_axis_has_a_unit_and_the_footer_says_what_the_bars_are(kind: str, sweep_rows: list[Row]) -> None:
    drawn = figure(kind, Material({"": sweep_rows}))
    for ax in drawn.axes:
        assert UNIT.search(ax.get_xlabel()), ax.get_xlabel()
        assert UNIT.search(ax.get_ylabel()), ax.get_ylabel()
    assert "95% t interval" in texts(drawn)


@pytest.mark.parametrize("kind", [*FROM_SWEEP, "cost", "axes", "scaling"])
def test_bars_end_within_the_axes(kind: str, make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    """Two repeats, one a tenth of the other."""
    rows = make_rows(make_grid(precisions=("fp8", "bf16"), batches=(1, 64), shapes=((128, 128),), tps=(1, 2)), repeats=2)
    rows = [dataclasses.replace(r, figures={name: value / (10 if r.repeat else 1) for name, value in r.figures.items()}) for r in rows]
    rows = [priced(row, Price(3.0)) for row in rows]
    drawn = figure(kind, Material({"": rows}, axes=Axes("batch", "ttft_p99_ms", by=("precision", "tp"))))
    checked = 0
    for ax in drawn.axes:
        (left, right), (low, high) = sorted(ax.get_xlim()), sorted(ax.get_ylim())
        for container in ax.containers:
            for bar in container.lines[2] if isinstance(container, ErrorbarContainer) else ():
                for (x0, y0), (x1, y1) in bar.get_segments():
                    assert left <= min(x0, x1) <= max(x0, x1) <= right, kind
                    assert low <= min(y0, y1) <= max(y0, y1) <= high, kind
                    checked += 1
    assert checked


def test_png_and_svg_are_written_and_byte_identical_for_equal_rows(tmp_path: Path, sweep_rows: list[Row]) -> None:
    rows = [row for row in sweep_rows if row.cell.isl == row.cell.osl == 128]
    first = render("throughput", rows, tmp_path / "a")
    second = render("throughput", rows, tmp_path / "b")
    assert [p.suffix for p in first] == [".png", ".svg"]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_throughput_bars_are_the_interval_of_the_repeats(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    rows = make_rows(make_grid(precisions=("fp8",), shapes=((128, 128),), batches=(8,)), repeats=4)
    drawn = figure("throughput", Material({"": rows}))
    values = [r.figures["output_tokens_per_s"] for r in rows]
    half = 3.1824463 * np.std(values, ddof=1) / 2
    bar = drawn.axes[0].containers[0].lines[2][0].get_segments()[0]
    assert bar[:, 1] == pytest.approx([np.mean(values) - half, np.mean(values) + half])


def test_a_single_run_is_hollow_and_said_to_be_of_unknown_spread(
    make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]
) -> None:
    drawn = figure("throughput", Material({"": make_rows(make_grid(), repeats=1)}))
    assert "spread unknown" in texts(drawn)
    markers = [c.lines[0].get_markerfacecolor() for c in drawn.axes[0].containers]
    assert set(markers) == {"white"}


def test_a_ratio_of_two_repeats_is_said_to_have_a_t_interval(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    said = texts(figure("precision", Material({"": make_rows(make_grid(), repeats=2)})))
    assert "t interval of the ratio" in said
    assert "span the two" not in said


def test_bars_of_one_precision_with_two_cache_types_name_the_cache(
    make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]
) -> None:
    (cell,) = make_grid(models=("llama-3.1-8b",), precisions=("bf16",), shapes=((128, 128),), batches=(8,))
    with_int8, with_fp8 = (dataclasses.replace(cell, precision="fp8", kv_dtype=kind) for kind in ("int8", "fp8"))
    drawn = figure("precision", Material({"a": make_rows([cell, with_fp8]), "b": make_rows([with_int8])}))
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert len(set(labels)) == len(labels)
    assert any("fp8 kv int8" in label for label in labels)


def test_failed_cells_are_not_drawn(sweep_rows: list[Row]) -> None:
    drawn = figure("throughput", Material({"": sweep_rows}))
    assert max(max(line.get_xdata(), default=0) for ax in drawn.axes for line in ax.lines) == 1024


def test_scaling_takes_the_best_batch_and_names_the_share_of_perfect(
    make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]
) -> None:
    rows = make_rows(make_grid(precisions=("fp8",), shapes=((128, 128),), batches=(16, 256), tps=(1, 2, 4)))
    best = best_by_count(points(rows))
    assert [gpus(p) for p in best] == [1, 2, 4]
    assert {p.cell.batch for p in best} == {256}
    share = float(np.mean([r.figures["output_tokens_per_s"] for r in best[2].rows]))
    share /= 4 * float(np.mean([r.figures["output_tokens_per_s"] for r in best[0].rows]))
    assert f"{share:.0%}" in texts(figure("scaling", Material({"": rows})))


def test_scaling_of_the_same_load_is_of_cells_that_differ_in_layout_alone(
    make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]
) -> None:
    rows = make_rows(make_grid(precisions=("fp8",), shapes=((128, 128),), batches=(16, 256), tps=(1, 2)))
    copies = [dataclasses.replace(row, cell=dataclasses.replace(row.cell, tp=1, replicas=2), row_id="") for row in rows if row.cell.tp == 2]
    other = [dataclasses.replace(row, cell=dataclasses.replace(row.cell, tp=4, batch=64), row_id="") for row in rows if row.cell.tp == 2]
    groups = matched(points([*rows, *copies, *other]))
    assert [[layout_name(one.point.cell) for one in group] for group in groups] == [["one GPU", "tp2", "x2"]] * 2
    first, second, _ = groups[0]
    means = [float(np.mean([row.figures["output_tokens_per_s"] for row in one.point.rows])) for one in (first, second)]
    assert second.speed_up == pytest.approx(means[1] / means[0])
    assert second.efficiency(1) == pytest.approx(means[1] / means[0] / 2)
    drawn = figure("scaling", Material({"": [*rows, *copies, *other]}))
    assert {ax.get_ylabel() for ax in drawn.axes} == {"output throughput (tok/s)", "speed-up (x)", "TPOT p50 (ms)"}
    assert f"{second.efficiency(1):.0%}" in texts(drawn)


def test_history_marks_a_planted_step_and_its_size(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    rows = []
    for version in range(16):
        for row in make_rows(make_grid(precisions=("fp8",), shapes=((128, 128),), batches=(64,)), seed=version):
            environment = dataclasses.replace(row.environment, source_hash=f"{version:016x}")
            figures = {**row.figures, "output_tokens_per_s": row.figures["output_tokens_per_s"] * (1.2 if version >= 9 else 1.0)}
            day = f"2026-03-{version + 1:02d}T00:00:00.000+00:00"
            rows.append(dataclasses.replace(row, environment=environment, figures=figures, started_at=day))
    drawn = figure("history", Material({"": rows}))
    lines = [line.get_xdata()[0] for line in drawn.axes[0].lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2]
    assert 8.5 in lines
    assert re.search(r"\+(19|20|21)\.\d%|\+20%", texts(drawn))


def test_scaling_shows_what_was_measured_on_several_numbers_of_gpus() -> None:
    """A line of one number of GPUs has no share of perfect scaling; the stores that layouts lie in make no series."""

    def of(model: str, tp: int, rate: float) -> Row:
        return Row(Cell(model, "fp8", 8, 128, 128, tp=tp), Environment(gpu="NVIDIA H200"), figures={"output_tokens_per_s": rate})

    drawn = figure("scaling", Material({"one": [of("a", 1, 100.0)], "two": [of("a", 2, 150.0), of("b", 2, 90.0)]}))
    assert "75%" in texts(drawn)
    assert "100%" not in texts(drawn)
    assert {ax.get_title(loc="left").partition(":")[0] for ax in drawn.axes} == {"a"}


def test_shares_of_perfect_scaling_do_not_lie_upon_each_other() -> None:
    rows = [
        Row(Cell("a", "fp8", batch, 128, 128, tp=tp), Environment(gpu="NVIDIA H200"), figures={"output_tokens_per_s": rate})
        for tp, batch, rate in ((1, 8, 1000.0), (2, 8, 1460.0), (1, 64, 5000.0), (2, 64, 7200.0))
    ]
    shares = [[text.get_text() for text in ax.texts if "%" in text.get_text()] for ax in figure("scaling", Material({"": rows})).axes]
    assert shares == [["72%"], ["73%"], []], "throughput's; of the same load one of two; latency has none"


def test_where_only_some_pairs_have_room_what_these_share_is_in_the_subtitle(
    make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]
) -> None:
    shapes = tuple((128 * n, 128) for n in range(1, 26))
    rows = make_rows(make_grid(models=("first", "second"), precisions=("bf16", "fp8"), shapes=shapes, batches=(8, 64)))
    said = texts(figure("precision", Material({"": rows})))
    assert "24 of " in said
    assert "first" in said
    assert "second" not in said


def test_what_is_said_beside_a_bar_has_room(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    models = tuple(f"organisation/a-model-with-a-name-of-some-length-{n}" for n in (1, 2))
    rows = make_rows(make_grid(models=models, precisions=("bf16", "fp8"), shapes=((128, 128),), batches=(8, 64)), repeats=1)
    scale = {"bf16": 1.0, "fp8": 9.0}
    figures = [{**r.figures, "output_tokens_per_s": 12_345.0 * scale[r.cell.precision] + r.cell.batch} for r in rows]
    drawn = figure("precision", Material({"": [dataclasses.replace(r, figures=f) for r, f in zip(rows, figures, strict=True)]}))
    FigureCanvasAgg(drawn).draw()
    (ax,) = drawn.axes
    assert max(text.get_window_extent().x1 for text in ax.texts) <= ax.get_window_extent().x1 + 1


def test_quality_has_a_front_for_each_device() -> None:
    """The same engines on two devices, from a store each, are the same series in two panels."""
    sets = {}
    for source, gpu in (("one", "NVIDIA H100 80GB HBM3"), ("two", "NVIDIA H200")):
        figures = ({"perplexity": 9.0}, {"perplexity": 9.1, "perplexity_change": 0.01})
        sets[source] = [
            Row(
                Cell("m", precision, 8, 128, 128, engine_fingerprint=precision),
                Environment(gpu=gpu),
                figures={"output_tokens_per_s": 100.0, "output_tokens_per_s_per_gpu": 100.0, **told},
            )
            for precision, told in zip(("bf16", "fp8"), figures, strict=True)
        ]
    drawn = figure("quality", Material(sets))
    assert [ax.get_title(loc="left") for ax in drawn.axes] == ["H100 80GB HBM3", "H200"]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["bf16", "fp8"]


def test_names_are_drawn_as_they_are(tmp_path: Path, make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    """Dollar signs begin a formula in matplotlib, and half a formula is an error."""
    rows = make_rows(make_grid(models=("a$b_{$", "price$1$"), precisions=("fp8",), shapes=((128, 128),), batches=(8, 64)))
    render("throughput", rows, tmp_path, formats=("svg",))
    assert "a$b_{$" in (tmp_path / "throughput.svg").read_text()


def test_a_prediction_is_drawn_with_its_interval() -> None:
    """Nobody ran it, so it is no run of unknown spread."""
    cells = [Cell("llama-3.1-8b", "fp8", batch, 128, 128, target="predicted") for batch in (8, 64)]
    figures = {"output_tokens_per_s": 1000.0, "output_tokens_per_s_per_gpu": 500.0, "ttft_p50_ms": 5.0}
    extra = {"interval": {"low": 900.0, "high": 1200.0}}
    rows = [Row(cell, Environment(gpu="H200 (by the step model)"), figures=figures, extra=extra) for cell in cells]
    (first, _) = points(rows)
    assert first.get("output_tokens_per_s") == Estimate(1000.0, 900.0, 1200.0, 0)
    assert first.get("output_tokens_per_s_per_gpu") == Estimate(500.0, 450.0, 600.0, 0)
    assert first.get("ttft_p50_ms") == Estimate(5.0, 5.0, 5.0, 0)
    (damaged, _) = points([dataclasses.replace(row, extra={"interval": {"low": "x"}}) for row in rows])
    assert damaged.get("output_tokens_per_s") == Estimate(1000.0, 1000.0, 1000.0, 0)
    drawn = figure("throughput", Material({"": rows}))
    assert "Hollow: predicted, bars are the interval of throughput." in texts(drawn)
    (bars,) = [c for c in drawn.axes[0].containers if isinstance(c, ErrorbarContainer)]
    assert [tuple(segment[:, 1]) for segment in bars.lines[2][0].get_segments()] == [(900.0, 1200.0)] * 2


@pytest.mark.parametrize(
    ("batches", "ticked"),
    [((96, 128), (96, 128)), ((384, 512), (384, 512)), ((1, 8, 16, 32, 64, 96, 128), (1, 8, 16, 32, 64, 128)), ((64,), (64,))],
)
def test_batches_are_ticked_as_far_as_labels_have_room(batches: tuple[int, ...], ticked: tuple[int, ...]) -> None:
    assert _thinned(batches) == list(ticked)


def test_published_puts_ours_first_with_the_ratio_to_each(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    rows = make_rows(make_grid(models=("llama-3.1-8b",), precisions=("fp8",), shapes=((128, 128),), batches=(64,)))
    ours = float(np.mean([r.figures["output_tokens_per_s"] for r in rows]))
    theirs = Published("Peer v1", "A100-80GB", "llama-3.1-8b", "fp8", "fp8", 128, 128, 1, ours / 2, "all at once")
    drawn = figure("published", Material({"": rows}, published=[theirs]))
    assert [t.get_text() for t in drawn.axes[0].get_yticklabels()] == ["ours, NVIDIA Synthetic 80GB", "Peer v1, A100"]
    assert "ours 2.00 x" in texts(drawn)


def test_published_marks_what_cannot_be_and_says_why(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    rows = make_rows(make_grid(models=("llama-3.1-8b",), precisions=("fp8",), shapes=((128, 128),), batches=(64,)))
    brief = Published("project brief", "A100-80GB", "llama-3-8b", "fp8", "", 128, 128, 1, 12_085, "table")
    slower = dataclasses.replace(brief, output_tokens_per_s=9_000)
    drawn = figure("published", Material({"": rows}, published=[brief, slower]))
    labels = [t.get_text() for t in drawn.axes[0].get_yticklabels()]
    assert sorted("†" in text for text in labels[1:]) == [False, True]
    assert "† project brief, A100, 12,085: implausible: it implies 350 TFLOP/s" in " ".join(texts(drawn).split("\n"))


@pytest.mark.parametrize("kind", ["throughput", "percentiles", "precision", "repeats", "axes"])
def test_figures_name_what_a_gpu_cannot_do(kind: str, make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    rows = make_rows(make_grid(models=("llama-3.1-8b",), precisions=("bf16", "fp8"), shapes=((128, 128),), batches=(8, 64)))
    rows = [dataclasses.replace(row, environment=dataclasses.replace(row.environment, gpu="NVIDIA H200")) for row in rows]
    axes = Axes("batch", "output_tokens_per_s", ("precision",))
    at = next(i for i, row in enumerate(rows) if (row.cell.precision, row.cell.batch) == ("fp8", 64))
    rows[at] = dataclasses.replace(rows[at], figures={**rows[at].figures, "output_tokens_per_s": 90_000.0})
    told = " ".join(texts(figure(kind, Material({"": rows}, axes=axes))).split("\n"))
    assert "† llama-3.1-8b fp8 b64 128/128: implausible: it implies " in told
    assert told.count("†") == 1


def test_ours_on_two_gpus_have_a_panel_each(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    rows = make_rows(make_grid(models=("llama-3.1-8b",), precisions=("fp8",), shapes=((128, 128),), batches=(64,)))
    both = [
        dataclasses.replace(row, environment=dataclasses.replace(row.environment, gpu=gpu), row_id=gpu + row.row_id, stored_key="")
        for gpu in ("NVIDIA H100 80GB HBM3", "NVIDIA H200")
        for row in rows
    ]
    theirs = Published("Peer v1", "H200", "llama-3.1-8b", "fp8", "fp8", 128, 128, 1, 100.0, "m")
    drawn = figure("published", Material({"": both}, published=[theirs]))
    assert sorted(ax.get_title(loc="left") for ax in drawn.axes) == [
        "llama-3.1-8b fp8, 128/128, ours on H100",
        "llama-3.1-8b fp8, 128/128, ours on H200",
    ]


def test_published_at_a_concurrency_has_a_panel_of_its_own(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    rows = make_rows(make_grid(models=("llama-3.1-8b",), precisions=("fp8",), shapes=((128, 128),), batches=(8, 64)))
    theirs = [Published("Peer", "H200", "llama-3.1-8b", "fp8", "", 128, 128, 1, 100.0 * count, "m", concurrency=count) for count in (8, 64)]
    drawn = figure("published", Material({"": rows}, published=theirs))
    assert sorted(ax.get_title(loc="left") for ax in drawn.axes) == [
        "llama-3.1-8b fp8, 128/128, 64 at once",
        "llama-3.1-8b fp8, 128/128, 8 at once",
    ]


def test_cost_is_drawn_for_priced_rows_only(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    rows = make_rows(make_grid(models=("llama-3.1-8b",), precisions=("fp8",), shapes=((128, 128),), batches=(8, 64)))
    with pytest.raises(DashboardError, match="give --gpu-price-per-hour"):
        figure("cost", Material({"": rows}))
    drawn = figure("cost", Material({"": [priced(row, Price(3.6)) for row in rows]}, prices=Price(3.6).notes(rows)))
    (ax,) = drawn.axes
    assert "3.6 USD for an hour of one GPU, as given" in " ".join(text.get_text() for text in drawn.texts), "a figure says its price"
    assert ax.get_ylabel() == "cost of a million output tokens (USD)"
    heights = sorted(float(y) for container in ax.containers for y in container.lines[0].get_ydata())
    rates = [[r.figures["output_tokens_per_s"] for r in p.rows] for p in points(rows)]
    assert heights == pytest.approx(sorted(1e3 / float(np.mean(one)) for one in rates)), "of the mean throughput, as the page has it"
    assert cheapest([(1, 5), (2, 6), (3, 4)]) == [(3, 4)]


def test_timeline_splits_each_request_into_wait_prefill_and_decode(sweep_rows: list[Row]) -> None:
    n = 300
    arrival = np.arange(n) * 0.01
    table = {
        "intended_s": 5 + arrival,
        "scheduled_s": 5.1 + arrival,
        "first_token_s": 5.3 + arrival,
        "end_s": 6.0 + arrival,
        "ok": np.arange(n) != 3,
    }
    waited, first, end, at = phases(dict(table))
    assert len(at) == n - 1
    assert (waited - at) == pytest.approx(np.full(n - 1, 0.1))
    assert (first - waited) == pytest.approx(np.full(n - 1, 0.2))
    assert (end - first) == pytest.approx(np.full(n - 1, 0.7))
    drawn = figure("timeline", Material({"": sweep_rows}, requests=lambda row: pa.table(table)))
    assert "160 of 299 requests drawn" in texts(drawn)
    assert "1 requests that failed" in texts(drawn)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("throughput", "repeats", *NEED_NO_ROWS)])
def test_each_kind_says_in_one_sentence_what_it_lacks(
    kind: str, make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]
) -> None:
    rows = [
        dataclasses.replace(row, figures={"output_tokens_per_s": row.figures["output_tokens_per_s"]})
        for row in make_rows(make_grid(precisions=("fp8",)))
    ]
    with pytest.raises(ValueError, match=r"needs|counterpart|was measured") as caught:
        figure(kind, Material({"": rows}))
    assert "\n" not in str(caught.value)


def test_unknown_kind_format_and_empty_rows_are_refused(tmp_path: Path, sweep_rows: list[Row]) -> None:
    with pytest.raises(DashboardError, match="there is no plot 'pie'"):
        render("pie", sweep_rows, tmp_path)
    with pytest.raises(DashboardError, match="no rows"):
        render("throughput", [], tmp_path)
    with pytest.raises(DashboardError, match="as 'bmp'"):
        render("throughput", sweep_rows, tmp_path, formats=["bmp"])
    (tmp_path / "file").write_text("")
    with pytest.raises(DashboardError, match="cannot write"):
        render("throughput", sweep_rows, tmp_path / "file")


def test_two_result_sets_become_two_series(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    cells = make_grid(precisions=("fp8",), shapes=((128, 128),))
    found = points({"before": make_rows(cells), "after": make_rows(cells, seed=9)})
    assert varying(found, ("batch",)) == ["source"]
    assert list(grouped(found, ["source"])) == ["before", "after"]


def test_the_newest_version_of_a_cell_is_drawn(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    cells = make_grid(precisions=("fp8",), shapes=((128, 128),), batches=(8,))
    old = make_rows(cells)
    new = [
        dataclasses.replace(r, environment=dataclasses.replace(r.environment, driver="999"), started_at="2027-01-01T00:00:00.000+00:00")
        for r in make_rows(cells, seed=1)
    ]
    assert [p.environment.driver for p in points(old + new)] == ["999"]
    assert len(points(old + new, every_version=True)) == 2


def test_estimates() -> None:
    assert estimate([]) is None
    two = estimate([1.0, 3.0])
    assert two is not None
    assert (two.mean, two.low, two.high, two.n) == (2, 1, 3, 2)
    five = estimate([1, 2, 3, 4, 5])
    assert five is not None
    assert five.high - five.mean == pytest.approx(2.7764451 * np.sqrt(2.5 / 5))
    gain = ratio([2.0, 2.2, 2.1], [1.0, 1.1, 1.05])
    assert gain is not None
    assert gain.mean == pytest.approx(2.0)
    assert gain.low < 2 < gain.high
    assert ratio([2.0], [1.0]).n == 1  # type: ignore[union-attr]
    assert ratio([0.0], [1.0]) is None


def test_pareto_front_keeps_what_nothing_beats() -> None:
    assert front([(1, 10), (2, 8), (2, 9), (3, 1), (0.5, 10), (2.5, 0.5)]) == [(3, 1), (2, 9), (1, 10)]


def test_series_differ_in_marker_as_well_as_colour_and_precisions_keep_theirs() -> None:
    looks = [look(f"s{i}", i) for i in range(16)]
    assert len({(s.color, s.marker) for s in looks}) == 16, "a single point has no line"
    assert look("bf16", 0) == look("bf16", 5)
    assert look("fp8", 3).color == PALETTE[0]


def test_open_loop_rows_are_drawn_against_their_rate(make_rows: Callable[..., list[Row]]) -> None:
    cells = [Cell("m", "fp8", 512, 128, 128, request_rate=rate) for rate in (5.0, 10.0, 20.0)]
    drawn = figure("throughput", Material({"": make_rows(cells)}))
    (ax,) = drawn.axes
    assert ax.get_xlabel() == "request rate (req/s)"
    assert ax.get_xlim()[0] == 0
    both = figure("throughput", Material({"": make_rows([*cells, *(Cell("m", "fp8", batch, 128, 128) for batch in (256, 512))])}))
    assert [ax.get_xlabel() for ax in both.axes] == ["request rate (req/s)", "batch size (sequences in flight)"]


def test_quality_is_drawn_against_speed_with_the_widest_at_zero(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    rows = make_rows(make_grid(precisions=("bf16", "fp8"), shapes=((128, 128),), batches=(8,)), repeats=2)
    with pytest.raises(DashboardError, match="the quality plot needs accuracy of two engines or more"):
        figure("quality", Material({"": rows}))
    change = {"perplexity": 10.3, "perplexity_change": 0.03, "perplexity_change_low": 0.02, "perplexity_change_high": 0.04}
    scored = [
        dataclasses.replace(
            one,
            cell=dataclasses.replace(one.cell, engine_fingerprint=one.cell.precision),
            figures={**one.figures, **({"perplexity": 10.0} if one.cell.precision == "bf16" else change)},
        )
        for one in rows
    ]
    drawn = figure("quality", Material({"": scored}))
    (ax,) = drawn.axes
    assert ax.get_ylabel() == "perplexity, change against the widest (%)"
    low, high = ax.get_ylim()
    assert low < 0 < 4 < high
    assert "95% interval" in texts(drawn)
    tasks = [dataclasses.replace(one, figures={**one.figures, "task_accuracy": 0.9}) for one in rows]
    tasks = [dataclasses.replace(one, cell=dataclasses.replace(one.cell, engine_fingerprint=one.cell.precision)) for one in tasks]
    assert figure("quality", Material({"": tasks})).axes[0].get_ylabel() == "questions of the task failed (%)"
