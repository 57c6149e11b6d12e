"""Text files as users keep them: UTF-8 with or without a byte-order mark, any line ends, packed with gzip or not (its first bytes tell)."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from trtllm_workloads.errors import WorkloadError

_GZIP = b"\x1f\x8b"


@contextmanager
def open_text(path: Path, what: str) -> Iterator[IO[str]]:
    """The file's text; `what` it is (trace, dataset) is said when it cannot be read.

    Raises:
        WorkloadError: also from reading within the `with`: no such file, damaged compression, not UTF-8.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == _GZIP
            with io.TextIOWrapper(gzip.GzipFile(fileobj=raw) if packed else raw, encoding="utf-8-sig") as stream:
                yield stream
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise WorkloadError(f"{path} is gzip-compressed and damaged or cut short; fetch it again") from None
    except OSError as error:
        raise WorkloadError(f"cannot read {what} {path}: {error.strerror or error}") from None


def first_line(stream: IO[str]) -> tuple[str, int]:
    """The first line that is not blank ('' where there is none), and its number from 1."""
    for number, line in enumerate(stream, start=1):
        if not line.isspace():
            return line, number
    return "", 1
