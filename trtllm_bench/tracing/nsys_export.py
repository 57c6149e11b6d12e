"""Device activity out of Nsight Systems' SQLite export.

The schema changes between versions (its documentation warns of it), so tables and columns are probed: a kernel table must be there, all
else may be missing. Names are numbers into `StringIds`; times are nanoseconds.
Source of the names: Nsight Systems User Guide, "SQLite Schema Reference".
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from trtllm_bench.errors import BenchError
from trtllm_bench.tracing.trace import Event, EventKind

KERNELS, COPIES, FILLS, RANGES = (
    "CUPTI_ACTIVITY_KIND_KERNEL",
    "CUPTI_ACTIVITY_KIND_MEMCPY",
    "CUPTI_ACTIVITY_KIND_MEMSET",
    "NVTX_EVENTS",
)
_COPY = {1: "Memcpy HtoD", 2: "Memcpy DtoH", 8: "Memcpy DtoD"}
"""CUPTI's kinds of copy."""


def read_nsys(path: Path, domain: str = "trtllm", process: int | None = None) -> tuple[list[Event], list[Event]]:
    """(kernels, copies and fills by start; NVTX ranges of `domain` by start), of one process or of all. Raises `BenchError` for a file that
    is no such export, and for a process without kernels."""
    if not path.is_file():
        raise BenchError(f"no Nsight Systems export at {path}; make one with nsys export --type sqlite")
    try:
        with closing(sqlite3.connect(f"{Path(os.path.realpath(path)).as_uri()}?mode=ro", uri=True)) as database:
            database.text_factory = lambda raw: raw.decode(errors="replace")
            ((pages,),), ((page_bytes,),) = (database.execute(f"PRAGMA {what}").fetchall() for what in ("page_count", "page_size"))
            if pages * page_bytes > path.stat().st_size:
                raise BenchError(f"{path} is cut short: {path.stat().st_size:,} bytes of {pages * page_bytes:,}; export it again")
            tables = _columns(database)
            if KERNELS not in tables:
                raise BenchError(f"{path} holds no kernels (table {KERNELS}); record with --trace=cuda, and export to SQLite")
            strings = dict(database.execute("SELECT id, value FROM StringIds")) if "StringIds" in tables else {}
            events = _kernels(database, tables[KERNELS], strings, process)
            if process is not None and not events:
                raise BenchError(
                    f"{path} holds no kernels of process {process}; record with Nsight Systems of 2021.1 or later, in this container"
                )
            events += _copies(database, tables.get(COPIES, set()), process)
            events += _fills(database, tables.get(FILLS, set()), process)
            ranges = _ranges(database, tables.get(RANGES, set()), strings, domain, process)
    except (sqlite3.DatabaseError, TypeError, UnicodeDecodeError) as error:  # the last two: damaged times, damaged names of columns
        raise BenchError(f"{path} is no SQLite export of Nsight Systems ({error})") from error
    return sorted(events, key=lambda event: event.start_us), ranges


def _columns(database: sqlite3.Connection) -> dict[str, set[str]]:
    names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')")]
    return {name: {row[1] for row in database.execute(f'PRAGMA table_info("{name}")')} for name in names}


def _event(name: str, start: int, end: int, kind: EventKind, stream: int | None) -> Event:
    return Event(name, start / 1e3, (end - start) / 1e3, kind, stream or 0)


def _of(process: int | None, columns: set[str], column: str = "globalPid") -> str:
    """A condition for one process, whose number is in bits 24 to 47 of a global one (User Guide, "Common SQLite Examples"); a version
    without such a column has none of it."""
    if process is None:
        return ""
    return f" AND {column} / 0x1000000 % 0x1000000 = {process}" if column in columns else " AND 0"


def _stream(columns: set[str]) -> str:
    return "streamId" if "streamId" in columns else "0"


def _kernels(database: sqlite3.Connection, columns: set[str], strings: dict[int, str], process: int | None) -> list[Event]:
    name = next((column for column in ("demangledName", "shortName", "mangledName", "name") if column in columns), "NULL")
    query = f"SELECT {name}, start, end, {_stream(columns)} FROM {KERNELS} WHERE end IS NOT NULL{_of(process, columns)}"
    return [_event(str(strings.get(named, named)), start, end, "kernel", stream) for named, start, end, stream in database.execute(query)]


def _copies(database: sqlite3.Connection, columns: set[str], process: int | None) -> list[Event]:
    if not columns:
        return []
    kind = "copyKind" if "copyKind" in columns else "0"
    query = f"SELECT {kind}, start, end, {_stream(columns)} FROM {COPIES} WHERE end IS NOT NULL{_of(process, columns)}"
    return [_event(_COPY.get(k, f"Memcpy {k}"), start, end, "memcpy", stream) for k, start, end, stream in database.execute(query)]


def _fills(database: sqlite3.Connection, columns: set[str], process: int | None) -> list[Event]:
    if not columns:
        return []
    query = f"SELECT start, end, {_stream(columns)} FROM {FILLS} WHERE end IS NOT NULL{_of(process, columns)}"
    return [_event("Memset", start, end, "memset", stream) for start, end, stream in database.execute(query)]


def _ranges(database: sqlite3.Connection, columns: set[str], strings: dict[int, str], domain: str, process: int | None) -> list[Event]:
    """Push/pop ranges; a domain is an event whose text is its name (event type 75), ranges refer to its number."""
    if not {"start", "end", "text"} <= columns:
        return []
    text = "COALESCE(text, textId)" if "textId" in columns else "text"
    condition = _of(process, columns, "globalTid")
    if {"domainId", "eventType"} <= columns:
        named = "(SELECT id FROM StringIds WHERE value = ?)" if strings else "?"
        condition += f" AND domainId IN (SELECT domainId FROM {RANGES} WHERE eventType = 75 AND {text} IN (?, {named}))"
    query = f"SELECT {text}, start, end FROM {RANGES} WHERE end IS NOT NULL{condition} ORDER BY start, end DESC"
    rows = database.execute(query, (domain, domain) if "?" in condition else ())
    return [_event(str(strings.get(named, named)), start, end, "range", None) for named, start, end in rows]
