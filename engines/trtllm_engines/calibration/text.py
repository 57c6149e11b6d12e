"""Texts to measure on, as windows of token ids: a plain text file, JSON lines, or the text that ships with the project.

Lines may hold `text` or `prompt` (text) or `input_ids` (token ids), so that a dataset made for benchmarking calibrates as well. A text file
is one document, cut into windows back to back.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trtllm_engines.checkpoints.tokenizer import Tokenizer
from trtllm_engines.documents import read_text
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.batch import IntArray

SHIPPED = Path(__file__).resolve().parent / "calibration.txt"
MOST_BYTES = 1 << 28
"""Of a text, which is tokenized whole."""
_TABLES = (".csv", ".tsv", ".parquet", ".arrow", ".xlsx")
SHORTEST = 2
"""Tokens of a window worth running."""


def windows(path: Path | None, tokenizer: Tokenizer | None, *, length: int, vocab_size: int, count: int | None = None) -> list[IntArray]:
    """At most `count` windows of at most `length` tokens. Raises `EngineError` naming the file, and the line where there are lines."""
    if length < SHORTEST or (count is not None and count < 1):
        raise EngineError(f"{count} windows of {length} tokens measure nothing; ask for at least 1 of {SHORTEST}")
    path = path or SHIPPED
    if path.suffix.lower() in _TABLES:
        raise EngineError(
            f"dataset {path} is a table, whose rows would be read as one text; "
            f"give text, or JSON lines (.jsonl) with text, prompt or input_ids"
        )
    try:
        content = read_text(path, MOST_BYTES).removeprefix("\ufeff")
    except FileNotFoundError:
        raise EngineError(f"dataset {path} cannot be read: there is no such file") from None
    if path.suffix in (".jsonl", ".json"):
        lines = content.split("\n")  # not `splitlines`, which ends a line at characters that JSON may have within a text
        samples = [_sample(line, f"{path}, line {number}", tokenizer) for number, line in enumerate(lines, 1) if line.strip()]
        cut = [np.asarray(ids[:length], np.int32) for ids in samples]
    else:
        ids = np.asarray(_encode(content, str(path), tokenizer), np.int32)
        cut = [ids[first : first + length] for first in range(0, len(ids), length)]
        if len(cut) > 1 and len(cut[-1]) < length:
            cut.pop()
    kept = [ids for ids in cut if len(ids) >= SHORTEST][:count]
    if not kept:
        raise EngineError(f"dataset {path} holds no text of {SHORTEST} tokens or more")
    for ids in kept:
        if ids.min() < 0 or ids.max() >= vocab_size:
            raise EngineError(
                f"dataset {path} holds token id {ids.min() if ids.min() < 0 else ids.max()}; the model has 0 to {vocab_size - 1}"
            )
    return kept


def _encode(text: str, where: str, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None:
        raise EngineError(
            f"{where} is text but the model has no tokenizer.json or GGUF tokenizer; add one, or give JSON lines with input_ids"
        )
    return tokenizer.encode(text)


def _sample(line: str, where: str, tokenizer: Tokenizer | None) -> list[int]:
    try:
        data: Any = json.loads(line)
    except RecursionError:
        raise EngineError(f"{where} is nested too deep") from None
    except ValueError as error:
        raise EngineError(f"{where} is not JSON ({error})") from None
    if not isinstance(data, dict):
        raise EngineError(f"{where} should hold a JSON object but holds a {type(data).__name__}")
    for key in ("text", "prompt"):
        if isinstance(data.get(key), str):
            return _encode(data[key], where, tokenizer)
    ids = data.get("input_ids")
    if isinstance(ids, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        return ids
    raise EngineError(f"{where} has neither text nor prompt nor input_ids")
