"""One measured request: the same work has one key by every command, and a knob is described in one place."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import typer
from command_line import refused, run
from typer.testing import CliRunner

from trtllm_bench.commands import _options as options
from trtllm_bench.errors import BenchError
from trtllm_bench.measure.from_row import spec_of_row
from trtllm_bench.measure.rows import RowMaker, cell_of
from trtllm_bench.profiling.record import CellProfile
from trtllm_bench.spec import measurement
from trtllm_bench.spec.knobs import knob
from trtllm_bench.spec.measurement import EngineSpec, LoadSpec, MeasurementSpec, WorkloadSpec
from trtllm_bench.sweep.spec import SweepSpec, load_spec
from trtllm_bench.sweep.table import summarise
from trtllm_bench.targets import registry
from trtllm_bench.targets.registry import Identity, StaticTarget, register
from trtllm_bench.targets.scripted import NullTarget
from trtllm_dashboards.html.payload import build
from trtllm_dashboards.points import points
from trtllm_results.compare.align import compare
from trtllm_results.gate.baseline import measured_cells
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row, cell_key
from trtllm_results.store.layout import SWEEP
from trtllm_results.store.selection import ResultSet
from trtllm_results.store.table import Store
from trtllm_results.versions import newest

ENGINE = ("--model", "tiny-llama", "--device", "cpu", "--max-batch-size", 2, "--max-num-tokens", 64)
SHAPE = ("--isl", 8, "--osl", 4, "--max-lag-ms", 10_000)
GOODPUT = ("--goodput", "ttft:60000,e2e:60000")


@pytest.mark.usefixtures("own_cache")
def test_the_same_work_has_one_key_by_every_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    search = ("--by", "concurrency", "--start", 2, "--highest", 2, "--attainment", 0.5, "--repeats", 1, "--warmup", 3)
    assert run(capsys, "search", *ENGINE, *SHAPE, *GOODPUT, *search, "--out", tmp_path / "search")[0] == 0
    searched = next(row for row in Store(tmp_path / "search").rows() if row.cell.batch == 2)
    work = (*ENGINE, *SHAPE, *GOODPUT, "--concurrency", 2, "--num-requests", searched.cell.num_requests, "--warmup", 3)
    for command in ("throughput", "latency", "sweep", "profile"):
        steps = ("--steps", "3-4") if command == "profile" else ()
        assert run(capsys, command, *work, *steps, "--out", tmp_path / command)[0] == 0
    rows = [searched, *(Store(tmp_path / command).rows()[0] for command in ("throughput", "latency", "sweep"))]
    profile = CellProfile.load(tmp_path / "profile")
    assert {row.key for row in rows} == {profile.cell["cell_key"]}
    assert {row.cell for row in map(without_settings, rows)} == {without_settings(searched).cell}


def without_settings(row: Row) -> Row:
    return replace(row, cell=replace(row.cell, settings=()))  # type: ignore[arg-type]


@pytest.mark.usefixtures("virtual_time")
def test_an_open_loop_has_one_key_by_every_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    common = ("--target", "fake", *SHAPE, *GOODPUT, "--seed", 5)
    search = ("--start", 100, "--duration", 0.5, "--attainment", 0.5, "--repeats", 1, "--tolerance", 0.8, "--highest", 100)
    assert run(capsys, "search", *common, *search, "--max-batch-size", 4, "--out", tmp_path / "search")[0] == 0
    searched = next(row for row in Store(tmp_path / "search").rows() if row.cell.request_rate == 100)
    asked = (*common, "--request-rate", 100, "--num-requests", searched.cell.num_requests)
    assert run(capsys, "throughput", *asked, "--max-batch-size", 4, "--out", tmp_path / "throughput")[0] == 0
    assert run(capsys, "sweep", *asked, "--batch-size", 4, "--out", tmp_path / "sweep")[0] == 0
    rows = [Store(tmp_path / name).rows()[0] for name in ("throughput", "sweep")]
    assert (rows[0].key, rows[0].cell.batch) == (rows[1].key, 4)
    assert replace(searched.cell, model="", precision="") == replace(rows[0].cell, model="", precision="")
    bounded = (*asked, "--max-batch-size", 4, "--concurrency", 4)
    assert run(capsys, "throughput", *bounded, "--out", tmp_path / "bounded")[0] == 0
    assert Store(tmp_path / "bounded").rows()[0].key != rows[0].key, "a bound on requests in flight is other work"


@dataclass(frozen=True)
class WithSpare(EngineSpec):
    spare: int = knob(3, "Sequences held back.", flag="--spare-sequences", least=1, identity=True)


def test_a_new_knob_is_one_line_and_reaches_flag_toml_key_and_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(measurement.PARTS, "engine", WithSpare)
    specs: list[MeasurementSpec] = []
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @options.measures()
    def command(asked: options.Asked) -> None:
        specs.append(options.single(asked))

    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    assert "--spare-sequences" in said
    assert "Sequences held back (default 3)." in said
    assert CliRunner().invoke(app, ["--spare-sequences", "5"]).exit_code == 0
    assert isinstance(CliRunner().invoke(app, ["--spare-sequences", "0"]).exception, BenchError)
    assert CliRunner().invoke(app, []).exit_code == 0
    assert [spec.engine.spare for spec in specs] == [5, 3]  # type: ignore[attr-defined]

    (tmp_path / "s.toml").write_text('model = "m"\nspare-sequences = [5, 7]\nconcurrency = 1\n')
    points = load_spec({}, tmp_path / "s.toml").points
    assert [point.spec.engine.spare for point in points] == [5, 7]  # type: ignore[attr-defined]
    assert [point.label for point in points] == ["spare=5", "spare=7"]

    here = Environment(cpu="test")
    cells = [cell_of(point.spec, Identity("native", engine=point.spec.engine, weights_hash="dummy-0"), None) for point in points]
    assert [cell.settings["spare"] for cell in cells] == [5, 7]
    assert cell_key(cells[0], here) != cell_key(cells[1], here)
    rows = [Row.from_flat(Row(cell, here).to_flat()) for cell in cells]
    assert [spec_of_row(row).engine.spare for row in rows] == [5, 7]  # type: ignore[attr-defined]
    assert [line["spare"] for line in summarise(rows, ["spare"])] == [5, 7]


def test_any_knob_may_be_an_axis_and_engines_are_kept_together() -> None:
    spec = SweepSpec.of(
        model="m",
        target="a,b",
        precision="fp8",
        kv_dtype="auto,fp8",
        max_num_tokens="4096,8192",
        batch_size="1,8",
        warmup="0,4",
        isl=8,
        osl=2,
    )
    assert len(spec.points) == 2**5
    assert [len(points) for points in spec.engines()] == [4] * 8
    assert spec.points[0].label == "b1 target=a kv-dtype=auto max-num-tokens=4096 warmup=0"
    assert spec.points[0].engine_label == "target=a kv-dtype=auto max-num-tokens=4096"
    several = SweepSpec.of(batch_size=1, arrivals="constant:4;on-off:30,5,10", policy=["x", "y"], kv_cache_fraction="0.5,0.9")
    assert several.axis("arrivals") == ("constant:4", "on-off:30,5,10")
    of_tables = SweepSpec.of(batch_size=1, arrivals=[{"kind": "constant", "rate": 4.0}, "on-off:30,on_s=5,off_s=10"])
    assert of_tables.axis("arrivals") == several.axis("arrivals")
    assert len(several.points) == 8


def test_a_toml_takes_nvidias_names_too(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(
        'model = "m"\nquantization = ["W4A16_AWQ", "FP8"]\nkv_cache_dtype = "int8"\ntp_size = 2\npp-size = 2\n'
        "concurrency = 1\nisl = 8\nosl = 8\n"
    )
    measured = [point.spec.engine for point in load_spec({}, tmp_path / "s.toml").points]
    assert [(one.precision, one.kv_dtype, one.tp, one.pp) for one in measured] == [("W4A16_AWQ", "int8", 2, 2), ("FP8", "int8", 2, 2)]


def test_cells_of_a_toml_hold_what_belongs_together_and_share_an_engine(tmp_path: Path) -> None:
    cells = "".join(
        f"[[cells]]\nisl = {isl}\nosl = {osl}\nbatch-size = {places}\nnum-requests = {requests}\n"
        for isl, osl, places, requests in ((128, 2048, 512, 700), (2048, 128, 256, 512), (2048, 2048, 256, 300))
    )
    (tmp_path / "s.toml").write_text(f'model = "m"\nprecision = "fp8"\nrepeats = 3\n{cells}')
    spec = load_spec({}, tmp_path / "s.toml", defaults={"model": "other", "precision": "bf16", "concurrency": (1, 8), "isl": (1,)})
    (points,) = spec.engines()
    assert [(*point.spec.workload.lengths, point.spec.load.concurrency, point.spec.workload.num_requests) for point in points] == [
        (128, 2048, 512, 700),
        (2048, 128, 256, 512),
        (2048, 2048, 256, 300),
    ]
    assert [point.label for point in points] == ["fp8 b512 128/2048", "fp8 b256 2048/128", "fp8 b256 2048/2048"]
    assert set(spec.axes) == {"isl", "osl", "concurrency"}
    twice = load_spec({"kv_dtype": "fp8,bf16"}, tmp_path / "s.toml")
    assert [len(each) for each in twice.engines()] == [3, 3]
    spec.save(tmp_path)
    assert load_spec({}, folder=tmp_path) == spec
    with pytest.raises(BenchError, match=r"cells 1: isl is given for all cells too; give it in one place"):
        load_spec({"isl": "64"}, tmp_path / "s.toml")


def test_what_a_sweep_varied_is_told_as_it_was_asked_for_and_chooses_rows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_bytes(
        b'\xef\xbb\xbftarget = "fake"\nmodel = "m"\nprecision = "fp8"\ntp = 2\nisl = 8\nosl = 4\nnum-requests = 3\nmax-lag-ms = 10000\n'
        b'max-batch-size = 2\narrivals = "constant:50"\ngoodput = ["ttft:500", "tpot:90"]\n'
    )
    status, text, _ = run(capsys, "sweep", tmp_path / "s.toml", "--out", tmp_path / "a")
    assert status == 0
    assert re.search(r"^ttft:500 .*\ntpot:90 ", text, re.MULTILINE), text
    rows = Store(tmp_path / "a").rows()
    assert [row.varied for row in rows] == [{"goodput": "ttft:500"}, {"goodput": "tpot:90"}]
    assert [replace(row, extra={}).case(("goodput",)) for row in rows] == [row.case(("goodput",)) for row in rows]
    assert [row.cell.request_rate for row in rows] == [50, 50], "not that of three arrivals, 3 / 0.04 s"
    for row in rows:
        assert row.figures["output_tokens_per_s_per_gpu"] == pytest.approx(row.figures["output_tokens_per_s"] / 2)
    for chosen in ("goodput=ttft:500", "arrivals=constant:50", "goodput!=tpot:90"):
        listed = run(capsys, "results", "ls", tmp_path / "a", "--where", chosen, "--json")[1]
        assert len(json.loads(listed)) == (2 if chosen.startswith("arrivals") else 1), chosen
    compared = run(capsys, "compare", tmp_path / "a", "--by", "goodput", "--format", "json")[1]
    assert json.loads(compared)["sets"] == ["ttft:500", "tpot:90"]
    status, _, error = run(capsys, "compare", tmp_path / "a", "--by", "goodputs")
    assert status == 3
    assert "results have no field 'goodputs' (did you mean goodput?)" in error


def test_a_name_near_a_known_one_is_told(tmp_path: Path) -> None:
    for line, said in (
        ("batchsize = 2", r"unknown field batchsize \(did you mean batch_size\?\); known are"),
        ("[[cells]]\nkv-dtyp = 'fp8'", r"cells 1: kv-dtyp is not a setting of a cell \(did you mean kv_dtype\?\); known are"),
        ("zzz = 2", r"unknown field zzz; known are"),
        ("batch-size = 2\nconcurrency = 4", r"s\.toml: batch_size and concurrency are two names of one setting; give one of them"),
        ("max_num_tokens = 2\nmax-num-tokens = 4", r"max_num_tokens and max-num-tokens are two names of one setting"),
        ("[[cells]]\nbatch-size = 2\nconcurrency = 4", r"cells 1: concurrency is given twice in it, under two names of one setting"),
        ("[[cells]]\nisl = '16,32'", r"cells 1: isl takes whole numbers, one in a cell, not '16,32'"),
        ("arrivals = { kind = 'gama', rate = 4 }", r"arrivals: 'gama' is no arrival process"),
        ("arrivals = { kind = 'gamma', rate = 'x' }", r"rate is 'x', which is not a number"),
    ):
        (tmp_path / "s.toml").write_text(f'model = "m"\nprecision = "fp8"\n{line}\n')
        with pytest.raises(BenchError, match=said):
            load_spec({}, tmp_path / "s.toml")


def test_cells_that_differ_in_any_setting_stay_apart_in_tables_plots_pages_and_comparisons(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cell = "[[cells]]\nisl = 8\nosl = 4\nconcurrency = 2\nmax-lag-ms = 10000\n"
    (tmp_path / "s.toml").write_text(f'target = "fake"\nmodel = "m"\n{cell}{cell}warmup-seconds = 0.001\n')
    spec = load_spec({}, tmp_path / "s.toml")
    assert [point.label for point in spec.points] == ["b2 8/4", "warmup-seconds=0.001"]
    status, text, _ = run(capsys, "sweep", tmp_path / "s.toml", "--out", tmp_path / "both")
    assert status == 0
    assert re.search(r"^0 +2 +8 +4 .*\n0\.001 +2 +8 +4 ", text, re.MULTILINE), text
    rows = Store(tmp_path / "both").rows()
    assert [row.label for row in rows] == ["m fp32 b2 8/4 warmup-seconds=0.0", "m fp32 b2 8/4 warmup-seconds=0.001"]
    assert [group[0].varied["warmup_seconds"] for group in newest(rows)] == [0.0, 0.001]
    assert {point.names["settings"] for point in points(rows)} == {"warmup seconds 0.0", "warmup seconds 0.001"}
    assert build({"both": rows})["dimensions"]["version"]["names"] == ["newest"]
    alone = [replace(row, extra={}) for row in rows[1:]]
    compared = compare([ResultSet("both", tuple(rows)), ResultSet("alone", tuple(alone))])
    assert [change.label for change in compared.changes] == ["m fp32 b2 8/4 warmup-seconds=0.001"]
    assert compared.left_out == (("m fp32 b2 8/4 warmup-seconds=0.0", "only in both"),)
    cells = measured_cells(rows)[0]
    assert len(cells) == 2


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        (3, "cells must be tables of settings"),
        ([], "cells must be tables of settings"),
        ([{}], "cells must be tables of settings"),
        ([{"isl": [1, 2]}], "cells 1: isl takes whole numbers"),
        ([{"isl": 1}, {"repeats": 2}], "cells 2: repeats is not a setting of a cell"),
        ([{"api_key": "x"}], "cells 1: api_key is not a setting of a cell"),
    ],
)
def test_a_cell_that_cannot_be_is_one_sentence(cells: object, says: str, tmp_path: Path) -> None:
    (tmp_path / SWEEP).write_text(json.dumps({"model": "m", "cells": cells}))
    with pytest.raises(BenchError, match=says):
        load_spec({}, folder=tmp_path, defaults={"isl": (8,)})


def test_the_numbers_of_requests_follow_the_case() -> None:
    closed, opened = SweepSpec.of(batch_size="1,64"), SweepSpec.of(batch_size=64, request_rate="5,20", duration=10)
    assert [(point.spec.workload.num_requests, point.spec.load.warmup) for point in closed.points] == [(8, 2), (256, 64)]
    assert [point.spec.workload.num_requests for point in opened.points] == [50, 200]
    assert {(point.spec.load.concurrency, point.spec.engine.max_batch_size) for point in opened.points} == {(0, 64)}


def test_folders_of_earlier_versions_are_resumed(tmp_path: Path) -> None:
    earlier = {
        "model": "tiny-llama",
        "precision": ["fp32"],
        "batch_size": [1, 8],
        "isl": [32, 128],
        "osl": [32],
        "repeats": 2,
        "policy": "max_utilization",
        "kv_cache_fraction": 0.5,
        "goodput": "ttft:200",
        "request_rate": [],
        "num_requests": None,
    }
    (tmp_path / SWEEP).write_text(json.dumps({name: value for name, value in earlier.items() if value not in ([], None)}))
    spec = load_spec({}, folder=tmp_path)
    assert (len(spec.points), spec.repeats) == (4, 2)
    point = spec.points[0].spec
    assert (point.engine.policy, point.engine.kv_cache_fraction, point.load.slo_ms) == ("max_utilization", 0.5, {"ttft": 200.0})
    spec.save(tmp_path)
    assert load_spec({}, folder=tmp_path) == spec


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pp": "1,0"}, "--pp must be at least 1, not 0"),
        ({"replicas": 0}, "--replicas must be at least 1, not 0"),
        ({"batch_size": "4,0"}, "must be at least 1, not 0"),
        ({"kv_cache_fraction": 1.5}, "--kv-cache-free-gpu-mem-fraction must be at most 1, not 1.5"),
        ({"nonsense": 1}, "unknown field nonsense"),
        ({"burstiness": 0.5}, "--burstiness shapes the gaps of --request-rate"),
        ({"goodput": "ttft"}, "is not understood"),
        ({"repeats": "1,2"}, "--repeats takes one value, not 2"),
        ({"replay": "maybe"}, "takes true or false, not 'maybe'"),
    ],
)
def test_a_bad_knob_is_one_sentence(values: dict[str, object], says: str) -> None:
    with pytest.raises(BenchError, match=r"^[^\n]*$") as error:
        SweepSpec.of(**values)
    assert says in str(error.value)


def test_an_axis_has_a_column_and_its_cells_stay_apart(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    grid = ["--target", "null,fake", "--batch-size", 1, "--isl", 4, "--osl", 2, "--warmup", "0,1", "--max-lag-ms", 10_000]
    code, out, _ = run(capsys, "sweep", *grid, "--out", tmp_path / "s")
    assert code == 0
    assert len({row.key for row in Store(tmp_path / "s").rows()}) == 4
    header = next(line for line in out.splitlines() if line.startswith("target "))
    assert "warmup" in header
    assert "target=fake warmup=1  " in out
    assert max(len(line.rstrip()) for line in out.splitlines() if "tok/s" in line or "ok" in line) <= 80


def test_a_goodput_limit_reads_the_same_in_any_order() -> None:
    one, other = LoadSpec(goodput="tpot:50,ttft:200.0"), LoadSpec(goodput="ttft:200,tpot:50")
    assert one == other
    assert one.slo_ms == {"tpot": 50.0, "ttft": 200.0}


def test_a_row_gives_its_measurement_again() -> None:
    spec = MeasurementSpec(
        engine=EngineSpec(model="m", precision="fp8", weights="dummy", device="cpu", max_batch_size=4, max_seq_len=64, seed=3),
        workload=WorkloadSpec(num_requests=40, isl=16, osl=8, request_rate=4.5, burstiness=0.5, seed=7),
        load=LoadSpec(concurrency=4, warmup=2, warmup_seconds=1.5, goodput="ttft:200", max_lag_ms=100),
    )
    identity = Identity("native", weights_hash="dummy-3", kv_dtype="fp8", places=4, engine=spec.engine)
    cell = replace(cell_of(spec, identity, None), num_requests=40)
    stored = Row.from_flat(Row(cell, Environment(), extra=RowMaker(Environment()).failed(spec, cell, 0, ValueError()).extra).to_flat())
    assert spec_of_row(stored) == replace(spec, engine=replace(spec.engine, kv_dtype="fp8"))


def test_a_target_is_one_file_that_registers_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    registry.target_kind("native")
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))
    register(
        "echo",
        open=lambda spec, on_build: StaticTarget(NullTarget(), Identity("echo", "2", model="parrot", settings={"url": spec.target})),
        matches=lambda address: address.startswith("echo:"),
        shown="echo:HOST",
        names_its_model=True,
    )
    shape = ("--isl", 4, "--osl", 2, "--num-requests", 3, "--out", tmp_path)
    assert run(capsys, "throughput", "--target", "echo:here", *shape)[0] == 0
    cell = Store(tmp_path).rows()[0].cell
    assert (cell.target, cell.target_version, cell.model, cell.settings["url"]) == ("echo", "2", "parrot", "echo:here")
    (tmp_path / "s.toml").write_text('target = "echo:here"\nconcurrency = 1\nnum-requests = 2\n')
    assert run(capsys, "sweep", tmp_path / "s.toml", "--out", tmp_path / "s")[0] == 0
    code, out, _ = run(capsys, "sweep", "--resume", "--out", tmp_path / "s")
    assert (code, out.count("measured before")) == (0, 1), "a target that names its model keeps doing so when resumed"
    assert Store(tmp_path / "s").rows()[0].cell.model == "parrot"
    assert "echo:HOST" in refused(capsys, "throughput", "--target", "nonsense")


def test_the_key_counts_the_gpus_a_cell_used_and_not_those_there_are() -> None:
    cell, here = Cell("m", "fp8", 1, 8, 8), Environment(gpu="H100", gpu_count=1)
    assert cell_key(cell, here) == cell_key(cell, replace(here, gpu_count=8))
    assert cell_key(cell, here) != cell_key(replace(cell, tp=2), here)
    assert (cell.gpus, replace(cell, tp=4, pp=2, replicas=3).gpus) == (1, 24)


def test_a_stored_row_keeps_its_key(tmp_path: Path) -> None:
    recorded = Path(__file__).parents[2] / "results/recorded/h100/llama-3.1-8b-bf16"
    rows = Store(recorded).rows()
    names = {path.name for path in (recorded / "requests").iterdir()}
    assert {f"{row.key}-r{row.repeat}-{row.row_id[:8]}.parquet" for row in rows} == names
    assert all(row.key != cell_key(row.cell, row.environment) for row in rows), "the rule has changed since"
    Store(tmp_path).append(*rows)
    assert [row.key for row in Store(tmp_path).rows()] == [row.key for row in rows]


def test_a_number_that_is_none_is_told_in_plain_words() -> None:
    for value in ("nan", "inf"):
        with pytest.raises(BenchError, match=f"--time-scale must be a finite number, not {value}"):
            SweepSpec.of(dataset="d.jsonl", time_scale=value)
