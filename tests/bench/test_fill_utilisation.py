"""Utilisation filled in later equals what the run itself found: against rows recorded on an H100 whose ceilings were known."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from trtllm_bench.analysis import cells
from trtllm_bench.app import app
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store

RECORDED = Path(__file__).parents[2] / "results/recorded/h100"


def stripped(row: Row) -> Row:
    return replace(row, figures={name: value for name, value in row.figures.items() if not name.startswith(("mfu", "mbu"))})


@pytest.fixture
def engines_of_then(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines as the recorded rows had them: the last layer computed every row."""
    cells._compiled.cache_clear()
    monkeypatch.setattr(cells, "compile_model", partial(cells.compile_model, every_row=True))
    yield
    cells._compiled.cache_clear()


@pytest.mark.usefixtures("engines_of_then")
def test_filled_in_later_is_what_the_run_found(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    measured = Store(RECORDED / "llama-3.1-8b-bf16").rows()[:2]
    store.append(*map(stripped, measured))
    for kind in ("requests", "steps"):
        shutil.copytree(RECORDED / "llama-3.1-8b-bf16" / kind, store.path / kind)
    elsewhere = replace(measured[0], row_id="elsewhere", repeat=9)
    store.append(stripped(replace(elsewhere, environment=replace(elsewhere.environment, power_limit_w=350.0))))
    run = CliRunner().invoke(app, ["ceilings", "--apply", str(store.path), "--from", str(RECORDED / "ceilings.json")])
    assert run.exit_code == 0, run.output
    assert "2 rows filled in; 1 left alone, of another device" in " ".join(run.output.split())
    other = next(row for row in store.rows() if row.row_id == "elsewhere")
    assert not any(name.startswith(("mfu", "mbu")) for name in other.figures)
    filled = [row for row in store.rows() if row.row_id != "elsewhere"]
    for before, after in zip(measured, filled, strict=True):
        for name in ("mfu", "mbu", "mfu_decode", "mbu_decode", "mfu_prefill", "mbu_prefill"):
            assert after.figures[name] == pytest.approx(before.figures[name], rel=0.02), name


def test_ceilings_of_another_device_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    row = stripped(Store(RECORDED / "llama-3.1-8b-bf16").rows()[0])
    store.append(replace(row, environment=replace(row.environment, power_limit_w=350.0)))
    run = CliRunner().invoke(app, ["ceilings", "--apply", str(store.path), "--from", str(RECORDED / "ceilings.json")])
    assert run.exit_code != 0
    assert "mfu" not in store.rows()[0].figures
