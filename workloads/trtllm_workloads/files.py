"""Text files as users keep them: UTF-8 with or without a byte-order mark, any line ends, packed with gzip or not (its first bytes tell).

What is written is written beside its place and renamed into it, so that a full disk or Ctrl-C leaves the old file or the new one, never
a half.
"""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trtllm_workloads.errors import WorkloadError, WriteError

_GZIP = b"\x1f\x8b"


@contextmanager
def open_text(path: Path, what: str) -> Iterator[IO[str]]:
    """The file's text; `what` it is (trace, dataset) is said when it cannot be read.

    Raises:
        WorkloadError: also from reading within the `with`: no such file, damaged compression, not UTF-8.
    """
    if path.exists() and not path.is_file():
        raise WorkloadError(
            f"{path} is {'a folder' if path.is_dir() else 'a pipe or device'}; a {what} is a file, which is read more than once"
        )
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


@contextmanager
def replacing(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A stream (UTF-8 text, or bytes) whose content becomes the file `path` when the block ends; `path` stays as it was when it raises.

    What is no regular file (`/dev/stdout`, a pipe) is written to directly.

    Raises:
        WriteError: the folder is missing or not writable, or the disk is full.
    """
    how: dict[str, Any] = {"mode": "wb"} if binary else {"mode": "w", "encoding": "utf-8", "newline": "\n"}
    try:
        if path.exists() and not path.is_file():
            descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK)  # refuses a pipe that nobody reads, for which `open` would wait
            os.set_blocking(descriptor, True)
            with open(descriptor, **how) as stream:
                yield stream
            return
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open(**how) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise WriteError(path, error) from None
