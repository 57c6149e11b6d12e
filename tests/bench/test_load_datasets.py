"""`prepare-dataset` and `trace info` through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trtllm_bench.__main__ import main
from trtllm_workloads.dataset import read
from trtllm_workloads.open_workload import data_folder

AZURE = str(data_folder("samples") / "azure_conversation_400.csv")
MOONCAKE = str(data_folder("samples") / "mooncake_conversation_200.jsonl")
NORM = ["token-norm-dist", "--num-requests", "40", "--input-mean", "64", "--input-stdev", "9", "--output-mean", "16", "--output-stdev", "0"]


def run(*arguments: str) -> int:
    return main(list(arguments))


def test_nvidias_flags_give_nvidias_file_byte_identically(tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("a", "b", "c"))
    assert run("prepare-dataset", "--output", str(first), *NORM) == 0
    assert run("prepare_dataset", "--random_seed", "420", "--output", str(second), *NORM) == 0
    assert run("prepare-dataset", "--random-seed", "421", "--output", str(other), *NORM) == 0
    assert first.read_bytes() == second.read_bytes() != other.read_bytes()
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert [list(row) for row in rows] == [["task_id", "input_ids", "output_tokens"]] * 40
    assert {row["output_tokens"] for row in rows} == {16}


def test_standard_output_carries_nothing_but_the_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["token-unif-dist", "--num-requests", "5", "--input-min", "2", "--input-max", "4", "--output-min", "1", "--output-max", "3"]
    assert run("prepare-dataset", "--stdout", "--vocab-size", "50", *flags) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 5
    assert all(2 <= len(row["input_ids"]) <= 4 and max(row["input_ids"]) < 50 for row in rows)


def test_arrivals_and_adapters_are_carried(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    flags = ["--request-rate", "5", "--num-loras", "3", "--lora-pick", "round-robin"]
    assert run("prepare-dataset", "-o", str(path), *flags, "random", "--num-requests", "9", "--isl", "8", "--osl", "uniform:1,4") == 0
    workload, _ = read(path)
    assert len(workload.arrival_s) == 9
    assert workload.lora_id is not None
    assert workload.lora_id.tolist() == [0, 1, 2] * 3


def test_range_ratio_spreads_fixed_lengths(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    random = ["random", "--num-requests", "300", "--isl", "100", "--osl", "10", "--random-range-ratio", "0.2"]
    assert run("prepare-dataset", "-o", str(path), *random) == 0
    workload, _ = read(path)
    assert (workload.input_tokens.min(), workload.input_tokens.max()) == (80, 120)


def test_a_trace_becomes_a_dataset_with_its_times_and_prefixes(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    assert run("prepare-dataset", "-o", str(path), "trace", MOONCAKE, "--num-requests", "10", "--time-scale", "0.5") == 0
    workload, _ = read(path)
    assert workload.input_tokens[:2].tolist() == [6758, 7322]
    assert (workload.requests()[0].prompt[:512] == workload.requests()[1].prompt[:512]).all()
    assert len(workload.arrival_s) == 10


@pytest.mark.parametrize(("flags", "told"), [((), 1), (("--replay",), 0), (("--request-rate", "900"), 0)])
def test_arrival_times_that_nothing_asks_for_are_said_to_be_unused(
    flags: tuple[str, ...], told: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('requests = 4\ninput = 8\noutput = 2\narrivals = "poisson:900"\n')
    grid = ["--target", "null", "--dataset", str(path), "--max-lag-ms", "10000", *flags]
    assert run("throughput", *grid) == 0
    assert run("sweep", *grid, "--batch-size", "1,2", "--out", str(tmp_path / "s")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count(f"the arrival times of {path} are not used") == 2 * told
    assert said.count("--replay keeps the times") == 2 * told


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["prepare-dataset", "random", "--num-requests", "3", "--isl", "gauss:3", "--osl", "4"], "no length distribution"),
        (["prepare-dataset", "random", "--num-requests", "0", "--isl", "3", "--osl", "4"], "ask for at least 1"),
        (["prepare-dataset", "--request-rate", "-1", *NORM], "rate is -1"),
        (["prepare-dataset", "--num-loras", "2", "--lora-pick", "best", *NORM], "'best' is not a way to choose"),
        (["prepare-dataset", "trace", "no-such-trace"], "no shipped workload of that name"),
        (["prepare-dataset", "--request-rate", "1", "--arrivals", "constant:1", *NORM], "give one of them"),
        (
            ["prepare-dataset", "random", "--num-requests", "3", "--isl", "zipf:1", "--osl", "zipf:1", "--random-range-ratio", "0.1"],
            "both --isl and --osl are distributions",
        ),
        (["trace", "info", "no-such-file"], "cannot read trace"),
        (["trace", "info", AZURE, "--plot", "x.docx"], "must end in .png or .svg"),
        (["trace", "info", AZURE, "--max-input", "1"], "no row is left"),
        (["trace", "info", AZURE, "--window", "5", "5"], "is empty"),
        (["trace", "info", AZURE, "--sample", "1.5"], "must lie in"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_3(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 3
    error = capsys.readouterr().err
    assert complaint in error
    assert len(error.strip().splitlines()) == 1


def test_trace_info_fits_a_terminal_and_says_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("trace", "info", MOONCAKE) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "--jitter spreads them" in out
    assert "an endless prefix cache would hit" in out


def test_trace_info_as_json_and_as_a_drawing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing = tmp_path / "t.png"
    assert run("trace", "info", AZURE, "--json", "--plot", str(drawing)) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["requests"] == 400
    assert figures["prefix_hit_blocks"] is None
    assert drawing.read_bytes()[:4] == b"\x89PNG"


def test_bad_rows_are_counted_in_the_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text(Path(AZURE).read_text() + "nonsense,1,2\n")
    assert run("trace", "info", str(path)) == 3
    assert "line 402: TIMESTAMP is 'nonsense'" in capsys.readouterr().err
    assert run("trace", "info", str(path), "--skip-bad-rows") == 0
    assert "400 requests, 1 bad row left out" in capsys.readouterr().out
    assert run("prepare-dataset", "-o", str(tmp_path / "d.jsonl"), "trace", str(path), "--skip-bad-rows") == 0
    assert "400 requests, 1 bad row left out" in capsys.readouterr().err
    assert run("prepare-dataset", "trace", str(tmp_path / "d.jsonl"), "--skip-bad-rows", "--num-requests", "2") == 0
    assert capsys.readouterr().err == ""


def test_arrival_processes_are_written_into_a_dataset(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    assert run("prepare-dataset", "--arrivals", "rate-series:0/50,2", "-o", str(path), *NORM) == 0
    times = read(path)[0].arrival_s
    assert ((times % 4) >= 2).all()


def test_a_trace_of_one_request_has_a_time_though_no_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("".join(Path(AZURE).read_text().splitlines(keepends=True)[:2]))
    assert run("trace", "info", str(path)) == 0
    out = capsys.readouterr().out
    assert "1 request\n  all at one instant: no rate" in out
    assert "nan" not in out


BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n" + "5,GPT-4,47,18,65,C\n45,GPT-4,108,0,108,C\n" * 200


@pytest.mark.parametrize(
    "command",
    [
        ["throughput", "--replay", "--time-scale", "0.001"],
        ["latency"],
        ["sweep", "--batch-size", "2", "--out"],
        ["search", "--goodput", "ttft:500", "--duration", "0.2", "--repeats", "1", "--highest", "200", "--start", "150"],
    ],
    ids=lambda command: command[0],
)
def test_a_trace_with_failed_requests_runs_without_them(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "burst.csv"
    path.write_text(BURST)
    more = [str(tmp_path / "store")] if command[-1] == "--out" else []
    flags = [*command, *more, "--target", "null", "--dataset", str(path)]
    assert run(*flags) == 3
    assert "line 3: Response tokens is 0; it must be at least 1 (leave such rows out with --skip-bad-rows" in capsys.readouterr().err
    assert run(*flags, "--skip-bad-rows") == 0
    if command[0] in ("throughput", "latency"):
        assert "note: 200 rows of" in capsys.readouterr().out


def test_a_burstiness_beside_another_process_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("kept")
    assert run("prepare-dataset", "-o", str(path), "--arrivals", "poisson:10", "--burstiness", "0.25", *NORM) == 3
    assert "write --arrivals gamma:RATE,0.25" in capsys.readouterr().err
    assert run("prepare-dataset", "-o", str(path), "--burstiness", "0.25", *NORM) == 3
    assert path.read_text() == "kept"
