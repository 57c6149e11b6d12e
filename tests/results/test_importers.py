"""Other tools' files become rows whose figures mean what ours mean."""

from __future__ import annotations

import csv
import json
import math
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_results import importers
from trtllm_results.errors import ResultsError
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store, extend

DATA = Path(__file__).parent / "data"


@pytest.mark.parametrize(
    ("file", "target", "batch", "shape", "rate"),
    [
        ("vllm-serve.json", "vllm", 16, (128, 64), 313.6),
        ("nvidia-throughput.json", "tensorrt-llm", 2048, (128, 128), 12800.0),
        ("aiperf-0.13.0.json", "openai", 4, (32, 10), 220.46766906395555),
        ("guidellm-0.8.1.json", "openai", 4, (51, 16), 347.80),
    ],
)
def test_each_tool_is_recognised_and_read(file: str, target: str, batch: int, shape: tuple[int, int], rate: float, tmp_path: Path) -> None:
    (row,) = importers.read(DATA / file)
    assert (row.cell.target, row.cell.batch, (row.cell.isl, row.cell.osl)) == (target, batch, shape)
    assert row.figures["output_tokens_per_s"] == pytest.approx(rate, rel=1e-3)
    assert row.figures["output_tokens_per_s"] * row.figures["duration_s"] == pytest.approx(row.figures["output_tokens"], rel=0.02)
    store = Store(tmp_path)
    assert extend(store, [row]) == 1, "every figure is one the store knows"
    assert extend(store, importers.read(DATA / file)) == 0, "importing twice adds nothing"


def test_names_are_mapped_by_meaning() -> None:
    (aiperf,) = importers.read(DATA / "aiperf-0.13.0.json")
    assert aiperf.figures["tpot_p50_ms"] == pytest.approx(11.704285388888888), "their inter token latency is one mean a request"
    assert not [name for name in aiperf.figures if name.startswith("itl_")]
    (guidellm,) = importers.read(DATA / "guidellm-0.8.1.json")
    assert guidellm.figures["tpot_mean_ms"] == pytest.approx(5.911544296476576)
    assert guidellm.extra["time_per_output_token_mean_ms"] == pytest.approx(10.285276919603348), "counts the first token: no figure of ours"
    assert guidellm.figures["e2e_p50_ms"] > guidellm.figures["ttft_p50_ms"] + 14 * guidellm.figures["tpot_p50_ms"]
    (vllm,) = importers.read(DATA / "vllm-serve.json")
    assert (vllm.figures["itl_p99_ms"], vllm.figures["tpot_p99_ms"], vllm.figures["e2e_p50_ms"]) == (40.0, 16.0, 860.0)
    assert vllm.cell.request_rate == 0.0, "an infinite rate is a closed loop"


def test_nvidia_report_keeps_layout_and_machine() -> None:
    (row,) = importers.read(DATA / "nvidia-throughput.json")
    assert (row.cell.tp, row.cell.precision, row.cell.kv_dtype, row.environment.gpu) == (2, "fp8", "fp8", "NVIDIA H100 80GB HBM3")
    assert row.figures["output_tokens_per_s_per_gpu"] == 6400.0
    assert row.figures["ttft_p95_ms"] == 1100.0


def test_nvidias_names_of_precisions_become_ours(tmp_path: Path) -> None:
    content = json.loads((DATA / "nvidia-throughput.json").read_text())
    content["engine"]["quantization"] = "W4A16_AWQ"
    (tmp_path / "report.json").write_text(json.dumps(content))
    (row,) = importers.read(tmp_path / "report.json")
    assert (row.cell.precision, row.cell.kv_dtype) == ("int4", "fp8")
    (told,) = importers.read(DATA / "vllm-serve.json", overrides={"precision": "FP8_BLOCK_SCALES", "kv_dtype": "FP8"})
    assert (told.cell.precision, told.cell.kv_dtype) == ("fp8_block", "fp8")
    content["engine"] |= {"quantization": None, "dtype": "torch.bfloat16"}
    (tmp_path / "report.json").write_text(json.dumps(content))
    assert importers.read(tmp_path / "report.json")[0].cell.precision == "bf16"


def test_nvidias_log_says_what_its_report_says() -> None:
    (log,) = importers.read(DATA / "nvidia-throughput-log.txt")
    (report,) = importers.read(DATA / "nvidia-throughput.json")
    assert (log.cell.tp, log.cell.batch, log.cell.precision, log.cell.kv_dtype) == (2, 2048, "fp8", "fp8")
    assert (log.environment.gpu, log.cell.target_version) == ("NVIDIA H100 80GB HBM3", "1.2.0")
    for name in ("output_tokens_per_s", "output_tokens_per_s_per_gpu", "ttft_p95_ms"):
        assert log.figures[name] == report.figures[name]
    assert (log.figures["e2e_max_ms"], log.figures["tpot_p50_ms"], log.figures["duration_s"]) == (14500.0, 81.0, 30.0)
    (old,) = importers.read(DATA / "nvidia-throughput-log-0.14.txt")
    assert (old.cell.model, old.cell.target_version, old.cell.num_requests) == ("meta-llama/Llama-2-7b-hf", "0.14.0", 3000)
    assert old.figures["output_tokens_per_s"] == pytest.approx(23405.927)
    assert old.figures["duration_s"] == pytest.approx(16.4061)
    assert not [name for name in old.figures if name.startswith(("ttft", "tpot", "e2e"))]


def test_several_reports_of_one_log_are_several_rows(tmp_path: Path) -> None:
    text = (DATA / "nvidia-throughput-log.txt").read_text()
    rows = imported(tmp_path, text + text.replace("Max Runtime Batch Size: 2048", "Max Runtime Batch Size: 64"), "run.log")
    assert [row.cell.batch for row in rows] == [2048, 64]


def test_inference_perf() -> None:
    (row,) = importers.read(DATA / "inference-perf-stage.json")
    assert (row.cell.batch, row.cell.request_rate, row.cell.isl, row.cell.osl, row.cell.num_requests) == (0, 6.0, 280, 186, 360)
    figures = row.figures
    assert (figures["ttft_p50_ms"], figures["tpot_p99_ms"], figures["e2e_max_ms"]) == pytest.approx((60.0, 13.0, 17_000.0))
    assert (figures["goodput_requests_per_s"], figures["goodput_ratio"], figures["duration_s"]) == (2.5, 0.5, 71.2)
    assert not [name for name in figures if name.startswith("itl") or name == "e2e_p99_ms"]
    assert row.extra["normalized_time_per_output_token_mean_ms"] == pytest.approx(22.0), "counts the first token: no figure of ours"
    assert row.warnings == ("4 of 360 requests failed",)


def test_stages_of_inference_perf_are_read_and_not_their_mixture(tmp_path: Path) -> None:
    stage = json.loads((DATA / "inference-perf-stage.json").read_text())
    mixture = stage | {"load_summary": {"count": 720}}
    concurrent = stage | {"load_summary": stage["load_summary"] | {"concurrency": 16}}
    for name, content in (("stage_0", stage), ("stage_1", concurrent), ("summary", mixture)):
        (tmp_path / f"{name}_lifecycle_metrics.json").write_text(json.dumps(content))
    rows = importers.read(tmp_path)
    assert [(row.cell.batch, row.cell.request_rate) for row in rows] == [(0, 6.0), (16, 0.0)]
    (alone,) = importers.read(tmp_path / "summary_lifecycle_metrics.json")
    assert alone.cell.settings == {"loads": "all of a run together"}


def test_llmperf(tmp_path: Path) -> None:
    (row,) = importers.read(DATA / "llmperf-summary.json")
    assert (row.cell.model, row.cell.batch, row.cell.isl, row.cell.osl) == ("meta-llama/Llama-2-7b", 2, 550, 150)
    assert row.started_at == "2025-10-14T13:32:29+00:00"
    assert (row.figures["duration_s"], row.figures["requests_per_s"], row.figures["output_tokens"]) == pytest.approx((30.0, 0.3, 1350.0))
    assert (row.figures["ttft_p99_ms"], row.figures["e2e_mean_ms"]) == (500.0, 3100.0)
    assert not [name for name in row.figures if name.startswith(("tpot", "itl"))], "its inter token latency counts the first token"
    assert row.extra["inter_token_latency_mean_ms"] == 21.0
    assert row.warnings == ("1 of 10 requests failed",)
    content = json.loads((DATA / "llmperf-summary.json").read_text())
    other = content | {"additional_sampling_params_temperature": 0.0, "timestamp": 1760448999}
    assert keys([row, *imported(tmp_path, other)]) == 2
    assert keys([row, *imported(tmp_path, content | {"timestamp": 1760448999, "results_ttft_s_mean": 0.4})]) == 1


def test_our_own_report_gives_back_the_row_itself(tmp_path: Path) -> None:
    row = Row(Cell("tiny-llama", "fp32", 1, 8, 8), Environment(cpu="x"), figures={"output_tokens_per_s": 5.0}, warnings=("slow",))
    record = {name: value for name, value in row.to_flat().items() if value not in ("", None)}
    report = {
        "engine": {},
        "world_info": {},
        "performance": {},
        "record": {**record, "figures": dict(row.figures), "warnings": list(row.warnings)},
    }
    (tmp_path / "report.json").write_text(json.dumps(report))
    (back,) = importers.read(tmp_path / "report.json")
    assert (back.key, back.row_id, back.figures["output_tokens_per_s"], back.warnings) == (row.key, row.row_id, 5.0, ("slow",))


def test_what_the_file_does_not_say_can_be_set() -> None:
    (row,) = importers.read(DATA / "vllm-serve.json", overrides={"precision": "fp8", "tp": "2", "model": "llama-3.1-8b", "gpu": "H100"})
    assert (row.cell.precision, row.cell.tp, row.cell.model, row.environment.gpu) == ("fp8", 2, "llama-3.1-8b", "H100")
    assert row.figures["output_tokens_per_s_per_gpu"] == pytest.approx(313.6 / 2)
    for overrides, message in (
        ({"modle": "red"}, r"not a cell field \(did you mean model\?\)"),
        ({"tp": "two"}, "tp is a number"),
        ({"replicas": "0"}, "replicas is a number of at least 1"),
    ):
        with pytest.raises(ResultsError, match=message):
            importers.read(DATA / "vllm-serve.json", overrides=overrides)


def test_json_lines_of_vllm(tmp_path: Path) -> None:
    one = json.loads((DATA / "vllm-serve.json").read_text())
    (tmp_path / "runs.jsonl").write_text("\n".join(json.dumps({**one, "request_rate": rate}) for rate in (1.0, 2.0)))
    assert [row.cell.request_rate for row in importers.read(tmp_path / "runs.jsonl")] == [1.0, 2.0]


def test_every_module_of_an_importer_is_asked() -> None:
    modules = {path.stem for path in Path(importers.__file__).parent.glob("[!_]*.py")} - {"files"}
    assert {one.__name__.rpartition(".")[2] for one in importers.MODULES} == modules


def test_bad_files_are_one_sentence(tmp_path: Path) -> None:
    def read(text: str, **more: str) -> None:
        (tmp_path / "x.json").write_text(text)
        importers.read(tmp_path / "x.json", **more)  # type: ignore[arg-type]

    with pytest.raises(ResultsError, match="cannot read"):
        importers.read(tmp_path / "none.json")
    with pytest.raises(ResultsError, match="not a JSON file"):
        read("hello")
    with pytest.raises(ResultsError, match="not a result file of"):
        read('{"a": 1}')
    with pytest.raises(ResultsError, match="no importer for 'wrk'"):
        read("{}", tool="wrk")
    with pytest.raises(ResultsError, match="looks like a vllm result but lacks 'completed'"):
        read('{"output_throughput": 1, "total_input_tokens": 1, "duration": 1}')
    (tmp_path / "x.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ResultsError, match="not a JSON file"):
        importers.read(tmp_path / "x.json")


def result_of_vllm(**changes: object) -> dict[str, object]:
    """A result with the keys of vLLM's serve.py, in its order."""
    one: dict[str, object] = json.loads((DATA / "vllm-serve.json").read_text())
    return {**one, "request_rate": 5.0, "failed": 0, "completed": 100, "max_concurrency": None, **changes}


def imported(folder: Path, content: object, name: str = "result.json") -> list[Row]:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return importers.read(path)


def keys(rows: list[Row]) -> int:
    return len({row.key for row in rows})


def test_goodput_under_both_of_vllms_names(tmp_path: Path) -> None:
    (misspelt,) = imported(tmp_path, {**result_of_vllm(), "request_goodput:": 4.2})
    (named,) = imported(tmp_path, result_of_vllm(request_goodput=0.0))
    (none,) = imported(tmp_path, result_of_vllm(request_goodput=None))
    assert misspelt.figures["goodput_requests_per_s"] == 4.2
    assert named.figures["goodput_requests_per_s"] == 0.0, "no request met the limits: a figure, no placeholder"
    assert "goodput_requests_per_s" not in none.figures


@pytest.mark.parametrize(
    "changes",
    [
        {"request_rate": 6.0},
        {"burstiness": 0.5},
        {"max_concurrency": 8},
        {"backend": "vllm"},
        {"total_input_tokens": 20_000},
        {"total_output_tokens": 10_000},
        {"max_num_seqs": 64},
        {"ramp_up_strategy": "linear", "ramp_up_start_rps": 1, "ramp_up_end_rps": 10},
        {"tp": "2"},
        {"tensor_parallel_size": 2},
        {"dataset_name": "sharegpt"},
        {"version": "0.11.0"},
        {"enable_prefix_caching": False},
        {"compilation_config": {"level": 3}},
        {"kv_cache_dtype": "fp8"},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_vllm_runs_that_differ_in_a_setting_are_two_cells(changes: dict[str, object], tmp_path: Path) -> None:
    assert keys(imported(tmp_path, [result_of_vllm(), result_of_vllm(**changes)])) == 2
    measured = {
        "mean_ttft_ms": 121.0,
        "p99.9_itl_ms": 50.0,
        "spec_decode_acceptance_rate": 61.2,
        "max_output_tokens_per_s": 401.0,
        "label": "b",
    }
    assert keys(imported(tmp_path, [result_of_vllm(), result_of_vllm(**measured)])) == 1, "a result is not a setting"


def test_a_sweep_of_vllm_is_read_from_its_folder_list_and_table(tmp_path: Path) -> None:
    runs = [result_of_vllm(run_number=number, max_num_seqs=seqs, ttfts=[0.1]) for seqs in (32, 64) for number in range(2)]
    for one in runs:
        place = tmp_path / "sweep" / f"SERVE--max_num_seqs={one['max_num_seqs']}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"run={one['run_number']}.json").write_text(json.dumps(one))
        (place / "warmup.json").write_text(json.dumps(one | {"run_number": -1}))
        (place / "summary.json").write_text(json.dumps([run for run in runs if run["max_num_seqs"] == one["max_num_seqs"]]))
    header = list(runs[0])
    table = [",".join(["", *header])] + [
        ",".join([str(n), *("" if one[k] is None else str(one[k]) for k in header)]) for n, one in enumerate(runs)
    ]
    for rows in (
        importers.read(tmp_path / "sweep"),
        imported(tmp_path, runs),
        imported(tmp_path, "\n".join([*table, ""]).replace("[0.1]", "1"), "summary.csv"),
    ):
        assert [(row.cell.settings["max_num_seqs"], row.repeat) for row in rows] == [(32, 0), (32, 1), (64, 0), (64, 1)]
        assert keys(rows) == 2
    with pytest.raises(ResultsError, match=r"warmup\.json: is the warm-up of a sweep"):
        importers.read(place / "warmup.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ResultsError, match="has no result file of"):
        importers.read(tmp_path / "empty")


def test_what_is_no_result_in_a_folder_is_passed_over_and_told(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(result_of_vllm()))
    (tmp_path / "a.pytorch.json").write_text(json.dumps([{"benchmark": {"name": "vLLM benchmark"}, "model": {}, "metric": {"name": "x"}}]))
    (tmp_path / "config.json").write_text('{"tp": 2}')
    told: list[str] = []
    assert len(importers.read(tmp_path, passed_over=told.append)) == 1
    assert ["copy of a result for PyTorch's" in one for one in told] == [True, False]
    assert "config.json is not a result file of" in told[1]
    (tmp_path / "a.json").unlink()
    with pytest.raises(ResultsError, match=r"a\.pytorch\.json is vLLM's copy"):
        importers.read(tmp_path)


def test_all_tools_results_of_a_folder_are_read_and_each_run_once(tmp_path: Path) -> None:
    """AIPerf writes each phase's result, warm-up included, below the run's, and all of it as records and as a table too."""
    run = tmp_path / "deep" / "aiperf"
    for folder in (run, run / "phases" / "warmup", run / "phases" / "profiling"):
        folder.mkdir(parents=True)
        shutil.copy(DATA / "aiperf-0.13.0.json", folder / "profile_export_aiperf.json")
    shutil.copy(DATA / "aiperf-0.13.0.csv", run / "profile_export_aiperf.csv")
    shutil.copy(DATA / "aiperf-0.13.0-records.jsonl", run / "profile_export.jsonl")
    (tmp_path / "serve.json").write_text(json.dumps(result_of_vllm()))
    (tmp_path / "sglang.jsonl").write_text(json.dumps(SGLANG))
    (tmp_path / "table").mkdir()
    shutil.copy(DATA / "guidellm-0.4.0.csv", tmp_path / "table" / "guide.csv")
    told: list[str] = []
    rows = importers.read(tmp_path, passed_over=told.append)
    assert [row.extra["definitions"] for row in rows] == ["vllm", "sglang", "aiperf", "guidellm", "guidellm"]
    assert [row.repeat for row in rows] == [0] * 5, "a warm-up and a second form are no repeats"
    (sentence,) = told
    assert "profile_export.jsonl" in sentence
    assert "warmup/profile_export_aiperf.json" in sentence
    assert len(importers.read(run / "phases" / "warmup")) == 1, "its own folder may be named"
    shutil.copy(DATA / "vllm-serve.json", run / "another.json")
    assert [row.extra["definitions"] for row in importers.read(run)] == ["aiperf", "vllm"], "another tool's result beside it is not a part"


def test_runs_of_one_cell_are_its_repeats(tmp_path: Path) -> None:
    rows = imported(tmp_path, "".join(json.dumps(result_of_vllm(duration=seconds)) for seconds in (20.0, 21.0)))
    assert [row.repeat for row in rows] == [0, 1], "results written behind one another without a line end"


def test_placeholders_are_no_measurements(tmp_path: Path) -> None:
    """vLLM's mean of no values is 0.0; a percentile of none may be NaN."""
    spoilt = {"mean_ttft_ms": 0.0, "median_ttft_ms": 0.0, "p99_ttft_ms": float("nan"), "mean_tpot_ms": None, "output_throughput": -1}
    (row,) = imported(tmp_path, result_of_vllm(**spoilt))
    assert not {"ttft_mean_ms", "ttft_p50_ms", "ttft_p99_ms", "tpot_mean_ms", "output_tokens_per_s"} & set(row.figures)
    assert row.figures["tpot_p50_ms"] == 11.5
    (row,) = imported(tmp_path, result_of_vllm(completed=0, failed=100, total_output_tokens=0, output_throughput=0.0))
    assert (row.status, row.reason) == ("failed", "no request completed")
    assert "output_tokens_per_s" not in row.figures
    assert "output_tokens" not in row.figures


def test_a_run_with_failures_says_so() -> None:
    (row,) = importers.read(DATA / "vllm-serve.json")
    assert (row.status, row.warnings) == ("ok", ("2 of 100 requests failed",))
    (row,) = importers.read(DATA / "guidellm-0.6.0-failures.json")
    assert row.warnings == ("4 of 20 requests failed",)
    assert row.figures["output_tokens_per_s"] == pytest.approx(160 / 0.4408703, rel=1e-4)


def test_times_are_utc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """vLLM writes the machine's local time without its zone: this machine's is taken."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        (row,) = imported(tmp_path, result_of_vllm(date="20260115-101500"))
        assert row.started_at == "2026-01-15T01:15:00+00:00"
        assert row.extra["date"] == "20260115-101500"
        assert importers.read(DATA / "aiperf-0.13.0.json")[0].started_at == "2026-11-21T02:46:04+00:00"
        (row,) = imported(tmp_path, result_of_vllm(date="yesterday"))
        assert row.started_at == ""
        assert importers.read(DATA / "guidellm-0.4.0.json")[0].started_at == "2026-11-30T04:22:42+00:00", "seconds since 1970 have no zone"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_vllms_offline_benchmarks(tmp_path: Path) -> None:
    throughput = {
        "model_id": "m",
        "elapsed_time": 4.0,
        "num_requests": 100,
        "total_num_tokens": 25_600,
        "requests_per_second": 25.0,
        "tokens_per_second": 6400.0,
    }
    (row,) = imported(tmp_path, throughput)
    assert (row.figures["total_tokens_per_s"], row.figures["duration_s"], row.cell.model) == (6400.0, 4.0, "m")
    latency = {
        "model_id": "m",
        "avg_latency": 0.5,
        "std_latency": 0.1,
        "latencies": [0.4, 0.6],
        "percentiles": {"10": 0.42, "50": 0.5, "90": 0.58, "99": 0.598},
    }
    (row,) = imported(tmp_path, latency)
    assert (row.figures["e2e_mean_ms"], row.figures["e2e_p99_ms"], row.figures["e2e_max_ms"]) == (500.0, 598.0, 600.0)
    assert row.cell.model == "m"
    del throughput["model_id"]
    assert imported(tmp_path, throughput)[0].cell.model == "", "versions before 0.33 did not name it"


def test_nvidias_fork_of_vllms_script_names_its_server(tmp_path: Path) -> None:
    (row,) = imported(tmp_path, result_of_vllm(user_throughput=30.0))
    assert row.cell.target == "tensorrt-llm"


SGLANG = {
    "tag": None,
    "backend": "sglang",
    "dataset_name": "random",
    "request_rate": 8.0,
    "max_concurrency": 16,
    "random_input_len": 128,
    "random_output_len": 64,
    "random_range_ratio": 1.0,
    "server_info": {"model_path": "llama-8b", "tp_size": 2, "quantization": "fp8", "kv_cache_dtype": "auto", "version": "0.5.23"},
    "duration": 12.5,
    "completed": 100,
    "total_input_tokens": 12_700,
    "total_output_tokens": 6400,
    "request_throughput": 8.0,
    "output_throughput": 512.0,
    "total_throughput": 1528.0,
    "mean_e2e_latency_ms": 900.0,
    "median_e2e_latency_ms": 880.0,
    "p95_ttft_ms": 55.0,
    "median_ttft_ms": 38.0,
    "mean_tpot_ms": 0.0,
    "p99_itl_ms": 30.0,
    "accept_length": None,
}


def test_sglang_serving(tmp_path: Path) -> None:
    others = [{**SGLANG, "max_concurrency": 32}, {**SGLANG, "request_rate": float("inf"), "request_goodput": 3.0, "slo_attainment": 0.9}]
    rows = imported(tmp_path, "\n".join(json.dumps(one) for one in (SGLANG, *others)))
    first, second, third = rows
    cell = first.cell
    assert (cell.model, cell.tp, cell.precision, cell.target, cell.target_version) == ("llama-8b", 2, "fp8", "sglang", "0.5.23")
    assert (cell.batch, cell.request_rate, cell.isl, cell.osl) == (16, 8.0, 128, 64)
    assert (first.figures["ttft_p50_ms"], first.figures["ttft_p95_ms"], first.figures["itl_p99_ms"]) == (38.0, 55.0, 30.0)
    assert "tpot_mean_ms" not in first.figures
    assert second.cell.batch == 32
    assert (third.cell.request_rate, third.figures["goodput_ratio"]) == (0.0, 0.9)
    assert keys(rows) == 3
    assert keys(imported(tmp_path, [SGLANG, {**SGLANG, "random_range_ratio": 0.5}])) == 2
    (detailed,) = imported(tmp_path, {**SGLANG, "errors": [""] * 100 + ["Service Unavailable"] * 3})
    assert (detailed.cell.num_requests, detailed.warnings) == (103, ("3 of 103 requests failed",))


def test_requests_of_aiperf_that_failed_were_asked_for_too(tmp_path: Path) -> None:
    """Else repeats of which some had failures would be other cells."""
    report = json.loads((DATA / "aiperf-0.13.0.json").read_text())
    asked = int(report["request_count"]["avg"])
    failing = {**report, "request_count": {"unit": "requests", "avg": asked - 3}, "error_request_count": {"unit": "requests", "avg": 3}}
    (whole,), (failed,) = imported(tmp_path, report), imported(tmp_path, failing)
    assert (whole.cell.num_requests, failed.cell.num_requests) == (asked, asked)
    assert failed.warnings == (f"3 of {asked} requests failed",)
    assert whole.key == failed.key


@pytest.mark.parametrize("tool", ["sglang", "aiperf", "guidellm"])
def test_goodput_within_other_limits_is_another_cell(tool: str, tmp_path: Path) -> None:
    def measured(ttft: float, e2e: float) -> Row:
        aiperf, guidellm = (json.loads((DATA / file).read_text()) for file in ("aiperf-0.13.0.json", "guidellm-0.8.1.json"))
        aiperf["input_config"]["slos"] = {"time_to_first_token": ttft, "request_latency": e2e}
        guidellm["benchmarks"][0]["config"]["slo"] = {"ttft_ms": ttft, "tpot_ms": None, "e2el_ms": e2e}
        sglang = {**SGLANG, "goodput_slos_ms": {"ttft": ttft, "e2el": e2e}, "request_goodput": 3.0, "slo_attainment": 0.9}
        (row,) = imported(tmp_path, {"aiperf": aiperf, "guidellm": guidellm, "sglang": sglang}[tool])
        return row

    first, second = measured(75.0, 900.0), measured(80.0, 900.0)
    assert first.settings["goodput"] == "e2e:900,ttft:75"
    assert first.key != second.key


def test_sglang_batches(tmp_path: Path) -> None:
    offline = {
        "backend": "engine",
        "successful_requests": 10,
        "total_latency": 2.0,
        "total_input_tokens": 1000,
        "total_output_tokens": 500,
        "request_throughput": 5.0,
        "output_throughput": 250.0,
        "total_throughput": -1,
    }
    (row,) = imported(tmp_path, offline)
    assert row.figures["output_tokens_per_s"] == 250.0
    assert "total_tokens_per_s" not in row.figures
    engine = {
        "run_name": "default",
        "batch_size": 4,
        "input_len": 100,
        "output_len": 11,
        "prefill_latency": 0.1,
        "median_decode_latency": 0.02,
        "total_latency": 0.3,
        "overall_throughput": 1480.0,
    }
    server = {
        "run_name": "default",
        "batch_size": 4,
        "input_len": 100,
        "output_len": 11,
        "latency": 0.4,
        "last_ttft": 0.15,
        "acc_length": -1,
    }
    first, second = imported(tmp_path, [engine, server])
    assert first.figures["tpot_mean_ms"] == pytest.approx(20.0)
    assert first.figures["output_tokens_per_s"] == pytest.approx(44 / 0.3)
    assert (second.figures["e2e_max_ms"], second.figures["ttft_max_ms"]) == (400.0, 150.0)
    assert "ttft_mean_ms" not in second.figures
    assert first.key != second.key


@pytest.mark.parametrize(("file", "batch", "rate"), [("genai-perf-0.0.8.json", 0, 4.0), ("genai-perf-0.0.16.json", 2, 0.0)])
def test_genai_perf(file: str, batch: int, rate: float) -> None:
    (row,) = importers.read(DATA / file)
    assert (row.cell.model, row.cell.batch, row.cell.request_rate, row.cell.isl, row.cell.osl) == ("exact", batch, rate, 31, 10)
    assert (row.figures["ttft_mean_ms"], row.figures["tpot_p50_ms"], row.figures["e2e_p90_ms"]) == pytest.approx((52.0, 5.1, 105.1))
    assert row.figures["duration_s"] == pytest.approx(20 / 18.5)
    (table,) = importers.read(DATA / file.replace(".json", ".csv"))
    assert (table.run_id, table.figures["e2e_p90_ms"], table.figures["output_tokens_per_s"]) == ("import-genai-perf", 105.1, 185.0)


def test_genai_perf_measures_no_first_token_where_nothing_is_streamed() -> None:
    (row,) = importers.read(DATA / "genai-perf-0.0.8-not-streamed.json")
    assert not [name for name in row.figures if name.startswith(("ttft", "tpot"))]
    assert row.figures["e2e_p50_ms"] == 103.0


def test_aiperf_table_and_records() -> None:
    (table,) = importers.read(DATA / "aiperf-0.13.0.csv")
    (report,) = importers.read(DATA / "aiperf-0.13.0.json")
    for name in ("ttft_p99_ms", "tpot_p50_ms", "output_tokens_per_s", "completed_requests", "input_tokens"):
        assert table.figures[name] == pytest.approx(report.figures[name], abs=0.005)
    (records,) = importers.read(DATA / "aiperf-0.13.0-records.jsonl")
    assert (records.figures["completed_requests"], records.figures["failed_requests"]) == (6, 1), "without the warm-up"
    assert records.figures["ttft_p50_ms"] == 53.5, "of 51, 52, 53, 54, 56, 57"
    assert records.figures["duration_s"] == pytest.approx(0.714)
    assert records.figures["output_tokens_per_s"] == pytest.approx(60 / 0.714)
    assert records.started_at == "2026-11-30T00:53:20+00:00"


def test_credentials_of_a_foreign_file_are_not_kept(tmp_path: Path) -> None:
    aiperf = json.loads((DATA / "aiperf-0.13.0.json").read_text())
    aiperf["input_config"]["endpoint"] |= {"urls": ["http://bob:secret@host:8000/v1?key=secret"], "extra": {"auth_token": "secret"}}
    guidellm = json.loads((DATA / "guidellm-0.4.0.json").read_text())
    guidellm["benchmarks"][0]["config"]["backend"]["target"] = "http://bob:secret@host:8000"
    vllm = result_of_vllm(openai_api_key="secret", hf_token="secret")
    llmperf = json.loads((DATA / "llmperf-summary.json").read_text()) | {"user_api_key": "secret"}
    for content in (aiperf, guidellm, vllm, llmperf):
        row, *_ = imported(tmp_path, content)
        assert "secret" not in json.dumps(row.to_flat(), default=str)
    assert imported(tmp_path, aiperf)[0].extra["url"] == "http://host:8000/v1"


def test_a_phase_that_warms_up_is_not_the_load(tmp_path: Path) -> None:
    content = json.loads((DATA / "aiperf-0.13.0.json").read_text())
    content["input_config"]["phases"].insert(0, {"name": "warmup", "kind": "warmup", "type": "concurrency", "concurrency": 1})
    content["input_config"]["endpoint"]["api_key"] = "sk-secret"
    content["request_latency"]["unit"] = "sec"
    (row,) = imported(tmp_path, content)
    assert row.cell.batch == 4
    assert "secret" not in json.dumps(row.to_flat(), default=str)
    assert row.figures["e2e_mean_ms"] == pytest.approx(167_491.23, rel=1e-6)


@pytest.mark.parametrize(("file", "batches", "rates"), [("guidellm-0.2.1", (0, 0), (10.0, 20.0)), ("guidellm-0.4.0", (2, 4), (0.0, 0.0))])
def test_guidellm_of_each_form(file: str, batches: tuple[int, int], rates: tuple[float, float]) -> None:
    rows = importers.read(DATA / f"{file}.json")
    assert tuple(row.cell.batch for row in rows) == batches
    assert tuple(row.cell.request_rate for row in rows) == rates
    for row in rows:
        assert row.cell.model == "exact"
        assert (row.figures["completed_requests"], row.figures["output_tokens"]) == (12, 120)
        assert 50 < row.figures["ttft_p50_ms"] < 80
        assert 4.5 < row.figures["tpot_mean_ms"] < 6
        assert row.figures["e2e_p50_ms"] > 95


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("strategy", {"rampup_duration": 5.0}),
        ("strategy", {"max_concurrency": 8, "type_": "poisson", "rate": 4.0}),
        ("backend", {"request_format": "/v1/completions"}),
        ("backend", {"stream": False}),
        ("backend", {"max_tokens": 64}),
        ("backend", {"extras": {"body": {"temperature": 0.0}, "headers": {"Authorization": "Bearer sk-secret"}}}),
        ("requests", {"data": "['prompt_tokens=80,output_tokens=10']"}),
        ("requests", {"preprocessors": ["GenerativeColumnMapper", "GenerativeTextCompletionsRequestFormatter"]}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else value,
)
def test_guidellms_runs_that_differ_in_a_setting_are_two_cells(part: str, changes: dict[str, Any], tmp_path: Path) -> None:
    content = json.loads((DATA / "guidellm-0.4.0.json").read_text())
    one, other = (json.loads(json.dumps(content["benchmarks"][0])) for _ in range(2))
    other["config"][part] |= changes
    rows = imported(tmp_path, content | {"benchmarks": [one, other]})
    assert keys(rows) == 2
    assert "secret" not in json.dumps(rows[1].to_flat(), default=str)


def test_what_vllms_client_held_back_is_told(tmp_path: Path) -> None:
    (row,) = imported(tmp_path, result_of_vllm(max_concurrency=8, mean_client_queue_time_ms=120.5))
    assert row.warnings == ("latencies count from sending: 120.5 ms (mean) that requests waited for --max-concurrency are left out",)
    assert row.extra["client_queue_mean_ms"] == 120.5
    (detailed,) = imported(tmp_path, result_of_vllm(max_concurrency=8, queue_times=[0.0, 0.5]))
    assert detailed.warnings == ("latencies count from sending: 250 ms (mean) that requests waited for --max-concurrency are left out",)
    for without in (
        {"mean_client_queue_time_ms": 0.0},
        {"mean_client_queue_time_ms": 0.2},
        {"queue_times": ["x"]},
        {"mean_client_queue_time_ms": 120.5, "request_rate": "inf"},
    ):
        assert imported(tmp_path, result_of_vllm(max_concurrency=8, **without))[0].warnings == ()


def test_what_was_in_flight_when_guidellms_time_was_up_did_not_fail(tmp_path: Path) -> None:
    content = json.loads((DATA / "guidellm-0.4.0.json").read_text())
    content["benchmarks"] = content["benchmarks"][:1]
    content["benchmarks"][0]["metrics"]["request_totals"] |= {"incomplete": 3, "total": 15}
    (row,) = imported(tmp_path, content)
    assert (row.figures["completed_requests"], row.figures["failed_requests"], row.cell.num_requests) == (12, 0, 15)
    assert (row.status, row.warnings, row.extra["unfinished_requests"]) == ("ok", (), 3)


@pytest.mark.parametrize(
    ("name", "batch", "rate", "settings"),
    [
        ("concurrent@6", 6, 0.0, {"strategy": "concurrent"}),
        ("constant@12.50", 0, 12.5, {"strategy": "constant"}),
        ("poisson@20.00", 0, 20.0, {"strategy": "poisson"}),
        ("throughput@32", 0, 0.0, {"strategy": "throughput", "max_concurrency": 32}),
        ("throughput@unlimited", 0, 0.0, {"strategy": "throughput"}),
        ("synchronous", 1, 0.0, {"strategy": "synchronous"}),
        ("incremental@2.0", 0, 0.0, {"strategy": "incremental"}),
    ],
)
def test_the_load_of_guidellms_table_is_in_its_strategys_name(
    name: str, batch: int, rate: float, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Of version 0.8, whose profile no longer lists the strategies."""
    lines = list(csv.reader((DATA / "guidellm-0.4.0.csv").read_text().splitlines()))
    profile, strategy = (
        next(n for n, pair in enumerate(zip(*lines[:2], strict=True)) if pair[1] == title) for title in ("Profile", "Strategy")
    )
    for line in lines[3:]:
        line[profile], line[strategy] = '{"kind": "poisson"}', name
    with (tmp_path / "a.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(lines)
    (row, _) = importers.read(tmp_path / "a.csv")
    assert (row.cell.batch, row.cell.request_rate) == (batch, rate)
    assert {key: row.cell.settings[key] for key in ("strategy", "max_concurrency") if key in row.cell.settings} == settings


def test_rates_of_guidellm_without_its_warm_up_are_its_own(tmp_path: Path) -> None:
    """In a run of GuideLLM 0.8.1 with a warm-up of 20%, whole requests over the rest of the time made 517.9 tokens/s of its 500.4."""
    report = json.loads((DATA / "guidellm-0.8.1.json").read_text())
    (benchmark,) = report["benchmarks"]
    (whole,) = imported(tmp_path, report)
    assert whole.figures["requests_per_s"] == pytest.approx(24 / benchmark["duration"])
    for name, rate in (("requests_per_second", 19.0), ("output_tokens_per_second", 310.0), ("tokens_per_second", 1300.0)):
        benchmark["metrics"].setdefault(name, {})["successful"] = {"mean": rate}
    names = ("requests_per_s", "output_tokens_per_s", "total_tokens_per_s")
    (uncut,) = imported(tmp_path, {**report, "benchmarks": [benchmark | {"warmup_duration": 0.0, "cooldown_duration": 0.0}]})
    assert [uncut.figures[name] for name in names] == [whole.figures[name] for name in names]
    (cut,) = imported(tmp_path, {**report, "benchmarks": [benchmark | {"warmup_duration": 0.2, "cooldown_duration": 0.0}]})
    assert [cut.figures[name] for name in names] == [19.0, 310.0, 1300.0]


def test_guidellms_table_says_what_its_report_says() -> None:
    for table, report in zip(importers.read(DATA / "guidellm-0.4.0.csv"), importers.read(DATA / "guidellm-0.4.0.json"), strict=True):
        assert table.key == report.key
        assert table.figures == pytest.approx(report.figures)
    (old,) = importers.read(DATA / "guidellm-0.2.1.csv")
    assert (old.cell.model, old.cell.request_rate, old.figures["completed_requests"]) == ("exact", 20.0, 12)
    assert 50 < old.figures["ttft_p99_ms"] < 100


def test_mlperf_logs() -> None:
    (summary,) = importers.read(DATA / "mlperf-6.0.17-server-summary.txt")
    (detail,) = importers.read(DATA / "mlperf-6.0.17-server-detail.txt")
    assert summary.cell.request_rate == detail.cell.request_rate == 40.0
    for row in (summary, detail):
        assert row.figures["output_tokens_per_s"] == pytest.approx(372.7, rel=1e-3), "not 9.9e-07, which the detailed log has too"
        assert row.figures["ttft_p99_ms"] == pytest.approx(11.941873)
        assert row.figures["tpot_mean_ms"] == pytest.approx(0.491894) or row is detail
        assert row.warnings == ("LoadGen calls the run INVALID: early stopping not satisfied",)
    assert (detail.started_at, detail.cell.num_requests) == ("2026-11-30T04:22:11+00:00", 100)
    (offline,) = importers.read(DATA / "mlperf-6.0.17-offline-summary.txt")
    assert (offline.figures["output_tokens_per_s"], offline.figures["requests_per_s"]) == (8206.61, 820.661)
    assert offline.warnings == (
        "LoadGen calls the run INVALID: Increase expected QPS so the loadgen pre-generates a larger (coalesced) query.",
    )
    (single,) = importers.read(DATA / "mlperf-6.0.17-singlestream-summary.txt")
    assert (single.cell.batch, single.warnings, single.figures["e2e_p90_ms"]) == (1, (), pytest.approx(12.08278))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"experiments": [], "version": "1", "service_kind": "openai", "endpoint": "x"}, "is Perf Analyzer's raw record of requests"),
        ([{"benchmark": {"name": "vLLM benchmark"}, "model": {}, "metric": {"name": "latency"}}], "is vLLM's copy of a result for PyTorch"),
        ({"duration": 1, "total_input_tokens": 5, "total_input_sequences": 2}, "is a vLLM benchmark of a pooling model"),
        ({"run_number": 0, "error_type": "OSError", "error": "no"}, "is vLLM's note of a run that failed"),
        ({"timeslices": [{}]}, "is AIPerf's metrics by time slice"),
        ([{"ttft_s": 1, "number_total_tokens": 5, "request_output_throughput_token_per_s": 1}], "is LLMPerf's record of single requests"),
        ({"load_summary": {}, "failures": {}, "successes": {"rate": 1}}, "is what inference-perf read of the server's own metrics"),
        ([{"start_time": 1, "end_time": 2, "request": "x", "info": {}}], "is inference-perf's record of single requests"),
        ('{"traceEvents":[\n{"name":', "is a trace for Chrome's viewer"),
        ('[{ "seq_id" : 0, "qsl_idx" : 1, "data" : "00" }]', "is MLPerf's log of answers"),
        ({**SGLANG, "duration": "long"}, "result.json: duration is 'long'; it must be a number"),
        ({**SGLANG, "completed": 1.5}, "completed is 1.5; it must be a whole number"),
        ({**SGLANG, "total_output_tokens": 1e300}, "total_output_tokens is 1e[+]300; it must be below 1e[+]15"),
        ({**SGLANG, "backend": {"a": 1}}, "backend is {'a': 1}; it must be text"),
        ([SGLANG, 5], "result 2 has not the fields"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1}\n{"b": ', "line 2 contains invalid JSON"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_named(content: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=message) as caught:
        imported(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert "validation" not in str(caught.value)


def test_other_forms_of_a_result_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"benchmarks\.yaml is a YAML file; import the JSON or CSV"):
        imported(tmp_path, "benchmarks:\n- a\n", "benchmarks.yaml")


def test_another_tools_file_is_not_forced_through() -> None:
    with pytest.raises(ResultsError, match="is not a result file of guidellm; leave --tool out"):
        importers.read(DATA / "vllm-serve.json", tool="guidellm")


RESULTS = sorted(path for path in DATA.iterdir() if path.suffix in (".json", ".csv", ".jsonl", ".txt"))
WRONG = st.sampled_from([None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**400, "x", "", [], {}, [[]], {"a": {}}, "é" * 20_000])


@given(file=st.sampled_from(RESULTS), place=st.integers(0, 10_000), wrong=WRONG)
@settings(max_examples=120, deadline=None)
def test_a_wrong_value_anywhere_is_read_or_refused_in_a_sentence(
    file: Path, place: int, wrong: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / file.name
    if file.suffix == ".json":
        content = json.loads(file.read_text())
        leaves = list(holders(content))
        holder, key = leaves[place % len(leaves)]
        holder[key] = wrong
        path.write_text(json.dumps(content))
    else:
        lines = file.read_text().splitlines()
        fields = lines[place % len(lines)].split(",")
        fields[place % len(fields)] = str(wrong)[:100]
        lines[place % len(lines)] = ",".join(fields)
        path.write_text("\n".join(lines))
    read_or_refused(path)


@given(file=st.sampled_from(RESULTS), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_file_cut_anywhere_is_read_or_refused_in_a_sentence(file: Path, share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = file.read_bytes()
    path = tmp_path_factory.mktemp("cut") / file.name
    path.write_bytes(content[: int(len(content) * share)])
    read_or_refused(path)


def holders(value: Any) -> Iterator[tuple[Any, Any]]:
    """(object or list, key) of every value below `value`."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from holders(value[key])


def read_or_refused(path: Path) -> None:
    try:
        rows = importers.read(path)
    except ResultsError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        assert len(str(error)) < 600  # noqa: PT017
    else:
        assert all(math.isfinite(value) and value >= 0 for row in rows for value in row.checked().figures.values())


def test_files_of_one_cell_are_imported_as_its_repeats(tmp_path: Path) -> None:
    from trtllm_bench.__main__ import main

    for number, seconds in enumerate((20.0, 21.0)):
        (tmp_path / f"{number}.json").write_text(json.dumps(result_of_vllm(duration=seconds)))
    arguments = ["results", "import", str(tmp_path / "store"), str(tmp_path / "0.json")]
    assert main(arguments) == main([*arguments, str(tmp_path / "1.json")]) == main(arguments) == 0
    assert [row.repeat for row in Store(tmp_path / "store").rows()] == [0, 1]


@pytest.mark.parametrize(
    "file", ["aiperf-0.13.0.csv", "guidellm-0.4.0.csv", "mlperf-6.0.17-server-summary.txt", "nvidia-throughput-log.txt"]
)
def test_a_number_of_a_table_or_log_that_was_cut_in_two_is_not_taken(file: str, tmp_path: Path) -> None:
    text = (DATA / file).read_bytes()
    path = tmp_path / file
    whole = importers.read(DATA / file)
    for cut in range(len(text) * 9 // 10, len(text)):
        path.write_bytes(text[:cut])
        if text[cut - 1 : cut] in (b"\n", b"\r"):
            continue
        with pytest.raises(ResultsError, match=r"the last line has no end|must be|lacks"):
            importers.read(path)
    path.write_bytes(text)
    assert importers.read(path)[0].figures == whole[0].figures
