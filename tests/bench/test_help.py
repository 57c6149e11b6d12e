"""Help pages: each fits 80 columns and has two examples that parse as they are printed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
from command_line import parse, root, run

from trtllm_bench.__main__ import main
from trtllm_bench.app import PANELS, CommandFolder
from trtllm_results import importers


def paths(path: str = "", command: Any = None) -> Iterator[str]:
    """Every help page: the tool's own, those of its commands and of theirs."""
    yield path
    command = root() if command is None else command
    for name, child in getattr(command, "commands", {}).items():
        yield from paths(f"{path} {name}".strip(), child)


def examples(path: str) -> list[str]:
    command = root()
    for name in path.split():
        command = command.commands[name]
    _, _, block = command.help.partition("Examples:\n")
    return [line.strip() for line in block.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.mark.parametrize("path", list(paths()))
def test_a_help_page_fits_80_columns_and_has_two_examples_that_parse(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = run(capsys, *path.split(), "-h")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "range>" not in out
    assert "list[" not in "".join(line for line in out.splitlines() if line.startswith("  -"))
    lines = [" ".join(line.split()) for line in out.replace("\\\n", " ").splitlines()]
    assert len(examples(path)) == 2
    for example in examples(path):
        assert " ".join(example.split()) in lines, "it is printed as it is written"
        tool, *arguments = shlex.split(example)
        assert tool == "trtllm-bench"
        assert arguments[: len(path.split())] == path.split() or path.split()[0] in ("prepare-dataset", "")
        parse(arguments)


def test_an_example_that_does_not_parse_is_found() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["results", "ls", "runs/a", "--wher", "precision=fp8"])


def test_the_help_of_import_names_every_tool(capsys: pytest.CaptureFixture[str]) -> None:
    """It is written by hand: importers take too long to load for a page of help."""
    _, out, _ = run(capsys, "results", "import", "-h")
    assert set(importers.TOOLS) <= set(re.findall(r"[a-z-]+", out.partition("--tool")[2]))


def test_every_command_is_listed_by_what_it_is_for() -> None:
    assert sorted(name for names in PANELS.values() for name in names) == sorted(CommandFolder())


def test_every_command_says_in_a_line_what_it_does() -> None:
    assert all(CommandFolder().summary(name) for name in CommandFolder())


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("trtllm-bench sw", {"sweep"}),
        ("trtllm-bench results e", {"export"}),
        ("trtllm-bench throughput --max-b", {"--max-batch-size"}),
        ("trtllm-bench throughput --back", set()),
    ],
)
def test_a_shell_completes_commands_and_flags_and_no_hidden_ones(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, typed: str, offered: set[str]
) -> None:
    monkeypatch.setenv("_TRTLLM_BENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 0
    assert set(capsys.readouterr().out.split()) == offered
