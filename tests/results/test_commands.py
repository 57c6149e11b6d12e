"""`results`, `compare` and `gate` through the command line: output, files, exit codes, one sentence for bad input."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from trtllm_bench.__main__ import main
from trtllm_results.errors import ResultsError
from trtllm_results.gate.config import GateConfig
from trtllm_results.gate.run import run_gate
from trtllm_results.gate.runners import ArmCommand, CommandRunner, arm_command, named_apart
from trtllm_results.metrics.requests import RequestLog
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row, cell_key
from trtllm_results.store.table import Store

DATA = Path(__file__).parent / "data"
AB = Path(__file__).parents[2] / "results" / "recorded" / "h100" / "gate" / "ab"
H100 = Environment(gpu="NVIDIA H100 80GB HBM3", driver="580.1")


def store(path: Path, scale: float = 1.0, environment: Environment = H100, repeats: int = 4, isl: int = 128) -> Path:
    target, rng, rows = Store(path), np.random.default_rng(1), []
    for batch, rate in ((64, 11_000.0), (2048, 31_000.0)):
        for repeat in range(repeats):
            value = rate * scale * math.exp(rng.normal(0, 0.002))
            figures = {"output_tokens_per_s": value, "output_tokens_per_s_per_gpu": value, "output_tokens_per_s_per_user": value / batch}
            cell = Cell("llama-3.1-8b", "fp8", batch, isl, 128, kv_dtype="fp8", num_requests=4096)
            rows.append(Row(cell, environment, repeat, figures=figures, command="trtllm-bench sweep"))
    target.append(*rows)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert all(len(line) <= 80 for line in said.out.splitlines() if "─" in line), "tables fit 80 columns"
    return code, said.out, said.err


def test_ls_show_and_export(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    a = store(tmp_path / "a")
    code, out, _ = run(capsys, "results", "ls", a, "--where", "batch=64")
    assert (code, out.count(" ok ")) == (0, 4)
    key = Store(a).rows()[0].key
    code, out, _ = run(capsys, "results", "show", a, key[:8])
    assert code == 0
    assert "output_tokens_per_s" in out
    assert "command: trtllm-bench sweep" in out
    for suffix in ("csv", "json", "parquet"):
        assert run(capsys, "results", "export", a, tmp_path / f"x.{suffix}", "--where", "batch=64")[0] == 0
    frame = pd.read_csv(tmp_path / "x.csv", encoding="utf-8-sig")
    assert frame["batch"].tolist() == [64] * 4
    assert pd.read_parquet(tmp_path / "x.parquet")["output_tokens_per_s"].tolist() == frame["output_tokens_per_s"].tolist()
    assert run(capsys, "results", "ls", tmp_path / "x.json")[1].count(" ok ") == 4


def test_merge_brings_side_tables_along_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    a = store(tmp_path / "a")
    row = Store(a).rows()[0]
    Store(a).record(row, {"requests": {"ttft_s": np.array([0.1])}})
    assert "8 new rows" in run(capsys, "results", "merge", tmp_path / "all", a)[1]
    assert "0 new rows" in run(capsys, "results", "merge", tmp_path / "all", a)[1]
    assert Store(tmp_path / "all").read_side("requests", row) is not None


def test_merge_takes_chosen_rows_with_their_side_tables(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    a = store(tmp_path / "a")
    few, many = Store(a).rows()[0], Store(a).rows()[-1]
    for row in (few, many):
        Store(a).record(row, {"requests": {"ttft_s": np.array([0.1])}})
    assert "4 new rows" in run(capsys, "results", "merge", tmp_path / "few", a, "--where", "batch=64")[1]
    chosen = Store(tmp_path / "few")
    assert {row.cell.batch for row in chosen.rows()} == {64}
    assert chosen.read_side("requests", few) is not None
    assert [path.name for path in (tmp_path / "few" / "requests").iterdir()] == [f"{few.key}-r0-{few.row_id[:8]}.parquet"]
    code, _, error = run(capsys, "results", "merge", tmp_path / "none", a, "--where", "batch=3")
    assert (code, "no result passes batch=3" in error) == (3, True)
    assert not (tmp_path / "none").exists()


def test_a_source_that_cannot_be_read_stops_a_merge_before_a_store_is_made(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("model,precision\nx,y\n")
    code, out, error = run(capsys, "results", "merge", tmp_path / "all", store(tmp_path / "a"), tmp_path / "other.csv")
    assert (code, out) == (3, "")
    assert "column row_id is missing" in error
    assert not (tmp_path / "all").exists()


def test_an_import_of_our_own_tables_names_merge(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    own = store(tmp_path / "a")
    run(capsys, "results", "export", own, tmp_path / "a.csv")
    for given, named in (
        (own, own / "results.json"),
        (own / "results.parquet", own / "results.parquet"),
        (tmp_path / "a.csv", tmp_path / "a.csv"),
    ):
        code, _, error = run(capsys, "results", "import", tmp_path / "s", given)
        assert code == 3
        assert f"{named} is not a result file of another tool but a table of trtllm-bench; add its rows with `results merge`" in " ".join(
            error.split()
        )


def test_a_run_imported_from_its_report_and_its_table_is_one_repeat(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [DATA / f"guidellm-0.4.0.{form}" for form in ("json", "csv")]
    code, out, _ = run(capsys, "results", "import", tmp_path / "s", *files)
    assert code == 0
    assert "0 new of 2 rows" in out
    assert "2 already there from another file of the same run" in out
    assert [row.repeat for row in Store(tmp_path / "s").rows()] == [0, 0]
    again = tmp_path / "again.csv"
    again.write_text(files[1].read_text().replace("2026-", "2025-"))
    assert "0 new" in run(capsys, "results", "import", tmp_path / "s", again)[1], "known by its figures"
    report = json.loads(files[0].read_text())
    for one in report["benchmarks"]:
        one["duration"] *= 1.01
    (tmp_path / "slower.json").write_text(json.dumps(report))
    assert "2 new of 2 rows" in run(capsys, "results", "import", tmp_path / "s", tmp_path / "slower.json")[1]


def test_a_merge_of_a_damaged_stores_json_brings_its_side_tables_along(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """As the sentence on the damaged table says, which can be pasted."""
    a = store(tmp_path / "a store")
    row = Store(a).rows()[0]
    Store(a).record(row, {"requests": {"ttft_s": np.array([0.1])}})
    (a / "results.parquet").write_bytes(b"PAR1")
    code, _, error = run(capsys, "results", "ls", a)
    assert code == 3
    command = error.partition("trtllm-bench results merge")[2].replace("<new folder>", shlex.quote(str(tmp_path / "new")))
    assert run(capsys, "results", "merge", *shlex.split(command))[0] == 0
    assert len(Store(tmp_path / "new").rows()) == 8
    assert Store(tmp_path / "new").read_side("requests", row) is not None


def test_importing_again_with_another_set_corrects_the_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def imported(*settings: str) -> str:
        given = [part for one in settings for part in ("--set", one)]
        code, out, _ = run(capsys, "results", "import", tmp_path / "s", DATA / "vllm-serve.json", *given)
        assert code == 0
        return out

    def cell() -> tuple[str, int, str]:
        (row,) = Store(tmp_path / "s").rows()
        assert row.key == cell_key(row.cell, row.environment)
        assert row.figures["output_tokens_per_s_per_gpu"] * row.cell.tp == pytest.approx(row.figures["output_tokens_per_s"])
        return row.cell.precision, row.cell.tp, row.environment.gpu

    assert imported("precision=bf16", "gpu=NVIDIA H100").startswith("1 new of 1 rows")
    assert "0 new of 1 rows" in (again := imported())
    assert again.endswith("; 1 already there, unchanged\n")
    assert cell() == ("bf16", 1, "NVIDIA H100"), "what was set before stays"
    assert imported("precision=fp8", "tp=2").endswith("; 1 already there, now with precision=fp8, tp=2\n")
    assert cell() == ("fp8", 2, "NVIDIA H100")
    assert imported("precision=fp8").endswith("; 1 already there, unchanged\n")


def test_import_then_list(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    files = [DATA / name for name in ("vllm-serve.json", "aiperf-0.13.0.json", "guidellm-0.8.1.json", "nvidia-throughput.json")]
    code, out, _ = run(capsys, "results", "import", tmp_path / "s", *files, "--set", "precision=fp8")
    assert code == 0
    assert [line.rsplit("(", 1)[1].rstrip(")") for line in out.splitlines()] == ["vllm", "aiperf", "guidellm", "nvidia"]
    assert {row.cell.precision for row in Store(tmp_path / "s").rows()} == {"fp8"}


def test_definitions_of_other_tools_from_the_stored_requests(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    row = Row(Cell("tiny-llama", "fp32", 1, 8, 3), H100, figures={"output_tokens_per_s": 1.0})
    one, two = np.zeros(1), np.full(1, 2)
    times, offsets = np.array([1.0, 1.5, 3.0]), np.array([0, 3])
    log = RequestLog(one, one + 0.5, one + 1.0, one + 3.0, two, two + 1, np.ones(1, bool), token_times_s=times, token_offsets=offsets)
    Store(tmp_path).record(row, {"requests": log.side_columns()})
    code, out, _ = run(capsys, "results", "show", tmp_path, row.key, "--definitions", "all")
    assert code == 0
    ttft = next(line for line in out.splitlines() if line.startswith("TTFT p50"))
    assert [float(x.replace(",", "")) for x in ttft.split()[3:]] == [1000.0, 500.0, 500.0, 500.0, 500.0]
    assert run(capsys, "results", "show", store(tmp_path / "bare"), Store(tmp_path / "bare").rows()[0].key, "--definitions", "vllm")[0] == 3


def test_a_folder_of_stores_is_told_under_other_definitions_and_cleaned(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    row = Row(Cell("tiny-llama", "fp32", 1, 8, 3), H100, figures={"output_tokens_per_s": 1.0})
    one, two = np.zeros(1), np.full(1, 2)
    log = RequestLog(one, one + 0.5, one + 1.0, one + 3.0, two, two + 1, np.ones(1, bool))
    Store(tmp_path / "b").record(row, {"requests": log.side_columns()})
    store(tmp_path / "a")
    assert "TTFT p50" in run(capsys, "results", "show", tmp_path, row.key, "--definitions", "vllm")[1]
    left = tmp_path / "b" / "requests" / f"{'0' * 16}-r0-{'0' * 8}.parquet"
    left.write_bytes(next((tmp_path / "b" / "requests").iterdir()).read_bytes())
    assert run(capsys, "results", "clean", tmp_path)[1].startswith(f"removed {left}\n1 files")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_stores_that_lie_deeper_are_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = store(tmp_path / "h100" / "a")
    store(tmp_path / "h100" / "b")
    code, _, error = run(capsys, "results", "ls", tmp_path)
    assert code == 3
    assert f"{tmp_path} holds no results.parquet, so it is not a result store; stores lie deeper in it, such as {first}" in error
    store(tmp_path / "predicted")
    listed = " ".join(run(capsys, "results", "ls", tmp_path)[1].split())
    assert f"not read: 2 stores that lie deeper, such as {first}; name the folder above them" in listed
    assert "not read" not in run(capsys, "results", "ls", tmp_path / "h100")[1]
    shutil.rmtree(tmp_path / "h100" / "b")
    listed = " ".join(run(capsys, "results", "ls", tmp_path)[1].split())
    assert f"not read: a store that lies deeper, {first}; name the folder above it" in listed


def test_compare_prints_and_writes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    a, b = store(tmp_path / "a"), store(tmp_path / "b", 0.95)
    code, out, _ = run(capsys, "compare", a, b)
    assert (code, out.count("slower")) == (0, 2)
    assert run(capsys, "compare", a, b, "--format", "markdown", "--out", tmp_path / "c.md")[0] == 0
    assert (tmp_path / "c.md").read_text().count("| slower |") == 2
    code, out, _ = run(capsys, "compare", f"old={a}", f"new={b}", "--format", "json", "--where", "batch=64")
    assert [change["other"] for change in json.loads(out)["changes"]] == ["new"]
    code, out, _ = run(capsys, "compare", a, b, "--format", "csv", "--sort", "-base_value")
    assert out.splitlines()[1].split(",")[5] == "2048"
    beside = run(capsys, "compare", a, "--against", "published")[1]
    assert "ours beside published" in beside
    assert "fp8 128/128 b" in beside, "what names a row is whole in 80 columns"
    assert "…" not in beside
    assert run(capsys, "compare", a, "--pareto")[1].count("b2048") == 1
    code, out, _ = run(capsys, "compare", a, "--pareto", "--format", "markdown")
    assert out.splitlines()[:2] == [
        "| set | cell | device | rep | per user, tok/s/user | per GPU, tok/s/GPU |",
        "| --- | --- | --- | --: | --: | --: |",
    ]
    out = run(capsys, "compare", a, "--against", "published", "--sort", "-ratio")[1]
    assert "fp8 128/128 b2048" in out
    assert "TRT-LLM v0.17, H100" in out, "what names a row is whole when models are mixed too"
    code, out, _ = run(capsys, "compare", a, "--against", "published", "--format", "markdown", "--sort", "-ratio")
    ratios = [float(line.split("|")[-3]) for line in out.splitlines() if line.startswith("| llama")]
    assert ratios == sorted(ratios, reverse=True)
    assert "- here, llama-3.1-8b fp8 128/128: 4096 requests, up to 2048 running" in out


def test_compare_writes_what_the_name_of_the_file_says(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    a, b = store(tmp_path / "a"), store(tmp_path / "b", 0.95)
    for name in ("c.csv", "c.JSON", "c.md", "c.txt"):
        assert run(capsys, "compare", a, b, "--sort", "-base_value", "--out", tmp_path / name)[0] == 0
    assert pd.read_csv(tmp_path / "c.csv")["batch"].tolist() == [2048, 64]
    assert [one["batch"] for one in json.loads((tmp_path / "c.JSON").read_text())["changes"]] == [2048, 64]
    for name in ("c.md", "c.txt"):
        lines = [line for line in (tmp_path / name).read_text().splitlines() if "| llama" in line]
        assert ["b2048" in line for line in lines] == [True, False], "sorted as asked"
    code, _, error = run(capsys, "compare", a, b, "--format", "csv", "--out", tmp_path / "c.json")
    assert (code, "name different formats; leave --format out" in error) == (3, True)


def test_what_a_gpu_cannot_do_is_told_in_every_list(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Also on which GPU a cell of a front was measured: fronts are per device."""
    mine = store(tmp_path / "a", scale=2.0, repeats=1)
    h200 = store(tmp_path / "b", environment=dataclasses.replace(H100, gpu="NVIDIA H200"), repeats=1)
    run(capsys, "results", "merge", tmp_path / "both", mine, h200)
    for command in (("results", "ls", tmp_path / "both"), ("compare", tmp_path / "both", "--pareto")):
        out = run(capsys, *command)[1]
        assert out.count("implausible: it implies 1,8") == 1
    assert "H100 80GB HBM3" in out
    assert "H200" in out


def test_the_arms_of_a_gate_are_compared_as_any_split(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "compare", AB, "--by", "arm")
    assert code == 0
    assert "slower" in out
    assert "95% interval -2.9% to -2.3%" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("compare", "A", "missing"), "no results at missing"),
        (("compare", "A"), "needs two result sets"),
        (("compare", "A", "OTHER"), "no cell in common"),
        (("compare", "A", "A100"), "--across-gpus"),
        (("compare", "A", "ZERO"), "cannot be compared"),
        (("compare", "A", "A", "--where", "batch=7"), "no result passes"),
        (("compare", "A", "A", "--format", "xml"), "choose table"),
        (("compare", "A", "A", "--sort", "colour"), "no such column"),
        (("compare", "A", "--by", "precision"), "nothing to compare by precision"),
        (("compare", "A", "--against", "folklore"), "only 'published'"),
        (("compare", "A", "--pareto", "--by", "batch"), "--by is for comparing result sets, and --pareto is another table"),
        (("compare", "A", "--against", "published", "--gpu-price-per-hour", "2"), "--against shows no cost"),
        (("compare", "A", "--accuracy", "--gpu-price-per-hour", "list"), "--accuracy shows no cost"),
        (
            ("compare", "A", "A", "--figure", "cost_per_million_output_tokens_usd"),
            "needs a price; add --gpu-price-per-hour, in USD or list",
        ),
        (("results", "ls", "A", "--figure", "cost_per_million_output_tokens_usd"), "needs a price"),
        (("plot", "A", "--x", "batch", "--y", "cost_per_million_output_tokens_usd"), "needs a price"),
        (("compare", "A", "--pareto", "--accuracy"), "--accuracy and --pareto are tables of their own; give one of them"),
        (("results", "show", "A", "zzz"), "no cell of"),
        (("results", "show", "A", "--definitions", "vllm", "--json"), "which knows no --json; leave one of them out"),
        (("results", "show", "A", "--definitions", "vllm", "--gpu-price-per-hour", "2"), "which knows no --gpu-price-per-hour"),
        (("results", "export", "A", "x.doc"), "writes .csv"),
        (("results", "import", "new", "A/results.json"), "not a result file of"),
        (("results", "import", "new", "VLLM", "--set", "precision"), "FIELD=VALUE"),
        (("gate", "check", "A", "--baseline", "none.json"), "there is no baseline"),
        (("gate", "run", "--a", "nowhere", "--b", "nowhere"), "neither an engine folder, nor a checkout"),
        (("gate", "run", "--a", "A", "--b", "A"), "holds neither an engine (engine.json"),
        (("gate", "run", "--a", "HEAD", "--b", "HEAD", "--margin", "speed=2%"), "not a figure"),
        (("gate", "run", "--a", "HEAD", "--b", "HEAD", "--margin", "2%"), "FIGURE=LOSS"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_3(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], says: str
) -> None:
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_DIR", str(root / ".git"))
    store(Path("A"))
    store(Path("OTHER"), isl=2048)
    store(Path("A100"), environment=Environment(gpu="NVIDIA A100"))
    zero = Row(Cell("llama-3.1-8b", "fp8", 64, 128, 128, kv_dtype="fp8"), H100, figures={"output_tokens_per_s": 0.0})
    Store("ZERO").append(zero)
    code, _, err = run(capsys, *(str(DATA / "vllm-serve.json") if one == "VLLM" else one for one in arguments))
    assert code == 3
    assert says in err
    assert len(err.strip().splitlines()) == 1


def test_gate_check_accept_and_history(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, slow, base = store(tmp_path / "a"), store(tmp_path / "slow", 0.95), tmp_path / "base.json"
    code, out, _ = run(capsys, "gate", "accept", a, "--baseline", base, "--note", "start")
    assert (code, "--same-state" in out) == (0, True)
    code, out, _ = run(capsys, "gate", "check", a, "--baseline", base)
    assert (code, "1.0% is assumed" in out) == (2, True), "nobody knows how much days differ"
    for day, scale in (("tue", 0.999), ("wed", 1.0)):
        assert run(capsys, "gate", "accept", store(tmp_path / day, scale), "--baseline", base, "--same-state")[0] == 0
    code, out, _ = run(capsys, "gate", "check", a, "--baseline", base)
    assert (code, "is assumed" in out) == (0, False)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    files = ["--junit", tmp_path / "j.xml", "--json", tmp_path / "g.json", "--markdown", tmp_path / "g.md", "--github"]
    code, out, _ = run(capsys, "gate", "check", slow, "--baseline", base, *files)
    assert code == 1
    assert out.count("::error") == 3
    suite = ElementTree.fromstring((tmp_path / "j.xml").read_text())
    assert (suite.get("tests"), suite.get("failures"), len(suite.findall("testcase/failure"))) == ("2", "2", 2)
    assert json.loads((tmp_path / "g.json").read_text())["verdict"] == "fail"
    assert (tmp_path / "summary.md").read_text() == (tmp_path / "g.md").read_text()
    for name in ("j.xml", "g.json", "g.md", "summary.md"):
        (tmp_path / name).unlink()
    with monkeypatch.context() as full:
        full.setattr("trtllm_bench.commands.gate._print", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        code, _, err = run(capsys, "gate", "check", slow, "--baseline", base, *files)
    assert (code, "No space left on device" in err) == (3, True), "1 would be a verdict"
    assert all((tmp_path / name).exists() for name in ("j.xml", "g.json", "g.md", "summary.md")), "written before anything is printed"
    single = store(tmp_path / "single", repeats=1)
    code, out, _ = run(capsys, "gate", "check", single, "--baseline", base)
    assert code == 2
    assert "only 1 repeat" in out
    run(capsys, "gate", "accept", slow, "--baseline", base, "--note", "slower")
    code, out, _ = run(capsys, "gate", "history", "--baseline", base)
    assert (code, out.count("slower"), out.count("-5.0%")) == (0, 2, 4)
    run(capsys, "gate", "accept", store(tmp_path / "longer", isl=2048), "--baseline", base, "--note", "longer")
    code, out, _ = run(capsys, "gate", "history", "--baseline", base)
    assert (code, out.count("longer"), out.count("slower"), out.count("…")) == (0, 2, 2, 0), "cells of earlier states stay, names whole"


SCRIPT = """
import json, math, random, sys
from trtllm_results.record.environment import Environment
from trtllm_results.record.cell import Cell
from trtllm_results.record.row import Row
loss, sd = float(sys.argv[1]), float(sys.argv[2])


def report(path):
    rate = 1000 * (1 - loss) * math.exp(random.gauss(0, sd))
    row = Row(Cell("m", "fp8", 1, 1, 1), environment=Environment(gpu="G"), figures={"output_tokens_per_s": rate})
    flat = {k: v for k, v in row.to_flat().items() if v not in ("", None)}
    record = {**flat, "figures": dict(row.figures), "warnings": []}
    json.dump({"engine": {}, "world_info": {}, "performance": {}, "record": record}, open(path, "w"))


if "--keep-loaded" not in sys.argv:
    report(sys.argv[sys.argv.index("--report-json") + 1])
else:
    for line in sys.stdin:
        report(line.strip())
        print("loading: 100%")
        print("measured", line.strip(), flush=True)
        if loss > 0.5:
            sys.exit("trtllm-bench: the GPU fell off")
"""


def scripted(name: str, loss: float) -> ArmCommand:
    return ArmCommand(name, (sys.executable, "-c", SCRIPT, str(loss), "0.0005"), {"PYTHONPATH": os.pathsep.join(sys.path)})


def test_the_command_runner_measures_processes_and_keeps_every_run(tmp_path: Path) -> None:
    config = GateConfig(blocks=3, max_blocks=3, looks=1)
    report = run_gate(CommandRunner(scripted("old", 0.0), scripted("new", 0.03), Store(tmp_path)), config, "old", "new", warmup=0, seed=34)
    assert report.verdict == "fail"
    rows = Store(tmp_path).rows()
    assert [row.extra["gate_arm"] for row in rows] == ["A", "B", "B", "A", "B", "A", "A", "B", "A", "B", "B", "A"]


def test_a_run_that_fails_or_says_nothing_is_one_sentence() -> None:
    broken = ArmCommand("x", (sys.executable, "-c", "import sys; print('no such engine', file=sys.stderr); sys.exit(3)"))
    with pytest.raises(ResultsError, match="ended with exit code 3: no such engine"):
        CommandRunner(broken, broken).run("A")
    mute = ArmCommand("x", (sys.executable, "-c", "pass"))
    with pytest.raises(ResultsError, match="left no report"):
        CommandRunner(mute, mute).run("A")


def test_a_void_run_says_why_and_is_kept(tmp_path: Path) -> None:
    void = SCRIPT.replace("Row(Cell", 'Row(status="void", reason="the driver was late", cell=Cell') + "sys.exit(1)"
    arm = dataclasses.replace(scripted("slow", 0.0), command=(sys.executable, "-c", void, "0", "0"))
    with pytest.raises(ResultsError, match="a run of slow is void: the driver was late"):
        CommandRunner(arm, arm, Store(tmp_path)).run("A")
    assert [row.status for row in Store(tmp_path).rows()] == ["void"]


def test_an_engine_folder_a_checkout_and_a_revision_become_commands(tmp_path: Path) -> None:
    from contextlib import ExitStack

    (tmp_path / "engine.json").write_text("{}")
    with ExitStack() as cleanup:
        engine = arm_command(str(tmp_path), ["--isl", "8"], cleanup)
        assert engine.command[-4:] == ("--engine-dir", str(tmp_path), "--isl", "8")
        checkout = arm_command(".", ["--isl", "8"], cleanup)
        assert Path(checkout.variables["PYTHONPATH"].split(":")[0]) == Path.cwd()
        revision = arm_command("HEAD", ["--isl", "8"], cleanup)
        unpacked = Path(revision.variables["PYTHONPATH"].split(":")[0])
        assert (unpacked / "trtllm_bench" / "__init__.py").exists()
    assert not unpacked.exists()


def test_arms_of_one_name_are_told_apart(tmp_path: Path) -> None:
    from contextlib import ExitStack

    for folder in ("old/tiny.engine", "new/tiny.engine"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "engine.json").write_text("{}")
    old, new = str(tmp_path / "old" / "tiny.engine"), str(tmp_path / "new" / "tiny.engine")
    with ExitStack() as cleanup:
        arms = [arm_command(spec, [], cleanup) for spec in (old, new)]
    assert [one.name for one in named_apart(*arms, old, new)] == [f"tiny.engine ({old})", f"tiny.engine ({new})"]
    assert [one.name for one in named_apart(arms[0], arms[0], old, old)] == ["tiny.engine as A", "tiny.engine as B"]
    named = dataclasses.replace(arms[0], name="x")
    assert named_apart(named, arms[1], old, new) == (named, arms[1])


def test_a_repository_without_the_tool_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both arms would be the installed tool, and pass."""
    monkeypatch.chdir(tmp_path)
    who = ["-c", "user.email=a@b", "-c", "user.name=x"]
    for arguments in (["init", "-q"], [*who, "commit", "-q", "--allow-empty", "-m", "1"], ["branch", "old"]):
        subprocess.run(["git", *arguments], check=True)
    code, _, err = run(capsys, "gate", "run", "--a", "old", "--b", "HEAD", "--", "--target", "fake", "--isl", 8, "--osl", 8)
    assert code == 3
    assert "does not hold trtllm-bench" in err
    assert len(err.strip().splitlines()) == 1


SLEEPER = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"])
open("running.tmp", "w").write(f"{os.getpid()} {child.pid}")
os.rename("running.tmp", "running")
time.sleep(120)
"""


@pytest.mark.parametrize("keep_loaded", [False, True])
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_a_signal_ends_every_process_and_leaves_no_temporary(tmp_path: Path, name: str, code: int, keep_loaded: bool) -> None:
    """The arm is a checkout whose tool starts a process of its own and sleeps."""
    package = tmp_path / "checkout" / "trtllm_bench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(SLEEPER)
    (tmp_path / "tmp").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path / "tmp")}
    command = [sys.executable, "-P", "-m", "trtllm_bench", "gate", "run", "--a", "checkout", "--b", "checkout"]
    command += ["--keep-loaded"] * keep_loaded
    gate = subprocess.Popen(command, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "running").exists():
            assert gate.poll() is None, gate.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        gate.send_signal(signal.Signals[name])
        _, said = gate.communicate(timeout=60)
    finally:
        gate.kill()
    assert gate.returncode == code
    assert len(said.strip().splitlines()) == 1
    assert not any(alive(int(process)) for process in (tmp_path / "running").read_text().split())
    assert list((tmp_path / "tmp").iterdir()) == []


def alive(process: int) -> bool:
    """Whether it runs; a zombie nobody waits for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_narrow_terminal_keeps_every_interval_and_verdict(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Four figures of two cells, sets with long names: what does not fit in columns is printed in rows."""
    sides, wide = [], "steady_output_tokens_per_s_per_gpu"
    for name, scale in (("the-baseline-of-last-monday", 1.0), ("a-candidate-with-a-long-name", 0.95)):
        target = Store(tmp_path / name)
        for row in Store(store(tmp_path / f"{name}-plain", scale)).rows():
            rate = row.figures["output_tokens_per_s"]
            target.append(dataclasses.replace(row, figures={**row.figures, "ttft_p50_ms": 1e6 / rate, wide: rate}))
        sides.append(tmp_path / name)
    figures = [word for name in ("output_tokens_per_s", "ttft_p50_ms", wide) for word in ("--figure", name)]
    code, out, _ = run(capsys, "compare", *sides, *figures)
    assert (code, out.count("slower"), out.count("95% interval")) == (0, 6, 6)
    assert all(len(line) <= 80 for line in out.splitlines() if line.startswith("  "))
    assert "geometric means" in out
    code, out, _ = run(capsys, "compare", *sides)
    assert (out.count("slower"), out.count("95% interval"), out.count("─") > 0) == (2, 1, True)


def test_gate_run_end_to_end_on_a_revision(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Four real processes of the committed code over the scripted target: one block, so inconclusive by design."""
    flags = ["--target", "fake", "--isl", 8, "--osl", 4, "--num-requests", 4, "--concurrency", 4]
    blocks = ["--blocks", 1, "--max-blocks", 1, "--looks", 1, "--warmup-runs", 0]
    code, out, err = run(capsys, "gate", "run", "--a", "HEAD", "--b", "HEAD", *blocks, "--out", tmp_path / "runs", "--", *flags)
    assert (code, len(Store(tmp_path / "runs").rows())) == (2, 4), err
    assert "only 1 repeat" in out


def test_a_report_that_cannot_be_written_is_told_before_anything_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "gate", "run", "--a", "HEAD", "--b", "HEAD", "--junit", tmp_path / "file" / "g.xml")
    assert (code, "A  " in err) == (3, False), "1 would be the verdict fail"
    assert "cannot write" in err
    assert "g.xml" in err


def test_kept_arms_measure_every_run_in_one_process(tmp_path: Path) -> None:
    arms = scripted("a", 0.0), scripted("b", 0.9)
    with CommandRunner(*arms, Store(tmp_path), keep_loaded=True) as runner:
        first = runner._processes["A"]
        assert all("one process" in runner.run("A").warnings[-1] for _ in range(3))
        assert runner._processes["A"] is first
        runner.run("B")
        with pytest.raises(ResultsError, match="a run of b ended with exit code 1: trtllm-bench: the GPU fell off"):
            runner.run("B")
    assert len(Store(tmp_path).rows()) == 4


def test_throughput_measures_again_for_every_report_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other end: the hidden flag of throughput measures once a line and answers with the path."""
    paths = [tmp_path / "1.json", tmp_path / "2.json"]
    monkeypatch.setattr("sys.stdin", iter(f"{path}\n" for path in paths))
    code, out, _ = run(capsys, "throughput", "--target", "fake", "--isl", 8, "--osl", 4, "--num-requests", 4, "--keep-loaded")
    assert (code, out.split()) == (0, ["measured", str(paths[0]), "measured", str(paths[1])])
    assert all(json.loads(path.read_text())["record"]["status"] == "ok" for path in paths)


def test_help_imports_neither_pandas_nor_torch() -> None:
    code = "import sys; from trtllm_bench.__main__ import main; [main([name, '--help']) for name in ('gate', 'compare', 'results')];"
    code += "print('LOADED', sorted({'torch', 'pandas', 'pyarrow', 'scipy', 'matplotlib'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip().endswith("LOADED []")


@pytest.mark.parametrize("document", ["gate.md", "gate-workflow.yml"])
def test_commands_in_the_documents_exist_with_their_flags(capsys: pytest.CaptureFixture[str], document: str) -> None:
    import re

    text = (Path(__file__).parents[2] / "docs" / document).read_text().replace("\\\n", " ")
    commands = re.findall(r"trtllm-bench (gate \w+)([^\n|]*)", text)
    assert commands
    for name, arguments in commands:
        own, _, measured = arguments.partition(" -- ")
        for where, flags in ((name.split(), own), (["throughput"], measured)):
            known = run(capsys, *where, "--help")[1]
            for flag in re.findall(r"(?<=\s)--[a-z-]+", flags):
                assert re.search(rf"{flag}\b", known), f"{name}: {flag}"
