"""Streaming a trace file: find its format, parse thousands of lines at once, and name the line when one is bad.

A format parses a block of lines into columns, all or nothing, with vectorised conversions; when a block fails, it is halved until the bad
lines stand alone. So good rows cost a fraction of a microsecond each and bad rows are still found exactly, without a second, row-wise
parser to keep in agreement with the first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Protocol

import numpy as np

from trtllm_workloads.errors import SKIP_HINT, WorkloadError
from trtllm_workloads.files import first_line, open_text
from trtllm_workloads.json_items import items
from trtllm_workloads.traces import azure, burstgpt, mooncake, nvidia, qwen, sharegpt
from trtllm_workloads.traces.trace import Trace, concatenate

BLOCK_LINES = 1 << 16


class Format(Protocol):
    """One reader of one file; keeps what it must remember between blocks."""

    header_lines: int

    def parse(self, lines: Sequence[str]) -> Trace:
        """Columns of these lines. Raises ValueError, saying what is wrong, when any is bad."""


FORMATS: dict[str, Callable[[str], Format]] = {
    "azure": azure.Azure,
    "burstgpt": burstgpt.BurstGPT,
    "mooncake": mooncake.Mooncake,
    "qwen": qwen.Qwen,
    "sharegpt-lengths": sharegpt.ShareGPTLengths,
    "nvidia": nvidia.NvidiaLines,
}
"""Line-based formats by name; each is made from the file's first line. `sharegpt` (one JSON array) is read by `sharegpt.read_json`."""


DATASET, TEXTS, UNANSWERED = "nvidia", "text without lengths", "prompts without answers"
"""What `detect` also tells: lines that are a dataset as well, or that lack what a trace has."""


def detect(first_line: str) -> str:
    """The format a file's first line belongs to, or '' for an unknown format."""
    line = first_line.strip().lstrip("\ufeff")
    if line.startswith("["):
        return "sharegpt"
    if line.startswith("{"):
        try:
            row = json.loads(line)
            keys = set(row)
        except (ValueError, RecursionError):
            return ""
        if {"conversations", "conversation"} & keys:
            return "sharegpt"
        if {"input_ids", "prompt", "text_input"} & keys and nvidia.LENGTHS & keys:
            return DATASET
        if sharegpt.answered(row.get("messages")):
            return "sharegpt"
        if {"input_length", "output_length"} <= keys:
            return "qwen" if "chat_id" in keys else "mooncake"
        if "input_length" in keys:
            return UNANSWERED
        if {"prompt", "text_input", "messages", "text", "texts", "turns"} & keys:
            return TEXTS
        return ""
    columns = {name.strip().strip('"').lower() for name in line.split(",")}
    if {"contexttokens", "generatedtokens"} <= columns:
        return "azure"
    if {"request tokens", "response tokens"} <= columns:
        return "burstgpt"
    if {"num_prefill_tokens", "num_decode_tokens"} <= columns:
        return "sharegpt-lengths"
    return ""


def format_of(path: Path, what: str = "trace") -> tuple[str, bool]:
    """A file's format ('' for an unknown one), and whether it is one JSON array. `what` it is is said when it cannot be read."""
    with open_text(path, what) as stream:
        first, _ = first_line(stream)
    if not first.lstrip().startswith("["):
        return detect(first), False
    return next((detect(json.dumps(item)) for item in items(path)), "") or "sharegpt", True


def iter_trace(path: Path | str, *, format: str | None = None, skip_bad_rows: bool = False) -> Iterator[Trace]:
    """Pieces of a trace as it is read, at most `BLOCK_LINES` rows each.

    Raises:
        WorkloadError: the file cannot be read or is of no known format; or, naming the line, a row is bad and `skip_bad_rows` is off.
    """
    path = Path(path)
    with open_text(path, "trace") as stream:
        first, number = first_line(stream)
        if not first:
            raise WorkloadError(f"{path} is empty")
        found, is_array = format_of(path)
        name = format or found
        if name == "sharegpt":
            yield from sharegpt.read_json(path, skip_bad_rows)
            return
        row = f"{path}, {'row' if is_array else 'line'}"
        if name == TEXTS:
            raise WorkloadError(
                f"{row} {number}: there is a text, but not how many tokens to answer it with; add output_tokens to each line"
            )
        if name == UNANSWERED:
            raise WorkloadError(f"{row} {number}: there is an input_length, but no output_length; add one to each line")
        if name not in FORMATS:
            known = ", ".join([*FORMATS, "sharegpt"])
            begins = f"{path} is in no trace format known here (it begins {first.strip()[:60]!r})"
            what = f"'{name}' is not a trace format" if name else begins
            raise WorkloadError(f"{what}; there are {known}")
        lines: Iterator[str] = chain([first], stream)
        if is_array:
            lines, number = (json.dumps(item) + "\n" for item in items(path)), 1
            first = next(lines, "")
            lines = chain([first], lines)
        try:
            reader = FORMATS[name](first.rstrip("\n"))
        except ValueError as error:
            raise WorkloadError(f"{row} {number}: {error}") from None
        rows = islice(lines, reader.header_lines, None)
        number += reader.header_lines
        while block := list(islice(rows, BLOCK_LINES)):
            piece = _block(reader, block, row, number, skip_bad_rows)
            number += len(block)
            if piece is not None:
                yield piece


def read_trace(path: Path | str, *, format: str | None = None, skip_bad_rows: bool = False, limit: int | None = None) -> Trace:
    """A whole trace (or its first `limit` rows), rows by arrival, the first at 0."""
    parts: list[Trace] = []
    rows = 0
    for part in iter_trace(path, format=format, skip_bad_rows=skip_bad_rows):
        parts.append(part)
        rows += len(part)
        if limit is not None and rows >= limit:
            break
    if rows == 0:
        raise WorkloadError(f"{path} holds no request")
    whole = _without_empty_columns(concatenate(parts))
    if limit is not None and len(whole) > limit:
        whole = whole.take(np.arange(limit))
    return replace(whole, name=Path(path).stem).in_order()


def _without_empty_columns(trace: Trace) -> Trace:
    """A trace without blocks, sessions or delays where its lines might have had them and none has."""
    if trace.block_ids is not None and len(trace.block_ids) == 0:
        trace = replace(trace, block_offsets=None, block_ids=None, block_tokens=0)
    if trace.delay_s is not None and np.isnan(trace.delay_s).all():
        trace = replace(trace, delay_s=None)
    if trace.session is not None and (trace.session < 0).all():
        trace = replace(trace, session=None, turn=None)
    return trace


def _block(reader: Format, lines: list[str], row: str, number: int, skip: bool) -> Trace | None:
    """The rows of a block; `number` is its first line's, and `row` what an error calls a line. Blank lines are not rows."""
    kept = [(number + k, line) for k, line in enumerate(lines) if not line.isspace()]
    if not kept:
        return None
    pieces, bad = _good(reader, kept, row, skip)
    if not pieces:
        return None
    return replace(concatenate(pieces), skipped=bad)


def _good(reader: Format, rows: list[tuple[int, str]], row: str, skip: bool) -> tuple[list[Trace], int]:
    try:
        return [reader.parse([line for _, line in rows])], 0
    except ValueError as error:
        if len(rows) == 1:
            if skip:
                return [], 1
            raise WorkloadError(f"{row} {rows[0][0]}: {error} ({SKIP_HINT})") from None
    middle = len(rows) // 2
    first, bad_first = _good(reader, rows[:middle], row, skip)
    second, bad_second = _good(reader, rows[middle:], row, skip)
    return first + second, bad_first + bad_second
