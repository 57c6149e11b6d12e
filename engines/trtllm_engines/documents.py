"""Files that somebody else wrote, read with bounds: a JSON object of bounded size and depth, then a typed model of what is used of it.

Everything that comes from outside (`config.json`, tokenizers' and quantizers' configurations, indices, an engine's own folder after a
journey) passes here before any code looks at it, so what is wrong is told once: one sentence that names file, field and value.
pydantic checks types and bounds; its words are for programmers and are not repeated.
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trtllm_engines.errors import EngineError

if TYPE_CHECKING:
    from pydantic import BaseModel, TypeAdapter, ValidationError

MOST_BYTES = 64 << 20
"""Of a JSON file; the largest known, tokenizers and indices of 400-billion-parameter models, have under 20 MB."""
MOST_DEPTH = 64
"""Levels of nesting."""
SHOWN = 60
"""Characters of a wrong value that a sentence shows."""

Model = TypeVar("Model", bound="BaseModel")
Value = TypeVar("Value")


def regular_file(path: Path) -> os.stat_result:
    """Its size and identity. Raises FileNotFoundError where there is none, `EngineError` for a folder, pipe or device."""
    try:
        status = path.stat()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise EngineError(f"{shown_path(path)} cannot be read ({_reason(error)})") from None
    if not stat.S_ISREG(status.st_mode):
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe" if stat.S_ISFIFO(status.st_mode) else "device"
        raise EngineError(f"{path} is a {kind}; it must be a regular file")
    if not os.access(path, os.R_OK):
        raise EngineError(f"{path} cannot be read ({os.strerror(errno.EACCES)})")
    return status


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """UTF-8. Raises FileNotFoundError where there is no such file, `EngineError` for one that cannot be read or is too large."""
    size = regular_file(path).st_size
    if size > most_bytes:
        raise EngineError(f"{path} has {size / 2**20:,.0f} MiB; it must have at most {most_bytes / 2**20:,.0f}")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise EngineError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise EngineError(f"{path} cannot be read ({_reason(error)})") from None


def read_object(path: Path, absent: str = "") -> dict[str, Any]:
    """The JSON object in `path`. Raises `EngineError`; `absent` is the sentence for a file that is not there."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise EngineError(absent or f"{shown_path(path)} does not exist") from None
    return parse_object(text, str(path))


def read_object_if_there(path: Path) -> dict[str, Any]:
    """As `read_object`; empty where there is no such file."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        return {}
    return parse_object(text, str(path))


def parse_object(text: str, source: str) -> dict[str, Any]:
    """The JSON object in `text`, which is from `source`. Raises `EngineError`."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise EngineError(f"{source} is nested too deep; it may have {MOST_DEPTH} levels") from None
    except ValueError as error:
        raise EngineError(f"{source} cannot be read as JSON ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict):
        raise EngineError(f"{source} should hold a JSON object but holds a {type(content).__name__}")
    level: list[Any] = [content]
    for _ in range(MOST_DEPTH):
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one) if isinstance(inner, dict | list)]
    if level:
        raise EngineError(f"{source} is nested too deep; it may have {MOST_DEPTH} levels")
    return content


def checked(model: type[Model], content: Mapping[str, Any], source: str) -> Model:
    """`content` as `model`. Raises `EngineError` naming `source`, the field and its value."""
    from pydantic import ValidationError

    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise EngineError(f"{source}: {refusal(error, model.model_fields)}") from None


def checked_json(adapter: TypeAdapter[Value], text: str, source: str) -> Value:
    """`text` as what `adapter` adapts, with JSON's own types (a tuple is a list there). Raises `EngineError` likewise."""
    from pydantic import ValidationError

    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        raise EngineError(f"{source}: {refusal(error)}") from None


def refusal(error: ValidationError, known: Iterable[str] = ()) -> str:
    """The first thing wrong, as `max_seq_len is 'long'; it must be a whole number`. `known`: keys that an unknown one may be meant for."""
    first = error.errors(include_url=False)[0]
    parts = [str(part)[:SHOWN] for part in first["loc"] if not str(part).startswith(("function-", "[key]"))]
    place = ".".join(parts) or "the content"
    kind, context = first["type"], first.get("ctx", {})
    if kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{place} is missing"
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        near = get_close_matches(place, list(known), n=1)
        return f"{place} is not a known key{f' (did you mean {near[0]}?)' if near else ''}"
    if kind == "value_error" and isinstance(context.get("error"), EngineError):
        return f"{place}: {context['error']}" if parts else str(context["error"])
    return f"{place} is {shown(first['input'])}; {_expected(kind, context)}"


def shown(value: Any) -> str:
    """A value as a sentence quotes it: on one line, cut where it is long, never as long as the value is."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 64:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, dict | list | tuple) and len(value) > 8:
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)} entries"
    text = ascii(value[:SHOWN] if isinstance(value, str | bytes) else value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def shown_path(path: Path) -> str:
    """A path as a sentence quotes it, also one with characters that no file system has."""
    text = ascii(str(path))[1:-1] if "\0" in str(path) else str(path)
    return text if len(text) <= 300 else f"{text[:297]}..."


def is_finite(value: Any) -> bool:
    """Whether it is a number of JSON's, with a value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and (isinstance(value, int) or math.isfinite(value))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _expected(kind: str, context: Mapping[str, Any]) -> str:
    if kind in ("greater_than_equal", "less_than_equal"):
        return f"it must be at least {context['ge']}" if "ge" in context else f"it must be at most {context['le']}"
    if kind == "greater_than":
        return f"it must be more than {context['gt']}"
    words = {
        "finite_number": "it must be a finite number",
        "string_unicode": "it must be valid Unicode text",
        "string_pattern_mismatch": f"it must match {context.get('pattern', '')}",
        "literal_error": f"use one of {context.get('expected', '')}",
        "value_error": str(context.get("error", "")),
        "int_parsing_size": "it is too large",
    }
    if kind in words:
        return words[kind]
    if kind in ("too_long", "string_too_long"):
        return f"it must have at most {context.get('max_length', '')} entries"
    if kind in ("too_short", "string_too_short"):
        return f"it must have at least {context.get('min_length', '')} entries"
    types = {
        "int": "a whole number",
        "float": "a number",
        "string": "text",
        "bool": "true or false",
        "dict": "an object",
        "mapping": "an object",
        "model": "an object",
        "dataclass": "an object",
        "list": "a list",
        "tuple": "a list",
        "none": "null",
    }
    return f"it must be {types.get(kind.split('_')[0], 'of another type')}"
