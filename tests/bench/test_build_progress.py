"""Progress in a log."""

from __future__ import annotations

import pytest

from trtllm_bench import build_progress


def test_only_a_long_stage_has_a_line_in_a_log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(build_progress, "monotonic", lambda: now[0])
    with build_progress.build_progress() as report:
        report("compile", 0, 1)
        report("compile", 1, 1)
        report("weights", 0, 2)
        now[0] = 60.0
        report("weights", 2, 2)
    assert capsys.readouterr().err == "weights: 2 done\n"
