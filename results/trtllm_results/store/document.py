"""Documents that the tool or a user keeps as JSON or TOML: read with bounds, and as the type they are written from.

Whatever a user may name passes here: a pipe would be waited for, a device has no end, what is nested deep raises a RecursionError, and a
packed file may hold anything. NaN and infinity are no JSON, and figures of ours are finite. The types are those of the dataclasses that
the documents are made of; pydantic checks them, in our words.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trtllm_results.errors import ResultsError
from trtllm_results.record.flat import shown
from trtllm_results.store.files import check_regular

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MOST_BYTES = 1 << 28
MOST_DIGITS = 20
"""Characters of a whole number: those of 64 bits."""
MOST_TEXT = 20_000
"""Characters of one text, which a terminal would break into lines for minutes."""
Kind = TypeVar("Kind")


def _constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"{text[:40]} is too large a number")
    return int(text)


def parse_json(text: str) -> Any:
    """JSON without what Python's own parser takes beyond it: NaN, infinity, and whole numbers of any size. Raises ValueError."""
    return json.loads(text, parse_constant=_constant, parse_float=_finite, parse_int=_whole)


def read_document(path: Path, parse: Callable[[str], Any] = parse_json, most_bytes: int = MOST_BYTES) -> Any:
    """The JSON in a file of ours, or the TOML by `tomllib.loads`; unpacked where it is gzip-compressed.

    Raises FileNotFoundError where there is no such file, `ResultsError` (a ValueError) for anything that `parse` does not take, one nested
    too deep, one that is larger than `most_bytes`, and what is not a file: a pipe would be waited for, and a device has no end.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    size = check_regular(path)
    if size > most_bytes:
        raise ResultsError(f"{path} has {size:,} bytes; at most {most_bytes:,} are read")
    try:
        return parse(unpacked(path.read_bytes(), path, most_bytes).decode("utf-8-sig"))
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from error
    except RecursionError:
        raise ResultsError(f"{path} is nested too deep") from None
    except ResultsError:
        raise
    except ValueError as error:  # not the language, not UTF-8, or a number of thousands of digits
        language = "JSON" if parse is parse_json else "TOML"
        raise ResultsError(f"{path} is not valid {language}: {' '.join(str(error).split())[:200]}") from None


def as_kind(kind: type[Kind], content: Any, source: object) -> Kind:
    """`content`, from `source`, as dataclass `kind`. Raises `ResultsError` naming the field and its value."""
    from pydantic import ValidationError

    if (long := next((one for one in _texts(content) if len(one) > MOST_TEXT), None)) is not None:
        raise ResultsError(f"{source} holds a text of {len(long):,} characters; at most {MOST_TEXT:,} are taken")
    try:
        return _adapter(kind).validate_python(content)  # type: ignore[arg-type, no-any-return]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part)[:60] for part in first["loc"][:8]) or "the content"
        if first["type"] in ("missing", "missing_argument"):
            raise ResultsError(f"{source}: {place} is missing") from None
        if first["type"] == "unexpected_keyword_argument":
            raise ResultsError(f"{source}: {place} is not known; another version of trtllm-bench may have written it") from None
        raise ResultsError(f"{source}: {place} is {shown(first['input'])}, which is of another type") from None


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield str(name)
            yield from _texts(value)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def unpacked(content: bytes, path: Path, most_bytes: int) -> bytes:
    """`content` of `path`, without its gzip where it has one. Raises `ResultsError` for more than `most_bytes`, and for damage."""
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            plain = stream.read(most_bytes + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise ResultsError(f"{path} is gzip-compressed and damaged or cut short; fetch it again") from None
    if len(plain) > most_bytes:
        raise ResultsError(f"{path} has more than {most_bytes:,} bytes once unpacked")
    return plain
