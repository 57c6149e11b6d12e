"""Parquet files of a store: encoded so that no reader meets two versions of a file at once, decoded within bounds.

A rename is not enough. pandas (pyarrow's dataset reader) opens a file twice, for its footer and then for its columns; renamed over in
between, it reads the new file's bytes at the old file's offsets and fails (5% of reads in a loop beside a writer). So a new version of
`results.parquet` keeps the bytes of the version it replaces where they were, in a gap that its own footer does not mention: the old footer
still reads the old rows. Versions replaced up to `KEEP_S` ago are kept, since many appends may pass between a reader's two opens.

Rejected: a lock that readers must take (pandas, DuckDB and a spreadsheet will not), and appending row groups without ever moving one (the
footer then grows by 10 kB with each row, and a measurement made again could not replace its failed row).
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from trtllm_results.errors import ResultsError
from trtllm_results.record.flat import REQUIRED
from trtllm_results.record.row import SCHEMA_VERSION
from trtllm_results.store.files import check_regular

if TYPE_CHECKING:
    import pyarrow as pa

VERSION_KEY = b"trtllm_results.schema_version"
METADATA = {VERSION_KEY: str(SCHEMA_VERSION).encode()}
_KEPT_KEY = b"trtllm_results.kept_versions"
KEEP_S = 5.0
KEEP_BYTES = 8 * 2**20
"""Most bytes of older versions kept beside the one replaced last."""
_MAGIC = 4
"""Bytes before a file's first column."""
MOST_ROWS, MOST_COLUMNS, MOST_BYTES = 5_000_000, 5_000, 2**29
"""Bounds on what a table of rows may hold once decoded; a damaged or hostile file of a few bytes can ask for more than the memory."""
_ROWS_AT_ONCE = 512
OPTIONS: Mapping[str, Any] = {"compression": "lz4", "write_page_checksum": True}


def replacement(table: pa.Table, current: Path) -> memoryview:
    """A file of `table` that may be renamed over `current` at any moment, whoever reads it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = _kept(current) if current.exists() else []
    table = table.replace_schema_metadata({**METADATA, _KEPT_KEY: json.dumps(kept).encode()})
    if not kept:
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, **OPTIONS)
        return memoryview(sink.getvalue())
    first, last = min(start for start, _, _ in kept), max(end for _, end, _ in kept)
    with open(current, "rb") as handle:
        old = handle.read(last)
    old = old.ljust(last, b"\0")  # never needed unless the footer lies
    for before in (True, False):
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, table.schema, **OPTIONS) as writer:
            if not before:
                sink.write(bytes(first - _MAGIC) + _gaps_zeroed(old, kept)[first:])
            writer.write_table(table)
            if before:
                if sink.tell() > first:
                    continue
                sink.write(bytes(first - sink.tell()) + _gaps_zeroed(old, kept)[first:])
        return memoryview(sink.getvalue())
    raise AssertionError("the second place always fits")


def _kept(current: Path) -> list[tuple[int, int, float]]:
    """(start, end, time replaced) of the versions whose bytes the next one keeps: the current one, and those replaced lately."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    now = time.time()
    try:
        metadata = pq.read_metadata(current)
        older = json.loads((metadata.metadata or {}).get(_KEPT_KEY, b"[]"))
        kept = [(int(start), int(end), float(replaced)) for start, end, replaced in older if abs(now - replaced) <= KEEP_S]
    except (pa.ArrowException, OSError, ValueError, TypeError):
        return []
    start, end = _extent(metadata)
    size = current.stat().st_size
    kept = [one for one in kept if _MAGIC <= one[0] < one[1] <= size]
    while sum(end - start for start, end, _ in kept) > KEEP_BYTES:
        kept.pop(0)
    return [*kept, (start, end, now)] if _MAGIC <= start < end <= size else kept


def _extent(metadata: Any) -> tuple[int, int]:
    """Where a file's columns lie."""
    chunks = [metadata.row_group(group).column(one) for group in range(metadata.num_row_groups) for one in range(metadata.num_columns)]
    starts = [chunk.data_page_offset if chunk.dictionary_page_offset is None else chunk.dictionary_page_offset for chunk in chunks]
    ends = [start + chunk.total_compressed_size for start, chunk in zip(starts, chunks, strict=True)]
    return (min(starts), max(ends)) if chunks else (0, 0)


def _gaps_zeroed(old: bytes, kept: list[tuple[int, int, float]]) -> bytes:
    """`old` with nothing but what is kept: bytes that no footer mentions any more compress to nothing."""
    content = bytearray(len(old))
    for start, end, _ in kept:
        content[start:end] = old[start:end]
    return bytes(content)


def read_table(path: Path, columns: list[str] | None = None, side: bool = False) -> pa.Table:
    """Reads one Parquet file of ours. Raises `ResultsError` if it is missing, damaged, foreign, or of a newer schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.is_file() and not path.stat().st_size and (elsewhere := _elsewhere(path)):
        raise ResultsError(f"{path} is empty{elsewhere}")
    check_regular(path)
    try:
        handle = path.open("rb")
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from error
    try:
        with handle, _native(path, handle) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            names = set(schema.names)
            if not side:
                _check_schema(path, schema.metadata or {}, schema.names)
                _check_bounds(path, file.metadata)
            chosen = [name for name in columns if name in names] if columns is not None else None
            return file.read(columns=chosen) if side else pa.Table.from_batches(_bounded(path, file, chosen), _subset(schema, chosen))
    except ResultsError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise ResultsError(f"{path} is not a readable Parquet file (damaged or not Parquet){_elsewhere(path)}") from error


def _native(path: Path, handle: BinaryIO) -> pa.NativeFile:
    """The file for pyarrow's own threads. They must hold no object of Python's: where one was still at it as the interpreter ended, it
    aborted the process after all work was done."""
    import pyarrow as pa

    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:  # pyarrow takes no path whose bytes are no UTF-8
        name = f"/dev/fd/{handle.fileno()}"
    return pa.OSFile(name)


def _elsewhere(path: Path) -> str:
    """How to come by the rows of a store whose table is damaged: the same stand in the JSON file beside it."""
    copy = path.with_suffix(".json")
    if not copy.is_file() or not copy.stat().st_size:
        return ""
    return f"; {copy.name} beside it has its rows: trtllm-bench results merge <new folder> {shlex.quote(str(copy))}"


def _bounded(path: Path, file: Any, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    taken = 0
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
        taken += batch.nbytes
        if taken > MOST_BYTES:
            raise ResultsError(f"{path} holds more than {MOST_BYTES >> 20} MiB of rows once decoded; it is damaged, or no table of results")
        yield batch


def _subset(schema: pa.Schema, columns: list[str] | None) -> pa.Schema:
    import pyarrow as pa

    return schema if columns is None else pa.schema([schema.field(name) for name in schema.names if name in columns], schema.metadata)


def _check_schema(path: Path, metadata: Mapping[bytes, bytes], names: list[str]) -> None:
    if VERSION_KEY not in metadata:
        raise ResultsError(f"{path} is a Parquet file but not one of trtllm-bench; use `results import` for other tools' files")
    check_version(path, metadata[VERSION_KEY].decode("ascii", "replace"))
    missing = next((name for name in REQUIRED if name not in names), None)
    if missing is not None:
        raise ResultsError(f"{path}: column {missing} is missing; it is damaged, or another tool changed it")
    double = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if double is not None:
        raise ResultsError(f"{path}: column {double} is there twice; it is damaged, or another tool changed it")


def check_version(path: Path, version: object) -> None:
    """Raises `ResultsError` for a schema version that is not a number, or is newer than this tool's."""
    text = str(version)
    if isinstance(version, bool | float) or not text.isascii() or not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise ResultsError(f"{path}: schema_version is {text[:40]!a}; it must be a whole number from 1 to {SCHEMA_VERSION}")
    if int(text) > SCHEMA_VERSION:
        raise ResultsError(f"{path} has result schema {text}, newer than this tool's {SCHEMA_VERSION}; upgrade trtllm-bench to read it")


def _check_bounds(path: Path, metadata: Any) -> None:
    for count, most, what in ((metadata.num_rows, MOST_ROWS, "rows"), (metadata.num_columns, MOST_COLUMNS, "columns")):
        if not 0 <= count <= most:
            raise ResultsError(f"{path} says that it has {count:,} {what}; at most {most:,} are read")
