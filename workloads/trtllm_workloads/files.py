"""Text files as users keep them: UTF-8 with or without a byte-order mark, any line ends, packed with gzip or not (its first bytes tell). A
Parquet file is read as JSON lines, one per row, since datasets are often published as one.

What is written is written beside its place and renamed into it, so that a full disk or Ctrl-C leaves the old file or the new one, never
a half.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trtllm_workloads.errors import WorkloadError, WriteError

_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_ROWS_AT_ONCE = 1024
LONGEST_LINE = 1 << 24
"""Characters; a prompt of a million token ids has 8 million."""
_BOMB_BYTES, _BOMB_RATIO = 1 << 27, 200
"""What is packed so well, and unpacks to so much, is not data: lines of requests take a tenth of their size."""


class _Bounded(io.BufferedIOBase):
    """Bytes on their way to a decoder, which would take any length of line into memory. Raises `WorkloadError`."""

    def __init__(self, source: io.BufferedIOBase | gzip.GzipFile, path: Path, packed_bytes: int, lines: bool) -> None:
        self._source, self._path, self._lines = source, path, lines
        self._most = max(_BOMB_BYTES, _BOMB_RATIO * packed_bytes) if packed_bytes else 0
        self._read = self._line = 0

    def readable(self) -> bool:
        return True

    def read1(self, size: int = -1, /) -> bytes:
        part = self._source.read1(size)
        self._read += len(part)
        end = part.rfind(b"\n")
        self._line = self._line + len(part) if end < 0 else len(part) - end - 1
        if self._lines and self._line > 4 * LONGEST_LINE:
            raise WorkloadError(f"{self._path} has a line of more than {LONGEST_LINE:,} characters; it is damaged, or another kind of file")
        if 0 < self._most < self._read:
            raise WorkloadError(f"{self._path} unpacks to more than {_BOMB_RATIO} times its size; it is damaged, or no data")
        return part

    def read(self, size: int | None = -1, /) -> bytes:
        return self.read1(-1 if size is None else size)


class _ParquetLines(io.RawIOBase):
    """The rows of a Parquet file as JSON lines. Raises `WorkloadError` where it is damaged."""

    def __init__(self, path: Path) -> None:
        self._rows, self._left = _parquet_rows(path), memoryview(b"")  # of which a part is no copy: a row may be long

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        if not self._left and (row := next(self._rows, None)) is not None:
            self._left = memoryview(json.dumps(row, default=str).encode() + b"\n")
        part, self._left = self._left[: len(buffer)], self._left[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError):
        raise WorkloadError(f"{path} is a Parquet file that is damaged or cut short; fetch it again") from None


@contextmanager
def open_text(path: Path, what: str, lines: bool = True) -> Iterator[IO[str]]:
    """The file's text; `what` it is (trace, dataset) is said when it cannot be read. `lines`: it has them, of bounded length.

    Raises:
        WorkloadError: also from reading within the `with`: no such file, damaged compression, not UTF-8, lines without end.
    """
    if path.exists() and not path.is_file():
        raise WorkloadError(
            f"{path} is {'a folder' if path.is_dir() else 'a pipe or device'}; a {what} is a file, which is read more than once"
        )
    try:
        with path.open("rb") as raw:
            packed = raw.peek(2)[:2] == _GZIP
            plain: Any = gzip.GzipFile(fileobj=raw) if packed else raw
            if raw.peek(4)[:4] == _PARQUET:
                plain = io.BufferedReader(_ParquetLines(path))
            bounded: Any = _Bounded(plain, path, path.stat().st_size if packed else 0, lines)
            with io.TextIOWrapper(bounded, encoding="utf-8-sig") as stream:
                yield stream
    except UnicodeDecodeError as error:
        raise WorkloadError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise WorkloadError(f"{path} is gzip-compressed and damaged or cut short; fetch it again") from None
    except OSError as error:
        raise WorkloadError(f"cannot read {what} {path}: {error.strerror or error}") from None


def first_line(stream: IO[str]) -> tuple[str, int]:
    """The first line that is not blank ('' where there is none), and its number from 1. Of one that is too long, its beginning: a JSON
    array may be one line."""
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if not line.isspace():
            return line, number
    return "", 1


@contextmanager
def replacing(path: Path, *, binary: bool = False) -> Iterator[IO[Any]]:
    """A stream (UTF-8 text, or bytes) whose content becomes the file `path` when the block ends; `path` stays as it was when it raises.

    What is not a regular file (`/dev/stdout`, a pipe) is written to directly.

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
