"""The store survives killed writers and two writers at once, refuses foreign files, and reads a million requests in under a second."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trtllm_results.errors import ResultsError
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Cell, Row, cell_key
from trtllm_results.store.table import Store, extend, read_rows

HERE = Environment(gpu="H100", driver="580.1", torch="2.13.0")


def row(batch: int = 1, repeat: int = 0, rate: float = 100.0, **more: object) -> Row:
    cell = Cell(model="tiny-llama", precision="fp32", batch=batch, isl=128, osl=32, settings={"policy": "max_utilization"})
    return Row(cell=cell, environment=HERE, repeat=repeat, figures={"output_tokens_per_s": rate}, **more)  # type: ignore[arg-type]


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    rows = [row(batch, warnings=("clocks were throttled",), extra={"note": [1, 2]}, run_id="r1", command="sweep --x") for batch in (1, 8)]
    store = Store(tmp_path / "runs" / "a")
    for one in rows:
        store.append(one)
    assert store.rows() == rows
    assert Store(tmp_path / "runs" / "a", create=False).frame()["output_tokens_per_s"].tolist() == [100.0, 100.0]
    assert read_rows(tmp_path / "runs" / "a" / "results.json") == rows
    assert read_rows(tmp_path / "runs" / "a" / "results.parquet") == rows


def test_parquet_holds_only_scalar_columns_with_units_in_their_names(tmp_path: Path) -> None:
    Store(tmp_path).append(row())
    schema = pq.read_schema(tmp_path / "results.parquet")
    assert not [field.name for field in schema if pa.types.is_nested(field.type)]
    frame = pd.read_parquet(tmp_path / "results.parquet")
    assert frame.loc[0, "env_gpu"] == "H100"
    assert frame.loc[0, "model"] == "tiny-llama"


def test_json_follows_the_table_even_after_a_crash_between_the_two(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(row(1), row(2, status="failed", reason="x"))
    (tmp_path / "results.json").unlink()
    store.append(row(3))
    assert read_rows(tmp_path / "results.json") == store.rows()
    store.append(row(2))
    assert read_rows(tmp_path / "results.json") == store.rows()
    assert [one.cell.batch for one in store.rows()] == [1, 3, 2]


def test_a_figure_first_seen_later_is_null_in_earlier_rows(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(row(1))
    store.append(Row(cell=row(2).cell, environment=HERE, figures={"output_tokens_per_s": 1.0, "power_mean_w": 650.0}))
    assert store.frame()["power_mean_w"].isna().tolist() == [True, False]
    assert "power_mean_w" not in store.rows()[0].figures


def test_finished_counts_only_ok_rows_and_a_rerun_replaces_a_failed_one(tmp_path: Path) -> None:
    store = Store(tmp_path)
    failed = row(8, status="oom", reason="out of memory")
    store.append(failed)
    assert (failed.key, 0) not in store.finished()
    store.append(row(8))
    assert (failed.key, 0) in store.finished()
    assert (failed.key, 1) not in store.finished()
    assert [one.status for one in store.rows()] == ["ok"]
    store.append(row(8, rate=101.0))
    assert len(store.rows()) == 2, "a second good sample of the same repeat is kept"


@pytest.mark.parametrize("change", [{"driver": "581"}, {"power_limit_w": 500.0}, {"source_hash": "x"}, {"torch": "2.12.0"}])
def test_key_changes_with_what_can_change_the_result(change: dict[str, object]) -> None:
    values: dict[str, object] = {"gpu": "H100", "driver": "580.1", "torch": "2.13.0"}
    assert cell_key(row().cell, Environment(**(values | change))) != row().key  # type: ignore[arg-type]


def test_key_ignores_momentary_readings() -> None:
    assert cell_key(row().cell, Environment(gpu="H100", driver="580.1", torch="2.13.0", temperature_c=70, git_revision="abc")) == row().key


def test_unknown_figure_is_refused_and_nan_is_dropped_with_a_warning(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ResultsError, match="unknown figure 'output_token_per_s'"):
        store.append(Row(cell=row().cell, environment=HERE, figures={"output_token_per_s": 1.0}))
    store.append(Row(cell=row().cell, environment=HERE, figures={"output_tokens_per_s": 5.0, "tpot_p50_ms": float("nan")}))
    (stored,) = store.rows()
    assert stored.figures == {"output_tokens_per_s": 5.0}
    assert stored.warnings == ("tpot_p50_ms was not a finite number and is left out",)


def test_bad_stores_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="does not exist"):
        Store(tmp_path / "absent", create=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match=r"holds no results\.parquet"):
        Store(tmp_path / "empty", create=False)
    foreign = tmp_path / "foreign.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(foreign)
    with pytest.raises(ResultsError, match="not one of trtllm-bench"):
        read_rows(foreign)
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(ResultsError, match="not a readable Parquet file"):
        read_rows(tmp_path / "text.parquet")
    with pytest.raises(ResultsError, match="No results at"):
        read_rows(tmp_path / "none.parquet")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ResultsError, match=r"not a results\.json"):
        read_rows(tmp_path / "other.json")


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).append(row())
    table = pq.read_table(tmp_path / "results.parquet")
    pq.write_table(table.replace_schema_metadata({b"trtllm_results.schema_version": b"99"}), tmp_path / "results.parquet")
    with pytest.raises(ResultsError, match="schema 99, newer than"):
        Store(tmp_path).rows()
    with pytest.raises(ResultsError, match="schema 99"):
        Store(tmp_path).append(row(2))


def test_truncated_table_is_named(tmp_path: Path) -> None:
    Store(tmp_path).append(row())
    content = (tmp_path / "results.parquet").read_bytes()
    (tmp_path / "results.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ResultsError, match=r"results\.parquet is not a readable Parquet file"):
        Store(tmp_path).rows()


def test_merging_twice_adds_nothing(tmp_path: Path) -> None:
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    first.append(row(1), row(2))
    assert extend(second, first.rows()) == 2
    assert extend(second, first.rows()) == 0


def _writer(path: str, worker: int, count: int, pause_s: float) -> None:
    store = Store(path)
    for index in range(count):
        store.append(row(batch=worker * 10_000 + index + 1))
        time.sleep(pause_s)


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_writer, args=(str(tmp_path), worker, 12, 0.0)) for worker in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert sorted(one.cell.batch for one in Store(tmp_path).rows()) == [w * 10_000 + i + 1 for w in (1, 2) for i in range(12)]
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 24


def test_killed_writers_leave_a_readable_store(tmp_path: Path) -> None:
    """SIGKILL at random instants: the table always reads, holds a prefix of what was appended, and the next writer goes on."""
    chance = random.Random(7)
    context = multiprocessing.get_context("fork")
    seen = 0
    for _ in range(25):
        writer = context.Process(target=_writer, args=(str(tmp_path), seen + 1, 1000, 0.0))
        writer.start()
        time.sleep(chance.uniform(0.0, 0.12))
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        rows = Store(tmp_path).rows()
        assert len(rows) >= seen
        mine = [one.cell.batch % 10_000 for one in rows if one.cell.batch // 10_000 == seen + 1]
        assert mine == list(range(1, len(mine) + 1)), "rows of one writer arrive in order without a gap"
        seen = len(rows)
    store = Store(tmp_path)
    store.append(row(7))
    assert len(store.rows()) == seen + 1
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob(".*.tmp"))
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == seen + 1
    assert seen > 0


def test_side_tables_belong_to_their_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one, other = row(1), row(1, repeat=1)
    store.write_side("requests", one, {"ttft_s": np.arange(3.0), "token_times_s": (np.arange(6.0), np.array([0, 1, 3, 6]))})
    table = store.read_side("requests", one)
    assert table is not None
    assert table.column("token_times_s").to_pylist() == [[0.0], [1.0, 2.0], [3.0, 4.0, 5.0]]
    assert store.read_side("requests", other) is None
    with pytest.raises(ResultsError, match="unequal length"):
        store.write_side("steps", one, {"a": np.arange(3), "b": np.arange(4)})


def test_a_million_requests_write_and_read(tmp_path: Path, record_property: pytest.FixtureRequest) -> None:
    rng = np.random.default_rng(0)
    columns = {"run": rng.integers(0, 8, 1_000_000), "ttft_s": rng.exponential(0.2, 1_000_000), "e2e_s": rng.exponential(2.0, 1_000_000)}
    store, one = Store(tmp_path), row(1)
    store.write_side("requests", one, columns)
    table = store.read_side("requests", one, ["run", "ttft_s"])
    assert table is not None
    p99 = table.to_pandas().groupby("run")["ttft_s"].quantile(0.99)
    np.testing.assert_allclose(p99.loc[3], np.percentile(columns["ttft_s"][columns["run"] == 3], 99))


def test_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="Cannot create the result store"):
        Store(tmp_path / "file" / "below")
    with pytest.raises(ResultsError, match="is a file"):
        Store(tmp_path / "file")
