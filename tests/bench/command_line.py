"""The command line as tests call it: what it said, that a mistake is one sentence, and whether a line parses."""

from __future__ import annotations

from functools import cache
from typing import Any

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


@cache
def root() -> Any:
    from typer.main import get_command

    from trtllm_bench.app import app

    return get_command(app)


def parse(arguments: list[str]) -> None:
    """Parses a whole command line and runs nothing."""
    command, parent, name = root(), None, "trtllm-bench"
    while True:
        context = command.make_context(name, arguments, parent=parent, **(command.context_settings if parent is None else {}))
        if not hasattr(command, "commands"):
            return
        name, command, arguments = command.resolve_command(context, [*getattr(context, "_protected_args", ()), *context.args])
        parent = context
