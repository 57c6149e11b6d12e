"""`throughput` and `latency` against a scripted server whose truth is known, and the report's names and arithmetic."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from trtllm_bench.__main__ import main
from trtllm_bench.measure.report import nvidia_report, print_report
from trtllm_results.metrics.requests import RequestLog
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store

TTFT_MS, ITL_MS = 20.0, 2.0
"""The `fake` target's script."""

NVIDIA_FIELDS = {
    "engine": {"model", "model_path", "engine_dir", "version", "backend", "dtype", "kv_cache_dtype", "quantization"},
    "machine": {"name", "memory.total", "clocks.mem"},
    "world_info": {
        *("tp_size", "pp_size", "ep_size", "world_size", "max_batch_size", "max_num_tokens"),
        *("scheduling_policy", "kv_cache_percentage", "issue_rate"),
    },
    "request_info": {"num_requests", "avg_num_concurrent_requests", "avg_input_length", "avg_output_length"},
    "performance": {
        *("total_latency_ms", "avg_request_latency_ms", "request_throughput_req_s", "system_output_throughput_tok_s"),
        *("system_total_throughput_tok_s", "output_throughput_per_user_tok_s", "output_throughput_per_gpu_tok_s"),
        "request_latency_percentiles_ms",
    },
    "streaming_metrics": {
        *("token_output_speed_tok_s", "avg_ttft_ms", "avg_tpot_ms"),
        *("tpot_percentiles", "ttft_percentiles", "gen_tps_percentiles"),
    },
}
"""Names that TensorRT-LLM's `bench/dataclasses/reporting.py` writes."""


def measure(path: Path, *arguments: object) -> dict[str, Any]:
    target = ["--target", "fake", "--max-lag-ms", 1000, "--isl", 8, "--osl", 6, "--report-json", path]
    assert main([str(argument) for argument in (*arguments, *target)]) == 0
    report: dict[str, Any] = json.loads(path.read_text())
    return report


@pytest.mark.parametrize("command", ["throughput", "latency"])
def test_what_was_measured_is_written_before_it_is_printed(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("trtllm_bench.measure.single.print_report", full)
    report, out = tmp_path / "r.json", tmp_path / "store"
    flags = ["--target", "null", "--isl", "4", "--osl", "2", "--num-requests", "4", "--report-json", str(report), "--out", str(out)]
    assert main([command, *flags]) == 1
    assert f"; the measurement is kept; results: {out}, report: {report}" in capsys.readouterr().err
    assert len(Store(out).rows()) == 1
    assert json.loads(report.read_text())["request_info"]["num_requests"] == 4
    assert main([command, *flags[:-4]]) == 1
    assert "kept" not in capsys.readouterr().err


def test_a_report_that_would_be_a_folder_is_refused_before_anything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["throughput", "--target", "null", "--num-requests", "4", "--report-json", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert (said.out, "Is a directory" in said.err) == ("", True)


def test_latency_reports_the_servers_truth_under_nvidias_names(tmp_path: Path) -> None:
    report = measure(tmp_path / "r.json", "latency", "--num-requests", 5)
    assert {section: set(report[section]) & names for section, names in NVIDIA_FIELDS.items()} == NVIDIA_FIELDS
    assert report["streaming_metrics"]["avg_tpot_ms"] == pytest.approx(ITL_MS, rel=0.01)
    assert report["streaming_metrics"]["ttft_percentiles"]["minimum"] == pytest.approx(TTFT_MS, abs=8)
    assert report["request_info"]["num_requests"] == 5
    assert report["request_info"]["avg_num_concurrent_requests"] <= 1.001
    assert report["record"]["batch"] == 1
    assert report["record"]["figures"]["completed_requests"] == 5


def test_throughput_holds_the_concurrency_asked_for(tmp_path: Path) -> None:
    report = measure(tmp_path / "r.json", "throughput", "--num-requests", 24, "--concurrency", 6)
    assert 4 < report["request_info"]["avg_num_concurrent_requests"] < 6.01
    assert "streaming_metrics" not in report
    assert measure(tmp_path / "s.json", "throughput", "--num-requests", 4, "--streaming")["streaming_metrics"]


def test_an_open_loop_sends_at_the_rate_asked_for(tmp_path: Path) -> None:
    report = measure(tmp_path / "r.json", "throughput", "--num-requests", 100, "--request-rate", 200, "--goodput", "ttft:1000,e2e:0.001")
    assert report["world_info"]["issue_rate"] == pytest.approx(200, rel=0.4)
    assert report["record"]["request_rate"] == 200
    assert report["record"]["figures"]["goodput_ratio"] == 0


def test_an_infinite_rate_is_all_at_once_and_valid_json(tmp_path: Path) -> None:
    """vLLM's default; JSON has no infinity."""
    report = measure(tmp_path / "r.json", "throughput", "--num-requests", 3, "--request-rate", "inf", "--out", tmp_path / "store")
    assert report["record"]["request_rate"] == 0
    assert "Infinity" not in (tmp_path / "store" / "results.json").read_text()


def test_any_arrival_process_can_be_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its mean rate is the cell's, the process itself is a setting, so that two processes of one rate are two cells."""
    report = measure(tmp_path / "r.json", "throughput", "--num-requests", 120, "--arrivals", "on-off:400,0.1,0.1")
    assert json.loads(report["record"]["settings"])["arrivals"] == "on-off:400,0.1,0.1"
    assert report["record"]["request_rate"] == pytest.approx(200, rel=0.3)
    assert report["world_info"]["issue_rate"] == pytest.approx(report["record"]["request_rate"], rel=0.1)
    assert "target fake" in capsys.readouterr().out


def test_it_is_said_that_there_is_no_telemetry_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure(tmp_path / "r.json", "throughput", "--num-requests", 3)
    assert "no GPU took part, so there are no power and clock figures" in capsys.readouterr().out
    grid = [
        "sweep",
        "--target",
        "null",
        "--batch-size",
        "1",
        "--isl",
        "4",
        "--osl",
        "4",
        "--max-lag-ms",
        "1000",
        "--out",
        str(tmp_path / "s"),
    ]
    assert main(grid) == 0
    assert capsys.readouterr().out.count("no GPU took part") == 1


def test_a_dataset_with_fewer_requests_than_asked_for_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"task_id": 0, "input_ids": [1], "output_tokens": 1}\n')
    assert main(["throughput", "--target", "null", "--dataset", str(path), "--num-requests", "9"]) == 0
    assert "d.jsonl has 1 of the 9 requests asked for" in capsys.readouterr().out


def test_out_appends_to_a_store_with_its_requests(tmp_path: Path) -> None:
    for _ in range(2):
        measure(tmp_path / "r.json", "throughput", "--num-requests", 3, "--out", tmp_path / "store")
    rows = Store(tmp_path / "store").rows()
    assert len(rows) == 2
    table = Store(tmp_path / "store").read_side("requests", rows[0])
    assert table is not None
    assert table.num_rows == 3


def test_a_dataset_is_sent_as_it_is(tmp_path: Path) -> None:
    lines = [{"task_id": n, "input_ids": [1] * (n + 1), "output_tokens": 2 * (n + 1)} for n in range(3)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    arguments = [
        "throughput",
        "--target",
        "fake",
        "--max-lag-ms",
        1000,
        "--dataset",
        tmp_path / "d.jsonl",
        "--report-json",
        tmp_path / "r.json",
    ]
    assert main([str(argument) for argument in arguments]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["request_info"]["avg_input_length"] == 2
    assert report["request_info"]["avg_output_length"] == 4
    assert (report["record"]["isl"], report["record"]["osl"], report["record"]["workload"]) == (2, 4, "d")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "no request"),
        ('{"task_id": 0, "input_ids": [1], "output_tokens": 1}\n{oops\n', "line 2"),
        ('{"task_id": 0, "output_tokens": 1}\n', "line 1"),
        ('{"task_id": 0, "input_ids": [1], "output_tokens": 0}\n', "line 1"),
    ],
)
def test_a_bad_dataset_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, says: str) -> None:
    (tmp_path / "d.jsonl").write_text(content)
    assert main(["throughput", "--target", "null", "--dataset", str(tmp_path / "d.jsonl")]) == 3
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["throughput", "--request-rate", "-1"], "--request-rate must be above 0"),
        (["throughput", "--dataset", "x", "--isl", "3"], "two sources of lengths"),
        (["latency", "--engine-dir", "x", "--model", "y"], "--engine-dir already says"),
        (["latency", "--target", "other"], "unknown target 'other'"),
        (["throughput", "--request-rate", "nan"], "--request-rate must be above 0"),
        (["sweep", "--request-rate", "4,inf"], "--request-rate must be a finite number"),
        (["throughput", "--max-lag-ms", "-1"], "--max-lag-ms"),
        (["throughput", "--goodput", "ttft"], "ttft:200"),
        (["throughput", "--arrivals", "on-off:400,0.1"], "on-off needs off_s"),
        (["throughput", "--arrivals", "bursts:4"], "no arrival process; there are at-once"),
        (["throughput", "--arrivals", "constant:4", "--request-rate", "4"], "each say when requests go out"),
        (["throughput", "--dataset", "chat", "--replay", "--request-rate", "4"], "each say when requests go out"),
        (["throughput", "--replay"], "--replay needs --dataset"),
        (["throughput", "--time-scale", "0.5"], "--time-scale multiplies a dataset's times"),
        (["throughput", "--burstiness", "0.5"], "--burstiness shapes the gaps of --request-rate"),
        (["sweep", "--arrivals", "constant:4", "--request-rate", "4"], "each say when requests go out"),
        (["sweep", "--arrivals", "linear-ramp:1,x,3"], "end is 'x'"),
    ],
)
def test_bad_measurements_are_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    assert main([*arguments, *([] if "--target" in arguments else ["--target", "null"])]) == 3
    assert says in capsys.readouterr().err


def test_an_unwritable_report_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    arguments = ["--target", "fake", "--osl", "2", "--num-requests", "1", "--report-json", str(tmp_path / "file" / "r.json")]
    assert main(["latency", *arguments]) == 1
    assert "cannot write the report" in capsys.readouterr().err


def test_report_arithmetic_on_a_log_by_hand() -> None:
    log = RequestLog(
        intended_s=np.array([0.0, 0.0]),
        sent_s=np.array([0.0, 1.0]),
        first_token_s=np.array([0.5, 2.0]),
        end_s=np.array([2.5, 4.0]),
        input_tokens=np.array([10, 20]),
        output_tokens=np.array([5, 1]),
        ok=np.array([True, True]),
    )
    row = Row(cell=Cell("m", "fp32", 2, 15, 3, tp=2), environment=Environment(gpu="G", memory_clock_limit_mhz=2619))
    report = nvidia_report(row, log, {}, streaming=True)
    performance = report["performance"]
    assert performance["total_latency_ms"] == 4000
    assert performance["avg_request_latency_ms"] == pytest.approx((2500 + 3000) / 2)
    assert performance["system_output_throughput_tok_s"] == pytest.approx(6 / 4)
    assert performance["system_total_throughput_tok_s"] == pytest.approx(36 / 4)
    assert performance["output_throughput_per_gpu_tok_s"] == pytest.approx(6 / 4 / 2)
    assert performance["output_throughput_per_user_tok_s"] == pytest.approx((5 / 2.5 + 1 / 3) / 2)
    assert performance["request_latency_percentiles_ms"]["p50"] == pytest.approx(3000)
    assert report["streaming_metrics"]["tpot_percentiles"] | {"p50": 0} == {
        **dict.fromkeys(("p90", "p95", "p99", "maximum"), 500.0),
        "p50": 0,
        "minimum": 0.0,
        "average": 250.0,
    }
    assert report["world_info"]["issue_rate"] == pytest.approx(2.0)
    assert report["machine"]["clocks.mem"] == pytest.approx(2.619)


def test_the_first_line_says_when_outputs_were_shorter_than_asked(capsys: pytest.CaptureFixture[str]) -> None:
    short = "outputs were shorter than asked: 28.0 tokens per request instead of 128.0"
    figures = {"output_tokens_per_s": 7099.0, "lag_p50_ms": 0.1, "lag_p99_ms": 0.95, "lag_max_ms": 18.0}
    print_report(
        Row(Cell("m", "bf16", 8, 128, 128, request_rate=4.0), Environment(cpu="test"), warnings=(short,), figures=figures),
        Console(width=80),
    )
    lines = capsys.readouterr().out.splitlines()
    assert short in lines[0]
    assert any("driver sent late by" in line and "p99 0.95" in line for line in lines)
