"""What the page is given: one entry a cell, estimates over repeats, failures and older versions marked, ours beside published."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from trtllm_dashboards.html.payload import build
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row


def names(payload: dict[str, Any], dimension: str) -> list[str]:
    coded = payload["dimensions"][dimension]
    return [coded["names"][i] for i in coded["index"]]


def test_repeats_become_a_mean_and_a_half_width(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    cells = make_grid(precisions=("fp8",), shapes=((128, 128),), batches=(8, 64))
    rows = make_rows(cells, repeats=5)
    payload = build({"": rows}, "t")
    assert payload["n"] == 2
    assert payload["repeats"] == [5, 5]
    values = [r.figures["ttft_p99_ms"] for r in rows[:5]]
    column = payload["figures"]["ttft_p99_ms"]
    assert column["mean"][0] == pytest.approx(np.mean(values), rel=1e-5)
    assert column["half"][0] == pytest.approx(2.7764451 * np.std(values, ddof=1) / np.sqrt(5), rel=1e-4)
    assert payload["definitions"]["ttft_p99_ms"]["unit"] == "ms"


def test_one_repeat_has_no_half_width(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    payload = build({"": make_rows(make_grid(), repeats=1)})
    assert "half" not in payload["figures"]["output_tokens_per_s"]


def test_failed_cells_are_entries_with_a_reason_and_no_figures(sweep_rows: list[Row]) -> None:
    payload = build({"": sweep_rows})
    lost = names(payload, "status").index("oom")
    assert payload["reasons"][lost] == "out of memory at 4096 sequences"
    assert all(column["mean"][lost] is None for column in payload["figures"].values())


def test_a_failure_that_a_later_run_mended_is_not_shown(sweep_rows: list[Row]) -> None:
    failed = dataclasses.replace(sweep_rows[0], status="failed", reason="x", figures={}, row_id="1" * 32)
    assert build({"": [failed, *sweep_rows]})["n"] == build({"": sweep_rows})["n"]


def test_older_versions_of_a_case_are_marked(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    rows = make_rows(make_grid(precisions=("fp8",), shapes=((128, 128),), batches=(8,)))
    newer = [
        dataclasses.replace(r, environment=dataclasses.replace(r.environment, driver="999"), started_at="2027-01-01T00:00:00.000+00:00")
        for r in rows
    ]
    payload = build({"": [*rows, *newer]})
    assert names(payload, "version") == ["older", "newest"]
    assert [payload["environments"][e]["driver"] for e in payload["environment"]] == ["580.65.06", "999"]


def test_cells_with_published_counterparts_carry_them(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    rows = make_rows(make_grid(models=("synthetic-8b", "llama-3.1-8b"), precisions=("fp8",), batches=(64,)))
    payload = build({"": rows})
    assert payload["published"]
    for record in payload["published"]:
        assert names(payload, "model")[record["cell"]] == "llama-3.1-8b"
        assert names(payload, "shape")[record["cell"]] == f"{record['isl']}/{record['osl']}"
        assert record["ratio"] == pytest.approx(record["ours"] / record["theirs"])


def test_predictions_are_not_set_beside_published_figures(make_rows: Callable[..., list[Row]], make_grid: Callable[..., Any]) -> None:
    cells = make_grid(models=("llama-3.1-8b",), precisions=("fp8", "bf16"), shapes=((128, 128),), batches=(64,))
    measured, made = build({"": make_rows(cells)}), build({"": make_rows([dataclasses.replace(c, target="predicted") for c in cells])})
    assert measured["published"]
    assert measured["pairs"]
    assert (made["published"], made["pairs"]) == ([], [])


def test_warnings_commands_and_json(sweep_rows: list[Row]) -> None:
    rows = [dataclasses.replace(sweep_rows[0], warnings=("throttled",)), *sweep_rows[1:]]
    payload = json.loads(json.dumps(build({"": rows}), allow_nan=False))
    assert payload["warnings"] == {"0": ["throttled"]}
    assert payload["doubts"] == {}
    assert payload["commands"][payload["command"][0]].startswith("trtllm-bench throughput --model synthetic-8b")


def test_what_a_gpu_cannot_do_is_told_on_the_page() -> None:
    """Also of a row that was stored without the warning."""
    fast = Row(Cell("llama-3.1-8b", "fp8", 112, 1000, 100), Environment(gpu="NVIDIA H200"), figures={"output_tokens_per_s": 9446.2})
    payload = build({"": [fast]})
    assert payload["doubts"][0].startswith("implausible: it implies 1,489 TFLOP/s")
    assert payload["warnings"] == {0: [payload["doubts"][0]]}


def test_no_rows_is_an_empty_page() -> None:
    assert build({"": []})["n"] == 0
