"""The command line as tests call it: what it said, and that a mistake is one sentence."""

from __future__ import annotations

import pytest

from trtllm_bench.__main__ import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, standard output, standard error; never a traceback."""
    code = main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out, said.err


def refused(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 3) -> str:
    """Runs a command that must fail with one sentence; returns the sentence."""
    found, _, err = run(capsys, *arguments)
    said = [line for line in err.splitlines() if line.startswith("trtllm-bench: ")]
    assert (found, len(said)) == (code, 1), err
    return said[0]
