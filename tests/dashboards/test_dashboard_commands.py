"""`plot` and `dashboard` as a user runs them: files written, and one sentence with exit code 3 for each mistake."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from trtllm_bench.__main__ import main
from trtllm_dashboards.sources import load
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, sweep_rows: list[Row]) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "mine"
    Store(folder).append(*sweep_rows)
    return folder


def test_plot_all_draws_what_it_can_and_says_what_it_cannot(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", "all", str(store), "--out", str(tmp_path), "--format", "svg", "--where", "isl=128", "--where", "osl=128"]) == 0
    drawn = {path.stem for path in tmp_path.glob("*.svg")}
    assert drawn == {"throughput", "latency", "pareto", "percentiles", "precision", "roofline", "energy", "repeats", "gpus"}
    assert "scaling      not drawn: the scaling plot needs" in capsys.readouterr().out


def test_a_plot_that_is_stopped_names_the_figures_it_drew(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trtllm_dashboards import plots

    def stopped(kind: str, *given: Any, **named: Any) -> Any:
        if kind == "pareto":
            raise KeyboardInterrupt
        return drawing(kind, *given, **named)

    drawing = plots.render
    monkeypatch.setattr(plots, "render", stopped)
    assert main(["plot", "all", str(store), "--out", str(tmp_path), "--format", "svg"]) == 130
    assert f"stopped by Ctrl-C; 2 figures are in {tmp_path}; run the command again for the others" in capsys.readouterr().err
    assert main(["plot", "all", str(store), "--out", str(tmp_path / "f.zip"), "--format", "svg"]) == 130
    assert "; nothing new is kept" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["plot", "gpus", "--out", str(tmp_path / "file")]) == 3
    assert "kept" not in capsys.readouterr().err


def test_plot_published_draws_what_was_recorded_where_no_results_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As the README prints it. The folder holds stores and is none."""
    assert main(["plot", "published", "--out", str(tmp_path), "--format", "svg"]) == 0
    assert "results/recorded/h100 are drawn" in capsys.readouterr().out
    assert "llama-3.1-8b fp8, 128/128" in (tmp_path / "published.svg").read_text()
    recorded = Path(__file__).parents[2] / "results" / "recorded" / "h100"
    assert main(["plot", "published", str(recorded), "--out", str(tmp_path / "again"), "--format", "svg"]) == 0


def test_stores_of_one_name_in_two_folders_are_told_apart(store: Path, tmp_path: Path) -> None:
    """Folders of stores, as `results/recorded/h100` and `h200`; one that is named is one set."""
    for folder in ("h100", "h200"):
        (tmp_path / folder / "llama").mkdir(parents=True)
        shutil.copy(store / "results.parquet", tmp_path / folder / "llama")
        (tmp_path / folder / "other").mkdir()
        shutil.copy(store / "results.parquet", tmp_path / folder / "other")
    (tmp_path / "h200" / "other").rename(tmp_path / "h200" / "more")
    folders = [str(tmp_path / "h100"), str(tmp_path / "h200")]
    assert list(load(folders).sets) == ["h100/llama", "other", "h200/llama", "more"]
    assert list(load([f"a={folders[0]}", folders[1] + "/"]).sets) == ["a", "h200/llama", "more"]
    rows = load([f"a={folders[0]}", f"b={folders[1]}"]).sets
    assert [(name, len(rows[name])) for name in rows] == [("a", 2 * len(Store(store).rows())), ("b", 2 * len(Store(store).rows()))]


def test_dashboard_writes_one_file(store: Path, tmp_path: Path) -> None:
    assert main(["dashboard", str(store), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["plot", "pie", "STORE"], "there is no plot 'pie'"),
        (["plot", "throughput"], "no results named"),
        (["plot", "throughput", "STORE", "--by", "batch"], "plot throughput does not take --by"),
        (["plot", "all", "STORE", "--x", "batch"], "plot all does not take --x"),
        (["plot", "repeats", "STORE", "--col", "batch"], "plot repeats does not take --col"),
        (["plot", "throughput", "nowhere"], "no results at nowhere"),
        (["plot", "throughput", "STORE", "--where", "precision=fp64"], "no result passes precision=fp64; leave a filter out"),
        (["plot", "throughput", "STORE", "--format", "bmp"], "cannot write figures as 'bmp'"),
        (["plot", "throughput", "STORE", "a=STORE", "a=STORE"], "two result sets are called 'a'"),
        (["dashboard"], "no results named"),
        (["dashboard", "STORE", "--out", "STORE"], "what is written is HTML; give a name that ends in .html"),
        (["dashboard", "STORE", "--out", "d.pdf"], "--out d.pdf: what is written is HTML; give a name that ends in .html"),
        (["dashboard", "STORE", "--picture", "p.jpg"], "--picture p.jpg: what is written is PNG; give a name that ends in .png"),
        (["dashboard", "STORE", "--serve", "--out", "d.html"], "--serve writes no page, so --out has no meaning there"),
        (["dashboard", "STORE", "--serve", "--explain", "2"], "--serve writes no page, so --explain has no meaning there"),
        (["dashboard", "STORE", "--port", "80"], "--port is where --serve serves the page; add --serve"),
        (["dashboard", "FOREIGN"], "not one of trtllm-bench"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_3(
    arguments: list[str], sentence: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = tmp_path / "foreign.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(foreign)
    assert main([a.replace("STORE", str(store)).replace("FOREIGN", str(foreign)) for a in arguments]) == 3
    said = capsys.readouterr()
    assert sentence in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert said.out == ""


@pytest.mark.browser
def test_a_picture_of_the_page_is_drawn_or_refused_in_a_sentence(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["dashboard", str(store), "--out", str(tmp_path / "page.html"), "--picture", str(tmp_path / "page.png")]
    assert main(asked) == 0
    drawn = (tmp_path / "page.png").read_bytes()
    assert drawn[:8] == b"\x89PNG\r\n\x1a\n"
    assert struct.unpack(">II", drawn[16:24]) == (1280, 1000)
    monkeypatch.setenv("TRTLLM_BENCH_CHROMIUM", str(tmp_path / "none"))
    assert main(asked) == 3
    assert "did not draw" in capsys.readouterr().err
