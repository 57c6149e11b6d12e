"""`search` through the command line, against the scripted server: four places, 58 ms a request, so 69 requests/s at most."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trtllm_bench.__main__ import main
from trtllm_results.store import Store

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
