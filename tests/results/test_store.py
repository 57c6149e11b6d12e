"""The store survives killed writers and two writers at once, refuses foreign files, and reads a million requests in under a second."""

from __future__ import annotations

import errno
import gzip
import io
import json
import multiprocessing
import os
import random
import signal
import stat
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trtllm_results.errors import ResultsError, WriteError
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row, cell_key
from trtllm_results.store import document, files, parquet
from trtllm_results.store.layout import FILES
from trtllm_results.store.lock import RUN_LOCK, locked
from trtllm_results.store.selection import load_set, named_path, path_and_filters
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
    with pytest.raises(ResultsError, match="no results at"):
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


def test_pyarrows_threads_hold_no_object_of_pythons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that still held one as the interpreter ended aborted the process, about once in 200."""
    opened = []

    class Noted(pq.ParquetFile):  # type: ignore[misc]
        def __init__(self, source: object, **settings: object) -> None:
            opened.append(type(source))
            super().__init__(source, **settings)

    monkeypatch.setattr(pq, "ParquetFile", Noted)
    for name in ("plain", os.fsdecode(b"no \xff UTF-8")):
        Store(tmp_path / name).record(row(), {"requests": {"ttft_s": np.array([0.1])}})
        side = Store(tmp_path / name).read_side("requests", Store(tmp_path / name).rows()[0])
        assert side is not None
        assert side.to_pydict() == {"ttft_s": [0.1]}
    assert opened
    assert set(opened) == {pa.OSFile}


def test_truncated_table_is_named(tmp_path: Path) -> None:
    Store(tmp_path).append(row())
    content = (tmp_path / "results.parquet").read_bytes()
    (tmp_path / "results.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(ResultsError, match=r"results\.parquet is not a readable Parquet file.*results merge <new folder> .*results\.json"):
        Store(tmp_path).rows()
    (tmp_path / "results.parquet").write_bytes(b"")
    with pytest.raises(ResultsError, match=r"results\.parquet is empty; results\.json beside it has its rows"):
        Store(tmp_path).rows()
    (tmp_path / "results.json").write_bytes(b"")
    with pytest.raises(ResultsError, match=r"results\.parquet is empty; remove it, or restore it from a copy$"):
        Store(tmp_path).rows()


def test_a_lost_table_is_told_before_anything_replaces_what_is_left_of_it(tmp_path: Path) -> None:
    Store(tmp_path).record(row(), {"requests": {"ok": [True]}})
    (tmp_path / "results.parquet").unlink()
    for create in (True, False):
        with pytest.raises(ResultsError, match=r"has a results\.json and no results\.parquet to go with it"):
            Store(tmp_path, create=create)
    assert len(read_rows(tmp_path / "results.json")) == len(list((tmp_path / "requests").iterdir())) == 1


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
    store.record(one, {"requests": {"ttft_s": np.arange(3.0), "token_times_s": (np.arange(6.0), np.array([0, 1, 3, 6]))}})
    table = store.read_side("requests", one)
    assert table is not None
    assert table.column("token_times_s").to_pylist() == [[0.0], [1.0, 2.0], [3.0, 4.0, 5.0]]
    assert store.read_side("requests", other) is None
    with pytest.raises(ResultsError, match="unequal length"):
        store.record(other, {"steps": {"a": np.arange(3), "b": np.arange(4)}})


def test_a_million_requests_write_and_read(tmp_path: Path, record_property: pytest.FixtureRequest) -> None:
    rng = np.random.default_rng(0)
    columns = {"run": rng.integers(0, 8, 1_000_000), "ttft_s": rng.exponential(0.2, 1_000_000), "e2e_s": rng.exponential(2.0, 1_000_000)}
    store, one = Store(tmp_path), row(1)
    store.record(one, {"requests": columns})
    table = store.read_side("requests", one, ["run", "ttft_s"])
    assert table is not None
    p99 = table.to_pandas().groupby("run")["ttft_s"].quantile(0.99)
    np.testing.assert_allclose(p99.loc[3], np.percentile(columns["ttft_s"][columns["run"] == 3], 99))


def test_unwritable_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultsError, match="cannot create the result store"):
        Store(tmp_path / "file" / "below")
    with pytest.raises(ResultsError, match="is a file"):
        Store(tmp_path / "file")


COLUMNS = {"ttft_s": np.arange(3.0)}


def test_a_reader_that_saw_the_old_footer_reads_the_old_rows_from_the_new_file(tmp_path: Path) -> None:
    """What pandas does when a file is renamed over between its two opens, made certain; over many versions and a new column."""
    store, path = Store(tmp_path), tmp_path / "results.parquet"
    store.append(row(1))
    for number in range(2, 12):
        footer, before = pq.read_metadata(path), pq.read_table(path)
        figures = {"output_tokens_per_s": 1.0, **({"power_mean_w": 5.0} if number == 5 else {})}
        store.append(Row(row(number).cell, HERE, status="failed" if number == 7 else "ok", reason="x" * 500 * number, figures=figures))
        if number == 8:
            store.append(Row(row(7).cell, HERE, figures=figures))
        assert pq.ParquetFile(path, metadata=footer).read().equals(before)
        assert len(pd.read_parquet(path)) == number


def test_old_versions_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, path = Store(tmp_path), tmp_path / "results.parquet"
    monkeypatch.setattr(parquet, "KEEP_S", -1.0)
    for number in range(1, 30):
        store.append(row(number))
    alone = tmp_path / "alone.parquet"
    pq.write_table(pq.read_table(path), alone, **parquet.OPTIONS)
    assert path.stat().st_size < 3.5 * alone.stat().st_size


def _append_until_killed(path: str) -> None:
    store = Store(path)
    for number in range(100_000):
        store.append(row(number % 40 + 1, repeat=number, status="failed" if number % 3 else "ok", reason="x" * (number % 300)))


def test_pandas_reads_a_store_that_is_appended_to(tmp_path: Path) -> None:
    Store(tmp_path).append(row(1))
    writer = multiprocessing.get_context("fork").Process(target=_append_until_killed, args=(str(tmp_path),))
    writer.start()
    try:
        assert all(len(pd.read_parquet(tmp_path / "results.parquet")) for _ in range(150))
    finally:
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()


def test_a_flipped_byte_in_a_stored_table_is_found(tmp_path: Path) -> None:
    Store(tmp_path).append(*(row(number, reason="a reason") for number in range(1, 9)))
    content = bytearray((tmp_path / "results.parquet").read_bytes())
    content[content.index(b"a reason")] ^= 1
    (tmp_path / "results.parquet").write_bytes(content)
    with pytest.raises(ResultsError, match=r"results\.parquet is not a readable Parquet file"):
        read_rows(tmp_path)


HOLD = """
import sys, time
from pathlib import Path
from trtllm_results.store.lock import RUN_LOCK, locked
with locked(Path(sys.argv[1]), RUN_LOCK, 0.0, "being measured into"):
    import os
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_a_lock_names_its_holder_and_dies_with_it_though_a_child_lives_on(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    child = int(holder.stdout.readline())
    try:
        with (
            pytest.raises(ResultsError, match=rf"is being measured into by process {holder.pid} on "),
            locked(tmp_path, RUN_LOCK, 0.0, "being measured into"),
        ):
            pass
        holder.kill()
        holder.wait()
        os.kill(child, 0)
        with locked(tmp_path, RUN_LOCK, 5.0, "being measured into"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


class FullDisk(io.FileIO):
    """Takes half of the n-th write of all, and then nothing more."""

    left = 0

    def write(self, data: object) -> int:  # type: ignore[override]
        FullDisk.left -= 1
        if FullDisk.left < 0:
            super().write(bytes(data)[: len(bytes(data)) // 2])  # type: ignore[call-overload]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)  # type: ignore[arg-type]


def test_a_full_disk_at_any_write_loses_nothing_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.record(row(1), {"requests": COLUMNS})
    monkeypatch.setattr(files, "open", FullDisk, raising=False)
    for write in range(1000):
        FullDisk.left = write
        new, before = row(2, repeat=write), store.rows()
        full = None
        try:
            store.record(new, {"requests": COLUMNS, "steps": COLUMNS})
        except WriteError as error:
            full = error
        if full is None:
            break
        assert full.exit_code == 1
        assert "No space left on device" in str(full)
        assert read_rows(tmp_path) in (before, [*before, new]), "the row is there, or it is not"
        sides = {path.name.split("-")[1] for path in (tmp_path / "requests").iterdir()}
        assert sides == {f"r{one.repeat}" for one in read_rows(tmp_path)}
        assert not list(tmp_path.rglob("*.tmp"))
    assert 10 < write < 1000
    assert read_rows(tmp_path / "results.json") == store.rows()


def test_clean_removes_what_nothing_mentions_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.record(row(1), {"requests": COLUMNS, "steps": COLUMNS})
    orphans = [tmp_path / "requests" / f"{row(2).key}-r0-01234567.parquet", tmp_path / "steps" / ".x.parquet.1-0123abcd.tmp"]
    orphans += [tmp_path / f".{name}.1-0123abcd.tmp" for name in FILES]
    others = [tmp_path / "notes.txt", tmp_path / "requests" / "mine.parquet"]
    for path in (*orphans, *others):
        path.write_bytes(b"xyz")
    before = {path for path in tmp_path.rglob("*") if path not in orphans}
    assert sorted(store.clean()) == sorted((path, 3) for path in orphans)
    assert set(tmp_path.rglob("*")) == before
    assert store.clean() == []


def test_a_row_measured_again_takes_its_side_tables_with_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.record(row(1, status="void", reason="late"), {"requests": COLUMNS})
    store.record(row(1), {"requests": COLUMNS})
    (kept,) = store.rows()
    assert [path.name for path in (tmp_path / "requests").iterdir()] == [f"{kept.key}-r0-{kept.row_id[:8]}.parquet"]


def test_a_damaged_json_is_written_anew_by_the_next_append(tmp_path: Path) -> None:
    Store(tmp_path).append(row(1), row(2))
    text = (tmp_path / "results.json").read_text()
    (tmp_path / "results.json").write_text(text.replace('"batch": 1', '"batch": 5'))
    store = Store(tmp_path)
    store.append(row(3))
    assert read_rows(tmp_path / "results.json") == store.rows()


def _json(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "results.json").read_text())
        change(content["rows"][0])
        (folder / "results.json").write_text(json.dumps(content))

    return damage


def _text(text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / "results.json").write_text(text) and None


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_json(lambda flat: flat.pop("isl")), "results.json: row 1: isl is missing"),
        (_json(lambda flat: flat.update(isl="128")), "results.json: row 1: isl is '128'; it must be a whole number"),
        (_json(lambda flat: flat.update(isl=-4)), "results.json: row 1: isl is -4; it must be at least 0"),
        (_json(lambda flat: flat.update(isl=True)), "isl is True; it must be a whole number"),
        (_json(lambda flat: flat.update(isl=10**400)), "isl is a whole number of 1329 bits; it must be at most"),
        (_json(lambda flat: flat.update(tp=0)), "tp is 0; it must be at least 1"),
        (_json(lambda flat: flat.update(request_rate=float("inf"))), "request_rate is inf; it must be"),
        (_json(lambda flat: flat.update(model=7)), "model is 7; it must be text"),
        (_json(lambda flat: flat.update(status="great")), "status is 'great'; use one of 'ok', 'failed', 'oom' or 'void'"),
        (_json(lambda flat: flat.update(settings="{")), "settings is '{'; it must be valid JSON"),
        (_json(lambda flat: flat.update(extra="[" * 900 + "]" * 900)), "it must be nested at most 32 deep"),
        (_json(lambda flat: flat.update(warnings="[1]")), "warnings.0 is 1; it must be text"),
        (_json(lambda flat: flat.update(output_tokens_per_s="fast")), "output_tokens_per_s is 'fast'; it must be a number"),
        (_json(lambda flat: flat.update(output_tokens_per_s=-1.0)), "output_tokens_per_s is -1.0; it must be at least 0"),
        (_json(lambda flat: flat.update(output_tokens_per_s=1e-320)), "it must be 0 or at least 1e-21"),
        (_json(lambda flat: flat.update(row_id="../../x")), "row_id is '../../x'; it must be of letters"),
        (_json(lambda flat: flat.update(started_at="noon")), "started_at is 'noon'; it must be a time in ISO 8601"),
        (_json(lambda flat: flat.update(model="\ud800")), "model is '\\ud800'; it must be valid Unicode text"),
        (_text('{"schema_version": 1, "rows": 3}'), "rows is 3; it must be a list"),
        (_text('{"schema_version": 1, "rows": [7]}'), "row 1 is 7; it must be an object"),
        (_text('{"schema_version": "x", "rows": []}'), "schema_version is 'x'; it must be a whole number"),
        (_text("[" * 100_000), "contains invalid JSON"),
        (_text('{"schema_version": 1,\n"rows": [{]}'), "contains invalid JSON at line 2"),
    ],
)
def test_a_bad_results_json_is_refused_naming_row_field_and_value(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    Store(tmp_path).append(row(1))
    damage(tmp_path)
    with pytest.raises(ResultsError) as refused:
        read_rows(tmp_path / "results.json")
    assert says in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda table: table.rename_columns(["ISL" if name == "isl" else name for name in table.column_names]), "column isl is missing"),
        (lambda table: table.drop_columns(["repeat"]), "column repeat is missing"),
        (lambda table: table.drop_columns(["repeat"]).append_column("repeat", pa.nulls(1, pa.int64())), "row 1: repeat is missing"),
        (lambda table: table.append_column("isl", table.column("isl")), "column isl is there twice"),
        (lambda table: table.set_column(0, "batch2", pa.array([2**70 * 1.0])), "batch2 is 1.18"),
        (lambda table: table.drop_columns(["model"]).append_column("model", pa.array([None], pa.string())), "row 1: model is missing"),
        (
            lambda table: table.drop_columns(["isl"]).append_column("isl", pa.array([[1]])),
            "isl is a list of 1 entries; it must be a whole number",
        ),
        (lambda table: table.drop_columns(["isl"]).append_column("isl", pa.array([float("nan")])), "row 1: isl is missing"),
    ],
)
def test_a_table_of_another_schema_is_refused_naming_the_column(tmp_path: Path, change: Callable[[pa.Table], pa.Table], says: str) -> None:
    Store(tmp_path).append(row(1))
    path = tmp_path / "results.parquet"
    table = pq.read_table(path)
    pq.write_table(change(table).replace_schema_metadata(parquet.METADATA), path)
    with pytest.raises(ResultsError) as refused:
        read_rows(tmp_path)
    assert says in str(refused.value)


@pytest.mark.parametrize("name", ["results.parquet", "results.json"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    Store(tmp_path).append(row(1))
    path = tmp_path / name
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ResultsError, match="is a pipe, socket or device"):
        read_rows(path)
    path.unlink()
    path.write_bytes(b"")
    with pytest.raises(ResultsError, match="is empty"):
        read_rows(path)


def test_what_is_written_to_a_pipe_or_link_leaves_it_one(tmp_path: Path) -> None:
    os.symlink(tmp_path / "real.json", tmp_path / "link.json")
    files.write_text(tmp_path / "link.json", "x")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == "x"
    files.write_text(Path(os.devnull), "x")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_pipe_that_is_only_named_in_dev_is_written_to() -> None:
    """/dev/stdout of a process in a pipe line leads to no path."""
    reader, writer = os.pipe()
    files.write_text(Path(f"/dev/fd/{writer}"), "x")
    os.close(writer)
    with open(reader, "rb") as stream:
        assert stream.read() == b"x"


def test_a_file_in_a_folders_place_is_named_and_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    for write in (lambda path: files.write_text(path, "x"), files.check_writable):
        with pytest.raises(WriteError, match=r"cannot write .*/file/x: .*/file is a file, and a folder is needed there") as caught:
            write(tmp_path / "file" / "x")
        assert caught.value.exit_code == 3
        with pytest.raises(WriteError, match="Is a directory") as caught:
            write(tmp_path)
        assert caught.value.exit_code == 3
    assert (tmp_path / "file").read_text() == "kept"


def test_a_pipe_that_nobody_reads_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WriteError, match=r"pipe: .*; a pipe needs a process that reads it"):
        files.write_text(tmp_path / "pipe", "x")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_text(tmp_path / "pipe", "x")
    assert os.read(reader, 9) == b"x"
    os.close(reader)


def test_documents_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError):
        document.read_document(path)
    path.write_bytes(gzip.compress(b'{"a": [1.5]}'))
    assert document.read_document(path) == {"a": [1.5]}
    path.write_text("a = 1")
    assert document.read_document(path, tomllib.loads) == {"a": 1}
    for content, says in (
        (b"[" * 100_000, "is nested too deep"),
        (b"[1", "is not valid JSON"),
        (b"\xff", "is not valid JSON"),
        (b"1" * 5000, "is too large a number"),
        (b"[" + b"9" * 400 + b"]", "is too large a number"),
        (b" " * 20_000, "has 20,000 bytes; at most 10,000 are read"),
        (gzip.compress(b" " * 20_000), "has more than 10,000 bytes once unpacked"),
        (gzip.compress(b"[]")[:-5], "is gzip-compressed and damaged"),
    ):
        path.write_bytes(content)
        with pytest.raises(ResultsError, match=says):
            document.read_document(path, most_bytes=200_000 if content[:1] == b"[" else 10_000)
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(ResultsError, match="Too many levels of symbolic links"):
        document.read_document(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ResultsError, match="is a pipe, socket or device"):
        document.read_document(path)


def test_what_cannot_be_read_again_is_not_stored(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ResultsError, match="cannot be stored: isl is -1; it must be at least 0"):
        store.append(Row(Cell("m", "fp8", 1, -1, 2), HERE))
    store.append(Row(row().cell, HERE, figures={"output_tokens_per_s": 5.0, "ttft_p50_ms": -2.0}))
    (stored,) = store.rows()
    assert stored.figures == {"output_tokens_per_s": 5.0}
    assert stored.warnings == ("ttft_p50_ms is -2.0; it must be at least 0, so it is left out",)


def test_a_path_that_exists_is_one_whatever_signs_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / "bs=1@[x]"
    Store(folder).append(row(1))
    assert load_set(str(folder)).name == "bs=1@[x]"
    assert load_set(f"mine={folder}").name == "mine"
    assert named_path(f"a={tmp_path}") == ("a", tmp_path)
    assert path_and_filters(str(folder)) == (str(folder), [])
    assert path_and_filters(f"{folder}@batch=1, isl=2") == (str(folder), ["batch=1", "isl=2"])
