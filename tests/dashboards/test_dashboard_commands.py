"""`plot` and `dashboard` as a user runs them: files written, and one sentence with exit code 3 for each mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trtllm_results.record import Row
from trtllm_results.store import Store


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "trtllm_bench", *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, sweep_rows: list[Row]) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "mine"
    Store(folder).append(*sweep_rows)
    return folder


def test_plot_all_draws_what_it_can_and_says_what_it_cannot(store: Path, tmp_path: Path) -> None:
    done = run("plot", "all", store, "--out", tmp_path, "--format", "svg", "--where", "isl=128")
    assert done.returncode == 0, done.stderr
    drawn = {path.stem for path in tmp_path.glob("*.svg")}
    assert drawn == {"throughput", "latency", "pareto", "percentiles", "precision", "roofline", "energy"}
    assert "scaling      not drawn: The scaling plot needs" in done.stdout


def test_dashboard_writes_one_file(store: Path, tmp_path: Path) -> None:
    done = run("dashboard", store, "--out", tmp_path / "page.html")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["plot", "pie", "STORE"], "There is no plot 'pie'"),
        (["plot", "throughput"], "No results named"),
        (["plot", "throughput", "nowhere"], "No results at nowhere"),
        (["plot", "throughput", "STORE", "--where", "precision=fp64"], "No row passes precision=fp64"),
        (["plot", "throughput", "STORE", "--format", "bmp"], "Cannot write figures as 'bmp'"),
        (["plot", "throughput", "STORE", "a=STORE", "a=STORE"], "Two result sets are called 'a'"),
        (["dashboard"], "No results named"),
        (["dashboard", "STORE", "--out", "STORE"], "Cannot write"),
        (["dashboard", "FOREIGN"], "not one of trtllm-bench"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_3(arguments: list[str], sentence: str, store: Path, tmp_path: Path) -> None:
    import pandas as pd

    foreign = tmp_path / "foreign.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(foreign)
    done = run(*(a.replace("STORE", str(store)).replace("FOREIGN", str(foreign)) for a in arguments))
    assert done.returncode == 3
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""
