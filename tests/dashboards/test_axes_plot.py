"""Free axes, the spread of repeats, and the bundle: values where they were measured, lines only between what differs in load."""

from __future__ import annotations

import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from trtllm_bench.__main__ import main
from trtllm_dashboards.errors import DashboardError
from trtllm_dashboards.plots import Axes, Material, figure
from trtllm_dashboards.plots.repeats import FEWEST
from trtllm_dashboards.points import points
from trtllm_results.errors import ResultsError
from trtllm_results.record.row import Row
from trtllm_results.store.rows import write_parquet
from trtllm_results.store.table import read_rows

RECORDED = Path(__file__).parents[2] / "results" / "recorded" / "h100"


def test_a_figure_against_a_field_has_a_panel_a_value_and_a_line_a_precision(sweep_rows: list[Row]) -> None:
    drawn = figure("axes", Material({"": sweep_rows}, axes=Axes("batch", "ttft_p99_ms", by=("precision",), row=("isl",), col=("osl",))))
    assert [ax.get_title(loc="left") for ax in drawn.axes] == [f"isl {i}, osl {o}" for i in ("128", "2,048") for o in ("128", "2,048")]
    first = drawn.axes[0]
    assert (first.get_xlabel(), first.get_ylabel()) == ("batch (sequences in flight)", "TTFT p99 (ms)")
    lines = [line for line in first.lines if line.get_linestyle() == "-"]
    assert len(lines) == 3
    xs, ys = lines[0].get_data()
    assert list(xs) == [1, 4, 16, 64, 256, 1024]
    runs = [r.figures["ttft_p99_ms"] for r in sweep_rows if r.status == "ok" and r.cell.precision == "fp8" and r.cell.batch == 16]
    assert ys[2] == pytest.approx(np.mean(runs[:3]))
    assert {ax.get_ylim() for ax in drawn.axes} == {first.get_ylim()}
    assert not drawn.axes[3].lines


def test_cells_that_differ_in_what_no_axis_shows_are_dots_and_said_to(sweep_rows: list[Row]) -> None:
    drawn = figure("axes", Material({"": sweep_rows}, axes=Axes("batch", "output_tokens_per_s", by=("precision",))))
    assert not [line for line in drawn.axes[0].lines if line.get_linestyle() == "-"]
    assert "differ in shape too" in " ".join(text.get_text() for text in drawn.texts)
    whole = figure("axes", Material({"": sweep_rows}, axes=Axes("batch", "output_tokens_per_s")))
    assert len([line for line in whole.axes[0].lines if line.get_linestyle() != "None" and len(line.get_xdata()) == 6]) == 9


def test_text_across_becomes_places(sweep_rows: list[Row]) -> None:
    drawn = figure("axes", Material({"": sweep_rows}, axes=Axes("precision", "mfu", col=("shape",))))
    assert [text.get_text() for text in drawn.axes[0].get_xticklabels()] == ["bf16", "fp8", "int8"]
    assert drawn.axes[0].get_ylabel() == "MFU (ratio)"


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        (Axes("batch", ""), "needs --x FIELD and --y FIELD"),
        (Axes("batch", "wattage"), "no field 'wattage'"),
        (Axes("batch", "precision"), "--y precision is text, such as 'fp8'"),
        (Axes("batch", "goodput_ratio"), "no row carries both batch and goodput_ratio"),
        (Axes("isl", "mfu", by=("batch", "precision")), "--by makes 18 lines; at most 12"),
        (Axes("isl", "mfu", row=("batch",), col=("precision",)), "--row and --col make 18 panels; at most 16"),
    ],
)
def test_wrong_axes_are_one_sentence(axes: Axes, says: str, sweep_rows: list[Row]) -> None:
    with pytest.raises((DashboardError, ResultsError), match=says.replace("(", r"\(")) as caught:
        figure("axes", Material({"": sweep_rows}, axes=axes))
    assert "\n" not in str(caught.value)


def test_titles_and_ticks_of_repeats_have_room_beside_long_names() -> None:
    rows = [row for row in read_rows(RECORDED / "llama-3.1-8b-fp8") if row.cell.osl == 256 and row.cell.batch in (1, 8, 64)]
    drawn = figure("repeats", Material({"llama-3.1-8b-fp8-as-it-was-before": rows, "llama-3.1-8b-fp8-after-that": rows}))
    FigureCanvasAgg(drawn).draw()
    titles = [ax._left_title for ax in drawn.axes]  # type: ignore[attr-defined]
    assert len(titles) == 3
    assert all(box.x0 >= 0 and box.x1 <= drawn.bbox.width for box in (title.get_window_extent() for title in titles))
    for ax in drawn.axes:
        boxes = [tick.label1.get_window_extent() for tick in ax.xaxis.get_major_ticks() if tick.label1.get_text()]
        assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_the_density_of_repeats_stands_over_its_runs_from_five_on() -> None:
    rows = read_rows(RECORDED / "gate" / "ab")
    (ax,) = figure("repeats", Material({"": rows})).axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["A, t 8870366", "B, .slow 08931a2"]
    assert len(ax.collections) == 2
    runs = sorted(row.figures["output_tokens_per_s"] for row in points(rows)[0].rows)
    assert len(runs) == 10
    dots = [sorted(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) > 2]
    assert dots[0] == pytest.approx(runs)
    few = [row for row in rows if row.repeat < 2 * (FEWEST - 1)]
    assert not figure("repeats", Material({"": few})).axes[0].collections
    with pytest.raises(DashboardError, match="of two repeats or more"):
        figure("repeats", Material({"": rows[:1]}))


def test_one_command_bundles_figures_the_same_each_time(
    tmp_path: Path, sweep_rows: list[Row], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtllm_dashboards.plots.KINDS", {"repeats": ""})
    write_parquet([row for row in sweep_rows if row.cell.batch < 16 and row.cell.osl == 128], tmp_path / "rows.parquet")
    for name in ("a", "b"):
        assert main(["plot", "all", str(tmp_path / "rows.parquet"), "--format", "svg", "--out", str(tmp_path / f"{name}.zip")]) == 0
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert zipfile.ZipFile(tmp_path / "a.zip").namelist() == ["repeats.svg"]
    assert f"written: {tmp_path / 'a.zip'}" in capsys.readouterr().out


def test_out_may_be_the_file_of_one_figure(tmp_path: Path, sweep_rows: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    """And not a folder of that name. A name with another ending is a folder's, as is one that is there already."""
    write_parquet(sweep_rows[:3], tmp_path / "rows.parquet")
    drawing = ["plot", str(tmp_path / "rows.parquet"), "--x", "batch", "--y", "mfu"]
    assert main([*drawing, "--out", str(tmp_path / "x.svg")]) == 0
    assert (tmp_path / "x.svg").read_text().startswith("<?xml")
    assert str(tmp_path / "x.svg") in capsys.readouterr().out
    (tmp_path / "old.svg").mkdir()
    for folder in ("old.svg", "v1.2"):
        assert main([*drawing, "--format", "svg,svg", "--out", str(tmp_path / folder)]) == 0
        assert capsys.readouterr().out.count("axes.svg") == 1
        assert [path.name for path in (tmp_path / folder).iterdir()] == ["axes.svg"]
    wrong = {
        "cannot write figures as 'pdf'": [*drawing, "--out", "x.pdf"],
        "all draws several": ["plot", "all", "--out", "x.PNG"],
        "name different formats": [*drawing, "--format", "svg", "--out", "x.png"],
    }
    for says, command in wrong.items():
        assert main(command) == 3
        assert says in capsys.readouterr().err


def test_axes_need_no_kind_and_mistakes_are_one_sentence(tmp_path: Path, sweep_rows: list[Row], capsys: pytest.CaptureFixture[str]) -> None:
    write_parquet(sweep_rows[:3], tmp_path / "rows.parquet")
    store = str(tmp_path / "rows.parquet")
    assert main(["plot", store, "--x", "batch", "--y", "mfu", "--format", "svg", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "axes.svg").exists()
    for given, says in (
        (["plot", "axes", store, "--x", "batch", "--y", "mfu", "--row", "isl,osl"], "--row takes one field and was given 2"),
        (["plot", "gpus", "--where", "batch=1"], "--where filters results, and none are named"),
    ):
        capsys.readouterr()
        assert main(given) == 3
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert says in error
