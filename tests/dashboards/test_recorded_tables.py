"""The documents' tables of recorded runs are those that `docs/records.py` makes of the records."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def records() -> ModuleType:
    spec = importlib.util.spec_from_file_location("records", ROOT / "docs" / "records.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def recorded(records: ModuleType, monkeypatch: pytest.MonkeyPatch, rows: list[Row]) -> Iterator[None]:
    """Within the context, tables are made from `rows`."""
    monkeypatch.setattr(records, "recorded_rows", lambda: rows)
    for cached in (records.newest, records.lines):
        cached.cache_clear()
    try:
        yield
    finally:
        for cached in (records.newest, records.lines):
            cached.cache_clear()


def test_documents_hold_the_tables_that_the_records_give(records: ModuleType) -> None:
    texts = {name: (ROOT / name).read_text() for name in records.DOCUMENTS}
    assert {name for name, text in texts.items() if records.written(text) != text} == set(), "run: python docs/records.py"
    assert {block[1] for text in texts.values() for block in records.BLOCK.findall(text)} == set(records.TABLES)


def test_a_row_has_a_cell_for_each_column(records: ModuleType) -> None:
    assert records.markdown(["a", "b:"], [["x", "1"]]) == "| a | b |\n|---|--:|\n| x | 1 |"
    with pytest.raises(ValueError, match="columns a, b"):
        records.markdown(["a", "b:"], [["x", "1", "2"]])


def test_a_line_is_the_newest_version_with_peers_of_the_same_gpu(records: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's 280.4 tokens/s at 128/256 are of one sequence on an H200; its H100 figure, and copies' throughput, stand beside nothing."""
    h200 = Environment(gpu="NVIDIA H200", git_revision="a" * 40)
    cell = Cell("llama-3.1-8b", "fp8", 1, 128, 256, kv_dtype="fp8", num_requests=8)

    def row(cell: Cell, rate: float, **other: object) -> Row:
        row = Row(cell, h200, figures={"output_tokens_per_s": rate, "energy_per_output_token_j": 1.5}, started_at="2026-11-30T01")
        return replace(row, **other)  # type: ignore[arg-type]

    old = row(cell, 500.0)
    new = [row(replace(cell, engine_fingerprint="b"), rate, started_at="2026-11-30T02", repeat=n) for n, rate in enumerate((400.0, 440.0))]
    copies = row(replace(cell, batch=2, replicas=2), 840.0)
    with recorded(records, monkeypatch, [old, *new, copies]):
        assert records.few().splitlines()[2:] == ["| fp8 | 1 | 2 | **420** | 280 | 1.50 | - | - | - | - | 1.50 | aaaaaaa |"]
        assert "| **840** | 420 | 2.00 | - | - |" in records.several(), "of the newest of its revision"
        assert "| 1 at once | **420** | 280 vLLM | 1.50 | 1.50 | - | - | - | - |" in records.overview()


def test_a_precision_stands_beside_fp8_of_its_own_revision(records: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(precision: str, revision: str, rate: float, *, dirty: bool = False) -> Row:
        cell = Cell("llama-3.1-8b", precision, 1, 128, 256, kv_dtype="fp8", engine_fingerprint=revision)
        environment = Environment(gpu="NVIDIA H200", git_revision=revision * 40, git_dirty=dirty)
        return Row(cell, environment, figures={"output_tokens_per_s": rate}, started_at=f"2026-11-30T0{int(revision, 16)}")

    rows = [row("fp8", "1", 400.0), row("w4a8", "1", 600.0), row("int4", "2", 500.0), row("fp8", "3", 480.0)]
    with recorded(records, monkeypatch, [*rows, row("nf4", "3", 480.0, dirty=True)]):
        assert records.precisions().splitlines()[2:] == ["| w4a8 | 1.50 | - | - | - | - |"]


def test_an_aim_is_held_against_the_fastest_row_that_meets_its_limits(
    records: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    aims = [
        "model,precision,case,load,aim",
        "m,fp8,128/128,queued,900",
        "m,fp8,128/128,64,200",
        "m,fp8,9/9,queued,1",
        "m,fp8,news,500 / 30,300",
    ]
    monkeypatch.setattr(records, "AIMS", tmp_path / "aims.csv")
    records.AIMS.write_text("\n".join(aims))
    monkeypatch.setattr(records, "AT_CEILINGS", tmp_path / "at-ceilings.csv")
    h200, limits = Environment(gpu="NVIDIA H200"), {"slo_ms": {"ttft": 500.0, "tpot": 30.0}}

    def row(rate: float, **cell: object) -> Row:
        figures = {"output_tokens_per_s": rate, "power_mean_w": 600.0, "energy_per_output_token_j": 600 / rate, "requests_per_s": 10.0}
        good = float(cell.pop("good", 0.0))  # type: ignore[arg-type]
        made = Cell("m", "fp8", **{"batch": 64, "isl": 128, "osl": 128, **cell})  # type: ignore[arg-type]
        return Row(made, h200, figures={**figures, "goodput_requests_per_s": good})

    news = [row(rate, workload="news", request_rate=rate / 10, settings=limits, good=good) for rate, good in ((200.0, 9.9), (400.0, 9.8))]
    fastest = row(800.0, batch=1024)
    records.AT_CEILINGS.write_text(f"row_id,output_tokens_per_s\n{fastest.row_id},880\n")
    with recorded(records, monkeypatch, [row(250.0), row(750.0, batch=512), fastest, *news]):
        told, _, _, _, *body = records.short_of_aims().splitlines()
    assert told == "1 of 4 aims are met; no record: m fp8 at 9/9. Short:"
    assert body == [
        "| m fp8 | 128/128 | 1,024 | 800 | 900 | 11.1% | 880 | 600 | - | 0.750 | 0.667 |",
        "| m fp8 | news | 20/s, 500 / 30 ms | 200 | 300 | 33.3% | - | 600 | - | 3.00 | 2.00 |",
    ]
