"""The kinds of files the tool reads: how a valid one is made, how it is damaged, and what reads it.

A new kind is one function under `@file_kind`: it writes a valid file (and what else its reader needs) into an empty folder, and returns the
file with the function that reads it. Whatever the file holds then, reading it may return, or raise one of `refusals`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from damage import Damage, of_json, of_parquet, of_toml

from trtllm_bench.__main__ import main
from trtllm_bench.errors import BenchError
from trtllm_results.errors import ResultsError
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store, read_rows

Prepared = tuple[Path, Callable[[], object]]


@dataclass(frozen=True)
class FileKind:
    name: str
    damage: Damage
    refusals: tuple[type[Exception], ...]
    prepare: Callable[[Path], Prepared]


KINDS: dict[str, FileKind] = {}


def file_kind(name: str, damage: Damage, *refusals: type[Exception]) -> Callable[[Callable[[Path], Prepared]], Callable[[Path], Prepared]]:
    def register(prepare: Callable[[Path], Prepared]) -> Callable[[Path], Prepared]:
        KINDS[name] = FileKind(name, damage, refusals, prepare)
        return prepare

    return register


class CalledABug(Exception):
    """The command line met an error that it does not know."""


def command(*arguments: object) -> None:
    """Runs the command line; raises `CalledABug` where it says so, or ends in any other way than done or refused in one sentence."""
    import contextlib
    import io

    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main([str(one) for one in arguments])
    sentences = [line for line in said.getvalue().splitlines() if line.startswith("trtllm-bench: ")]
    if "this is a bug" in said.getvalue() or "Traceback" in said.getvalue() or len(sentences) != (code != 0):
        raise CalledABug(said.getvalue())


def _rows() -> list[Row]:
    here = Environment(gpu="H100", driver="580.1", torch="2.13.0", power_limit_w=700.0)
    cells = [
        Cell("llama", "fp8", batch, 128, 32, settings={"policy": "max_utilization"}, workload="fixed", workload_hash="ab")
        for batch in (1, 8)
    ]
    figures = {"output_tokens_per_s": 100.0, "ttft_p50_ms": 12.5, "tpot_p50_ms": 3.25, "power_mean_w": 610.0, "duration_s": 1.5}
    rows = [Row(cell, here, repeat, figures=figures, run_id="r", command="sweep") for cell in cells for repeat in (0, 1)]
    return [*rows, Row(cells[0], here, 2, "failed", "out of memory", warnings=("throttled",), extra={"note": [1, {"a": 2}]})]


def _store(folder: Path) -> Store:
    store = Store(folder / "store")
    n = np.arange(4.0)
    columns = {"intended_s": n, "sent_s": n, "first_token_s": n + 0.1, "end_s": n + 0.5, "ok": np.ones(4, bool)}
    lengths = {"input_tokens": np.full(4, 8), "output_tokens": np.full(4, 3), "requested_tokens": np.full(4, 3)}
    times = {"token_times_s": (np.repeat(n, 3) + 0.1, np.arange(0, 13, 3))}
    for row in _rows():
        store.record(row, {"requests": columns | lengths | times} if row.status == "ok" else {})
    return store


@file_kind("results.json", of_json, ResultsError)
def _results_json(folder: Path) -> Prepared:
    path = _store(folder).path / "results.json"
    return path, lambda: [row.to_flat() for row in read_rows(path)]


@file_kind("results.parquet", of_parquet, ResultsError)
def _results_parquet(folder: Path) -> Prepared:
    path = _store(folder).path / "results.parquet"
    return path, lambda: [row.to_flat() for row in read_rows(path)]


@file_kind("results.parquet appended to", of_parquet, ResultsError)
def _appended(folder: Path) -> Prepared:
    store = _store(folder)
    return store.path / "results.parquet", lambda: store.append(_rows()[0])


@file_kind("results.json beside an append", of_json)
def _json_appended(folder: Path) -> Prepared:
    store = _store(folder)

    def append_and_read() -> None:
        store.append(_rows()[0])
        assert read_rows(store.path / "results.json") == store.rows()

    return store.path / "results.json", append_and_read


@file_kind("results.parquet by commands", of_parquet, ResultsError)
def _listed(folder: Path) -> Prepared:
    store = _store(folder)

    def look() -> None:
        command("results", "ls", store.path)
        command("results", "show", store.path)
        command("results", "export", store.path, folder / "rows.csv")

    return store.path / "results.parquet", look


@file_kind("results.json by commands", of_json, ResultsError)
def _listed_json(folder: Path) -> Prepared:
    path = _store(folder).path / "results.json"

    def look() -> None:
        command("results", "ls", path)
        command("results", "show", path, "--json")
        command("compare", path, path)

    return path, look


@file_kind("requests of a row", of_parquet, ResultsError)
def _requests(folder: Path) -> Prepared:
    store = _store(folder)
    row = store.rows()[0]
    return store._side_path("requests", row), lambda: command("results", "show", store.path, row.key, "--definitions", "all")


@file_kind("sweep.json", of_json, BenchError)
def _sweep_json(folder: Path) -> Prepared:
    from trtllm_bench.commands.sweep import _defaults
    from trtllm_bench.sweep.spec import SweepSpec, load_spec

    (folder / "sweep").mkdir()
    given = {"batch_size": "1,2", "isl": "8,16", "osl": 8, "target": "fake", "repeats": 2, "request_rate": 2.5, "goodput": "ttft:200"}
    SweepSpec.of(**given, precision="fp8").save(folder / "sweep")
    return folder / "sweep" / "sweep.json", lambda: load_spec({}, None, folder / "sweep", _defaults).points


@file_kind("sweep.toml", of_toml, BenchError)
def _sweep_toml(folder: Path) -> Prepared:
    from trtllm_bench.commands.sweep import _defaults
    from trtllm_bench.sweep.spec import load_spec

    path = folder / "grid.toml"
    path.write_text(
        'model = "tiny-llama"\ntarget = "fake"\nbatch-size = [1, 2]\nisl = [8, 16]\nosl = 8\nrepeats = 2\ngoodput = "ttft:200"\n'
    )
    return path, lambda: load_spec({}, path, None, _defaults).points


import document_kinds  # noqa: E402, F401
import engine_kinds  # noqa: E402, F401
