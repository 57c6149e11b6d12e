"""What went on within a run, from its side tables: tokens a second, power over all GPUs, phases of its steps, requests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trtllm_dashboards.html.payload import build
from trtllm_dashboards.html.runs import BINS, REQUESTS, run_of
from trtllm_dashboards.points import points
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store


def test_a_run_is_thinned_but_its_sums_stay(tmp_path: Path, sweep_rows: list[Row]) -> None:
    store = Store(tmp_path)
    count, tokens = 200, 10
    start = 100.0 + np.arange(count) * 0.05
    times = (start[:, None] + 0.1 + np.arange(tokens) * 0.01).ravel()
    requests = {
        "intended_s": start,
        "scheduled_s": start + 0.02,
        "first_token_s": start + 0.1,
        "end_s": start + 0.1 + 0.01 * (tokens - 1),
        "token_times_s": (times, np.arange(count + 1) * tokens),
        "warmup": np.arange(count) < 20,
        "ok": np.ones(count, bool),
    }
    samples = {
        "time_s": np.repeat(100.0 + np.arange(120) * 0.1, 2),
        "device": np.tile([0.0, 1.0], 120),
        "power_w": np.tile([300.0, 500.0], 120),
        "sm_clock_mhz": np.tile([1400.0, 1600.0], 120),
    }
    steps = {
        "launched_s": np.array([0.0, 1.0, 5.0, 6.0]),
        "done_s": np.array([2.0, 4.0, 7.0, 8.0]),
        "decode_tokens": np.array([0, 4, 4, 4]),
        "context_tokens": np.array([8, 8, 0, 0]),
    }
    store.record(sweep_rows[0], {"requests": requests, "samples": samples, "steps": steps})
    (point,) = points(store.rows())
    found = run_of(point, [store], [])
    assert found is not None
    assert found["phases"] == {"decode steps": 3, "prefill steps": 2, "mixed steps": 2, "no step in flight": 1}
    assert (found["requests"]["of"], len(found["requests"]["bars"])) == (180, REQUESTS)
    assert found["requests"]["bars"][0] == pytest.approx([0, 0.02, 0.1, 0.19])
    assert sum(found["rate"]["tokens_per_s"]) * found["duration_s"] / BINS == pytest.approx(180 * tokens, rel=1e-3)
    assert set(found["telemetry"]["power_w"]) == {800}
    assert set(found["telemetry"]["sm_clock_mhz"]) == {1500}
    assert max(found["telemetry"]["t"]) < found["duration_s"]


def test_a_row_without_side_tables_has_nothing_within(tmp_path: Path, sweep_rows: list[Row]) -> None:
    store = Store(tmp_path)
    store.append(sweep_rows[0])
    assert run_of(points(store.rows())[0], [store], []) is None


def test_a_damaged_side_table_costs_what_it_held_and_no_more(tmp_path: Path, sweep_rows: list[Row]) -> None:
    store, start = Store(tmp_path), np.arange(3.0)
    requests = {"intended_s": start, "first_token_s": start + 0.1, "end_s": start + 0.2, "ok": np.ones(3, bool)}
    steps = {"launched_s": start, "done_s": start + 0.5, "decode_tokens": np.ones(3), "context_tokens": np.zeros(3)}
    store.record(sweep_rows[0], {"requests": requests, "steps": steps})
    (path,) = (tmp_path / "steps").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    content = build({"": store.rows()}, "t", [store])
    assert content["within"][0]["requests"]["of"] == 3
    assert "phases" not in content["within"][0]
    assert content["notes"][-1] == f"Left out: {path} is not a readable Parquet file (damaged or not Parquet)."
