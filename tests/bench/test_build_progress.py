"""Progress in a log."""

from __future__ import annotations

import pytest

from trtllm_bench.build_progress import build_progress


def test_an_error_stands_alone_and_earlier_stages_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with build_progress() as report:
        report("compile", 1, 1)
        report("weights", 0, 2)
        assert capsys.readouterr().err == "compile: 1 done\n"
        report("weights", 2, 2)
        assert not capsys.readouterr().err
    assert capsys.readouterr().err == "weights: 2 done\n"

    def broken() -> None:
        with build_progress() as report:
            report("compile", 1, 1)
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        broken()
    assert not capsys.readouterr().err
