"""`search` through the command line, against the scripted server: four places, 58 ms a request, so 69 requests/s at most."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trtllm_bench.__main__ import main
from trtllm_bench.load.saturation import Saturation
from trtllm_bench.load.saturation import Search as SaturationSearch
from trtllm_bench.measure.search import Settings, answer, longest_good_s, missed
from trtllm_bench.spec.measurement import MeasurementSpec
from trtllm_results.store.table import Store
from trtllm_workloads.synthetic import fixed

pytestmark = pytest.mark.usefixtures("virtual_time")

FAKE = ["search", "--target", "fake", "--isl", "8", "--osl", "20", "--max-batch-size", "4", "--max-lag-ms", "1000", "--attainment", "0.8"]


def test_the_limit_of_a_known_server_is_bracketed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "r.json"
    quick = ["--duration", "1.5", "--tolerance", "0.8", "--repeats", "1", "--start", "25", "--report-json", str(report)]
    assert main([*FAKE, "--goodput", "e2e:200", *quick, "--out", str(tmp_path / "store")]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines()[:-1])) <= 80
    found = json.loads(report.read_text())
    assert 20 <= found["passed"] < 85
    assert found["failed"] > 55
    assert found["probes"][0]["load"] == 25
    assert "lies between" in found["answer"]
    assert len(Store(tmp_path / "store").rows()) == sum(probe["runs"] for probe in found["probes"])


def test_limits_no_load_can_meet_end_in_1(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--by", "concurrency", "--start", "2", "--repeats", "1"]
    assert main([*FAKE, "--goodput", "ttft:1", *quick]) == 1
    assert "no concurrency tried meets these limits; the lowest tried was 1 at a time" in capsys.readouterr().out


def test_a_rate_no_lone_request_could_meet_is_not_halved_for_ever(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "r.json"
    assert main([*FAKE, "--goodput", "ttft:1", "--repeats", "1", "--duration", "0.5", "--report-json", str(report)]) == 1
    assert "no request rate meets these limits: requests sent one at a time miss them" in capsys.readouterr().out
    probes = json.loads(report.read_text())["probes"]
    assert probes[0]["load"] > 50  # as many requests as could decide, in half a second
    assert [probe["load"] for probe in probes[1:]] == [0]
    assert probes[1]["requests"] < 24 < probes[0]["requests"], "a few are enough where all of them miss"


def test_a_load_far_too_high_is_not_served_to_its_end(tmp_path: Path) -> None:
    """Of 200 requests/s the server serves 69, so the last of 176 and more would end after 2.5 s and those that meet 120 ms by 1.1 s."""
    flags = [
        "--goodput",
        "e2e:120",
        "--attainment",
        "0.95",
        "--duration",
        "0.5",
        "--start",
        "200",
        "--max-seconds",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert main([*FAKE, *flags]) in (0, 1)
    first = Store(tmp_path).rows()[0]
    assert first.cell.num_requests >= 176
    assert 1.5 < first.figures["duration_s"] < 2.2
    assert any("given up: too late to meet any limit" in warning for warning in first.warnings)


def test_a_time_that_is_given_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At 350/s a run of half a second fails, and of requests sent one at a time only 24 fit."""
    flags = [*FAKE, "--goodput", "e2e:120", "--attainment", "0.95", "--duration", "0.5"]
    assert main([*flags, "--start", "350", "--max-seconds", "4", "--out", str(tmp_path / "a")]) == 1
    took = [row.figures["duration_s"] for row in Store(tmp_path / "a").rows()]
    assert len(took) > 1
    assert sum(took) < 4.1
    assert "; --max-seconds 4 was over before one met them; give more, or a lower --start" in capsys.readouterr().out
    assert main([*flags, "--start", "10", "--max-seconds", "20", "--out", str(tmp_path / "b")]) == 0
    assert len(Store(tmp_path / "b").rows()) == 1
    assert "; --max-seconds 20 was over before one missed them; give more, or a higher --start" in capsys.readouterr().out


def test_a_time_that_is_given_holds_for_concurrency_too(tmp_path: Path) -> None:
    flags = [
        "--goodput",
        "e2e:120",
        "--by",
        "concurrency",
        "--start",
        "2",
        "--attainment",
        "0.95",
        "--max-seconds",
        "12",
        "--out",
        str(tmp_path),
    ]
    assert main([*FAKE, *flags]) == 0
    took = [row.figures["duration_s"] for row in Store(tmp_path).rows()]
    assert len(took) > 1
    assert sum(took) < 12.5


@pytest.mark.parametrize(
    ("flags", "cure"),
    [
        (["--start", "100"], "a --duration such as 0.33, so that"),
        (["--start", "20", "--duration", "1"], "a higher --start, such as 528, so"),
    ],
)
def test_a_time_in_which_no_run_fits_is_refused(flags: list[str], cure: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FAKE, "--goodput", "e2e:120", "--attainment", "0.95", "--max-seconds", "4", *flags]) == 3
    said = capsys.readouterr().err
    assert "--max-seconds is 4 and the first run takes " in said
    assert cure in said


def test_a_search_that_is_stopped_says_what_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trtllm_bench.measure.search._print_probe", stop)
    flags = ["--goodput", "e2e:120", "--duration", "1", "--start", "50"]
    assert main([*FAKE, *flags, "--out", str(tmp_path)]) == 130
    assert f"stopped by Ctrl-C; 1 run is kept in {tmp_path}; run the command again" in capsys.readouterr().err
    assert len(Store(tmp_path).rows()) == 1
    assert main([*FAKE, *flags]) == 130
    assert "; nothing new is kept; run the command again" in capsys.readouterr().err


def test_how_long_a_good_request_may_take() -> None:
    assert longest_good_s({"ttft": 200, "tpot": 50}, 11) == pytest.approx(0.7)
    assert longest_good_s({"ttft": 200, "tpot": 50, "e2e": 500}, 11) == pytest.approx(0.5)
    assert longest_good_s({"tpot": 50}, 11) == longest_good_s({"ttft": 50}, 11) == float("inf")


def test_later_turns_of_a_run_that_missed_its_limits_have_times() -> None:
    workload = replace(
        fixed(10, 4, 4, vocab_size=100), arrival_s=np.array([0.0, 2.0, *[np.nan] * 7, 1.0]), after=np.array([-1, -1, *[0] * 7, -1])
    )
    run = missed(workload)
    assert run.good.tolist() == [False] * 9
    assert run.arrivals_s.tolist() == [0.0, 1.0, *[2.0] * 8]
    assert missed(fixed(2, 4, 4, vocab_size=100)).arrivals_s.tolist() == [0.0, 0.0]


def test_a_dataset_too_short_to_decide_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"input_ids":[1,2],"output_tokens":3}\n' * 5)
    flags = ["search", "--target", "fake", "--max-lag-ms", "1000", "--dataset", str(data), "--goodput", "e2e:100"]
    assert main(flags) == 3
    assert "the dataset has 5 requests and a run at 9 requests/s needs" in capsys.readouterr().err


def test_a_dataset_of_fewer_than_the_first_few_is_enough_where_fewer_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text('{"input_ids":[1,2],"output_tokens":3}\n' * 20)
    flags = ["search", "--target", "fake", "--max-lag-ms", "1000", "--dataset", str(data), "--goodput", "ttft:1"]
    assert main([*flags, "--attainment", "0.5", "--duration", "0.5"]) == 1
    assert "requests sent one at a time miss them" in capsys.readouterr().out


def test_warm_up_seconds_are_sent_and_not_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    open_loop = ["--request-rate", "50", "--num-requests", "40", "--warmup-seconds", "0.3", "--max-lag-ms", "1000"]
    flags = ["--target", "fake", "--isl", "8", "--osl", "2", *open_loop, "--out", str(tmp_path)]
    assert main(["throughput", *flags]) == 0
    (row,) = Store(tmp_path).rows()
    assert row.cell.num_requests == 40
    assert 10 <= row.figures["completed_requests"] <= 35
    assert row.cell.settings["warmup_seconds"] == 0.3
    assert main(["throughput", *flags[:-2], "--warmup-seconds", "30"]) == 1
    assert "all 40 requests were due within the first 30 s, which --warmup-seconds leaves out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--goodput", "ttft"], "is not understood"),
        (["--goodput", "ttft:100", "--start", "0"], "--start is 0"),
        (["--goodput", "ttft:100", "--by", "concurrency", "--start", "1.5"], "must be whole numbers"),
        (["--goodput", "ttft:100", "--attainment", "1"], "--attainment is 1"),
        (["--goodput", "ttft:100", "--tolerance", "0"], "--tolerance"),
    ],
)
def test_bad_input(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FAKE, *arguments]) == 3
    assert complaint in capsys.readouterr().err


def test_an_answer_wider_than_asked_says_so() -> None:
    settings = Settings(MeasurementSpec(), SaturationSearch(tolerance=0.1), True, 1.0, 20.0)
    wide = answer(settings, Saturation(10.0, 13.0, (), 0.95, reached=False))
    assert "lies between 10 and 13 requests/s" in wide
    assert "the tolerance of 10% was not reached: the interval is 30% wide; give --max-seconds more" in wide
    hour = answer(settings, Saturation(10.0, 13.0, (), 0.95, reached=False, needed_s=3612.0))
    assert hour.endswith("the interval is 30% wide; --max-seconds 3600 --duration 300 would likely reach it")
    minutes = answer(settings, Saturation(10.0, 13.0, (), 0.95, reached=False, needed_s=186.0))
    assert minutes.endswith("; --max-seconds 190 would likely reach it")
    assert "tolerance" not in answer(settings, Saturation(10.0, 10.5, (), 0.95))
