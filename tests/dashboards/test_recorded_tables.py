"""The documents' tables of recorded runs are those that `docs/records.py` makes of the records."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Cell, Row

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
    monkeypatch.setattr(records, "recorded_rows", lambda: [old, *new, copies])
    records.lines.cache_clear()
    try:
        assert records.few().splitlines()[2:] == ["| fp8 | 1 | 2 | **420** | 280 | 1.50 | - | - | - | - | 1.50 | aaaaaaa |"]
        assert "| **840** | 420 | 2.00 | - | - |" in records.several(), "of the newest of its revision"
        assert "| 1 at once | **420** | 280 vLLM | 1.50 | 1.50 | - | - | - | - |" in records.overview()
    finally:
        records.lines.cache_clear()
