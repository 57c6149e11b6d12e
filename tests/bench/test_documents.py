"""The documents: every link leads somewhere, every file that they name is there, and every command parses as it is printed."""

from __future__ import annotations

import inspect
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from command_line import parse

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT) for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "results").rglob("*.md"))
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"`((?:docs|engines|kernels|results|workloads|dashboards|trtllm_bench|tests)/[\w./-]+)`")
COMMAND = re.compile(r"`trtllm-bench ([^`]+)`|^(?: {4})?trtllm-bench (.+)$", re.MULTILINE)


@cache
def anchors(path: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=str)
def test_links_and_named_files_are_there(document: Path) -> None:
    text = (ROOT / document).read_text()
    missing = [name for name in FILE.findall(text) if not (ROOT / name).exists()]
    for link in LINK.findall(text):
        name, _, anchor = link.partition("#")
        target = (ROOT / document).parent / name if name else ROOT / document
        if not link.startswith("http") and (not target.exists() or (anchor and anchor not in anchors(target))):
            missing.append(link)
    assert not missing


def commands(document: Path) -> Iterator[list[str]]:
    """Arguments of each command, without what the page leaves open: `[--...]` and ` ...` are left out, a capital letter is any value."""
    text = (ROOT / document).read_text().replace("\\\n", " ")
    for inline, block in COMMAND.findall(text):
        line = re.sub(r" [A-Z]\b", " 1", re.sub(r"\[--[^\]]*\]| \.\.\.", "", inline or block))
        for part in f"trtllm-bench {line}".split("&&"):
            tool, *arguments = shlex.split(part, comments=True)
            if tool == "trtllm-bench" and (block or "--" in line):  # else the text names a command, and quotes no line
                yield arguments


@pytest.mark.parametrize("document", [one for one in DOCUMENTS if any(commands(one))], ids=str)
def test_commands_parse(document: Path) -> None:
    for arguments in commands(document):
        parse(arguments)


def test_every_option_of_the_engine_in_python_is_told() -> None:
    from trtllm_engines import LLM

    table = (ROOT / "docs/python-api.md").read_text().partition("## LLM")[2].partition("## ")[0]
    told = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert told == set(inspect.signature(LLM).parameters) - {"other"}


def test_headings_and_commands_are_read_as_they_are_printed() -> None:
    assert "where-things-are" in anchors(ROOT / "README.md")
    assert "where-things-were" not in anchors(ROOT / "README.md")
    assert ["plot", "gpus"] in list(commands(Path("docs/dashboard.md")))
