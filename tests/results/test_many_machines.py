"""Many machines, one set: stores on object storage, merges that tell what differs, SQL over all of them."""

from __future__ import annotations

import builtins
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trtllm_bench.__main__ import main
from trtllm_results.compare.conflicts import conflicts
from trtllm_results.errors import ResultsError
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.remote import Mirror, is_address
from trtllm_results.store.selection import load_set, named_place
from trtllm_results.store.table import MirroredStore, Store, read_rows

RECORDED = Path(__file__).parents[2] / "results" / "recorded" / "h100"
HERE = Environment(gpu="NVIDIA H100 80GB HBM3", driver="580.1", host="a")


def row(batch: int, rate: float = 100.0, environment: Environment = HERE, **more: Any) -> Row:
    return Row(Cell("m", "fp8", batch, 128, 128), environment, figures={"output_tokens_per_s": rate}, **more)


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder behind `s3://bucket` of an S3 server on this machine."""
    import localbucket

    root = tmp_path / "s3"
    (root / "bucket").mkdir(parents=True)
    monkeypatch.setattr(localbucket.S3Handler, "data_root", root, raising=False)
    server = ThreadingHTTPServer(("127.0.0.1", 0), localbucket.S3Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, value in (("ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}"), ("ACCESS_KEY_ID", "k"), ("SECRET_ACCESS_KEY", "s")):
        monkeypatch.setenv(f"AWS_{name}", value)
    yield root / "bucket"
    server.shutdown()
    server.server_close()


def test_sweeps_of_several_hosts_are_one_set_on_object_storage(
    bucket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for host, rate in (("north", 100.0), ("south", 110.0)):
        monkeypatch.setattr("platform.node", lambda host=host: host)
        store = MirroredStore(tmp_path / "runs" / "today", "s3://bucket/set")
        first = row(8, rate, replace(HERE, host=host))
        store.record(first, {"requests": {"intended_s": np.arange(3.0)}})
        assert (bucket / "set" / f"{host}-today" / "results.parquet").read_bytes() == (store.path / "results.parquet").read_bytes()
        store.append(row(16, rate, replace(HERE, host=host)))
        assert store.mirror.push() == 0
        store.path.rename(tmp_path / host)
    assert sorted((one.environment.host, one.cell.batch) for one in read_rows("s3://bucket/set")) == [
        *(("north", 8), ("north", 16)),
        *(("south", 8), ("south", 16)),
    ]
    assert load_set("both=s3://bucket/set").name == "both"
    assert len(read_rows("s3://bucket/set/north-today/results.parquet")) == 2
    assert main(["results", "ls", "s3://bucket/set", "--where", "batch=8"]) == 0
    assert capsys.readouterr().out.count(" ok ") == 2
    assert main(["results", "merge", str(tmp_path / "all"), "s3://bucket/set"]) == 0
    assert "4 new rows from s3://bucket/set" in capsys.readouterr().out
    assert len(Store(tmp_path / "all").rows()) == 4
    assert len(list((tmp_path / "all" / "requests").iterdir())) == 2
    monkeypatch.chdir(tmp_path)
    load = ["--target", "fake", "--isl", "8", "--osl", "4", "--concurrency", "1", "--num-requests", "2"]
    assert main(["sweep", *load, "--out", "s3://bucket/sweep"]) == 0
    assert "copied to s3://bucket/sweep/south-" in capsys.readouterr().out
    assert [one.cell.target for one in read_rows("s3://bucket/sweep")] == ["fake"]
    for given, says in (
        (["results", "ls", "s3://bucket/none"], "holds no results.parquet"),
        (["results", "ls", "what://x/y"], "cannot open what://x/y"),
        (["results", "merge", "s3://bucket/all", str(tmp_path / "all")], "merge into a folder of this machine"),
        (["sweep", "--resume", "--out", "s3://bucket/set"], "--resume needs --out: the folder of the sweep"),
    ):
        assert main(given) == 3
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert says in error


def test_what_cannot_be_copied_stays_here_and_is_copied_later(tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("a file where a folder belongs")
    store = MirroredStore(tmp_path / "run", f"file://{tmp_path}/shared")
    store.append(row(8))
    with pytest.raises(ResultsError, match="everything is in"):
        store.finish()
    (tmp_path / "shared").unlink()
    store.finish()
    assert len(read_rows(f"file://{tmp_path}/shared")) == len(read_rows(tmp_path / "shared")) == 1


def test_addresses_are_told_from_paths() -> None:
    assert [is_address(text) for text in ("s3://b/x", "file:///x", "runs/a", "/a:b", "C://x")] == [True, True, False, False, False]
    assert named_place("s3://b/set/?endpoint_override=h") == ("set", "s3://b/set/?endpoint_override=h")
    assert named_place("a=s3://b/set") == ("a", "s3://b/set")
    assert Mirror(Path("runs/7"), "s3://b/set?region=x").place.endswith("-7?region=x")


def test_a_merge_tells_edited_rows_repeated_measurements_and_other_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = [row(8), row(16), row(32)]
    edited = replace(ours[0], figures={"output_tokens_per_s": 5.0})
    again, other_driver = row(16, 101.0), row(32, environment=replace(HERE, driver="570.9"))
    assert conflicts(ours, "a", [edited, again, other_driver, row(64)], "b") == [
        f"row {ours[0].row_id[:8]} of m fp8 b8 128/128: output_tokens_per_s is 100.0 in a and 5.0 in b; that of a is kept",
        "1 cell of b had been measured in a under the same settings too; the runs are kept as further repeats",
        "1 case is in both a and b as versions that differ in driver ('580.1' and '570.9'); tables show the one measured last",
    ]
    assert conflicts(ours, "a", ours, "b") == []
    Store(tmp_path / "a").append(*ours)
    Store(tmp_path / "b").append(other_driver)
    assert main(["results", "merge", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    said = capsys.readouterr().out
    assert "1 new rows" in said
    assert "  note: 1 case is in both a and" in said


def test_a_query_sees_all_stores_and_is_told_off_in_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [str(RECORDED / name) for name in ("llama-3.1-8b-fp8", "llama-3.1-8b-bf16")]
    sql = "SELECT store, max(output_tokens_per_s) AS best FROM results GROUP BY 1 ORDER BY best"
    assert main(["results", "query", sql, *stores, "--format", "json"]) == 0
    best = [max(one.figures["output_tokens_per_s"] for one in read_rows(store)) for store in reversed(stores)]
    found = json.loads(capsys.readouterr().out)
    assert [(one["store"], one["best"]) for one in found] == list(zip(["llama-3.1-8b-bf16", "llama-3.1-8b-fp8"], best, strict=True))
    assert main(["results", "query", sql, str(RECORDED), "--where", "precision=bf16"]) == 0
    assert "18,844" in capsys.readouterr().out
    assert main(["results", "query", "FROM results LIMIT 1", stores[0]]) == 0
    said = capsys.readouterr().out
    assert said.split()[:2] == ["schema_version", "row_id"]
    assert "not shown, too wide for 80 columns: " in said
    found_import = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "duckdb":
            raise ImportError(name)
        return found_import(name, *arguments, **more)

    for given, says in ((["SELECT nothing FROM results"], 'column "nothing" not found'), (["SELEC"], "syntax error"), ([sql], "[query]")):
        if "[query]" in says:
            monkeypatch.setattr(builtins, "__import__", without)
        assert main(["results", "query", *given, stores[0]]) == 3
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert says in error
