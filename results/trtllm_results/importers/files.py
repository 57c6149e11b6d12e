"""A foreign file's content, before any tool is known: JSON values, a CSV's lines or a log's text."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

from trtllm_results.errors import ResultsError
from trtllm_results.store.document import unpacked

_BLANK = re.compile(r"[ \t\r\n]*")
LARGEST_BYTES = 1 << 29
"""A summary is some kilobytes and a detailed result some hundred megabytes; beyond this it is another file."""


def read_text(path: Path) -> str:
    """The text of a file, unpacked where it is gzip-compressed. Raises `ResultsError`."""
    try:
        if not path.is_file():
            raise ResultsError(f"{path} is not a file" if path.exists() else f"cannot read {path}: No such file or directory")
        if path.stat().st_size > LARGEST_BYTES:
            raise ResultsError(f"{path} has {path.stat().st_size:,} bytes, more than any benchmark's result")
        return unpacked(path.read_bytes(), path, LARGEST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path} is not a JSON file, nor any other text: byte {error.start} is not UTF-8") from None
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror or error}") from None


def json_values(text: str, path: Path) -> Any:
    """The JSON value of a text, or a list of them where one follows another: a line each, or none between (`}{`). Raises `ResultsError`."""
    decoder = json.JSONDecoder()
    values: list[Any] = []
    at = 0
    try:
        while (at := _next(text, at)) < len(text):
            value, at = decoder.raw_decode(text, at)
            values.append(value)
    except RecursionError:
        raise ResultsError(f"{path} is not a JSON file of a benchmark: its objects are nested too deeply") from None
    except ValueError as error:
        line = text.count("\n", 0, getattr(error, "pos", at)) + 1
        raise ResultsError(f"{path} is not a JSON file: line {line} contains invalid JSON; the file may be cut short") from None
    if not values:
        raise ResultsError(f"{path} is not a JSON file: it is empty")
    return values[0] if len(values) == 1 else values


def _next(text: str, at: int) -> int:
    """Where the next value begins."""
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at


def csv_lines(text: str, path: Path) -> list[list[str]]:
    """The fields of a CSV file's lines. Raises `ResultsError`."""
    before = csv.field_size_limit(1 << 24)
    try:
        return list(csv.reader(text.splitlines()))
    except csv.Error as error:
        raise ResultsError(f"{path} is not a CSV file: {error}") from None
    finally:
        csv.field_size_limit(before)
