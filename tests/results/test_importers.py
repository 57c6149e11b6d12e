"""Other tools' files become rows whose figures mean what ours mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trtllm_results import importers
from trtllm_results.errors import ResultsError
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Cell, Row
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
    for overrides, message in (({"colour": "red"}, "not a cell field"), ({"tp": "two"}, "tp is a number")):
        with pytest.raises(ResultsError, match=message):
            importers.read(DATA / "vllm-serve.json", overrides=overrides)


def test_json_lines_of_vllm(tmp_path: Path) -> None:
    one = json.loads((DATA / "vllm-serve.json").read_text())
    (tmp_path / "runs.jsonl").write_text("\n".join(json.dumps({**one, "request_rate": rate}) for rate in (1.0, 2.0)))
    assert [row.cell.request_rate for row in importers.read(tmp_path / "runs.jsonl")] == [1.0, 2.0]


def test_bad_files_are_one_sentence(tmp_path: Path) -> None:
    def read(text: str, **more: str) -> None:
        (tmp_path / "x.json").write_text(text)
        importers.read(tmp_path / "x.json", **more)  # type: ignore[arg-type]

    with pytest.raises(ResultsError, match="Cannot read"):
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
