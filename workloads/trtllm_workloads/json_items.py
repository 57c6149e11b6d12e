"""The values of a JSON file, one after another, without holding the whole file: of one array, or of JSON lines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from trtllm_workloads.errors import WorkloadError
from trtllm_workloads.files import LONGEST_LINE, open_text

_READ_CHARACTERS = 1 << 20
_BETWEEN_ROWS, _BETWEEN_VALUES = re.compile(r"\s*,?\s*"), re.compile(r"\s*")


def items(path: Path) -> Iterator[Any]:
    """Elements of the array, or values of the lines. Raises `WorkloadError`, also where anything follows the array."""
    decoder = json.JSONDecoder()
    with open_text(path, "trace", lines=False) as stream:
        text = stream.read(_READ_CHARACTERS).lstrip()
        if not text.startswith(("[", "{")):
            raise WorkloadError(f"{path} is neither a JSON array nor JSON lines")
        is_array = text.startswith("[")
        between = _BETWEEN_ROWS if is_array else _BETWEEN_VALUES
        at = int(is_array)
        while True:
            at = between.match(text, at).end()  # type: ignore[union-attr]
            if at == len(text):
                text, at = stream.read(_READ_CHARACTERS), 0
                if not text and not is_array:
                    return
                if text:
                    continue
            if is_array and text.startswith("]", at):
                _check_rest(path, text[at + 1 :], stream)
                return
            try:
                item, at = decoder.raw_decode(text, at)
            except RecursionError:
                raise WorkloadError(f"{path} is no dataset or trace: its JSON is nested too deeply") from None
            except ValueError as error:
                if len(text) - at > LONGEST_LINE:
                    told = f"is not JSON ({error}), or one of its rows has over {LONGEST_LINE:,} characters"
                    raise WorkloadError(f"{path} {told}") from None
                more = stream.read(max(_READ_CHARACTERS, len(text) - at))
                if not more:
                    raise WorkloadError(f"{path} ends in the middle of a row, or is not JSON ({error})") from None
                text, at = text[at:] + more, 0
                continue
            yield item


def _check_rest(path: Path, text: str, stream: IO[str]) -> None:
    """Raises `WorkloadError` unless the rest of a file, `text` and what `stream` still has, is blank."""
    while not text.strip():
        text = stream.read(_READ_CHARACTERS)
        if not text:
            return
    raise WorkloadError(f"{path} goes on after the end of its JSON array; keep one array, or write JSON lines")
