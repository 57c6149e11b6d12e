"""The store: a folder that is readable at every instant, whatever dies and whoever else writes.

    results.parquet   every row (the truth); scalar columns
    results.json      the same rows for people and scripts, one step behind at most
    requests/, steps/, samples/   side tables of a row, `<cell key>-r<repeat>-<row id>.parquet`

`record` takes the folder's lock, writes the row's side tables, then reads, adds and writes a new file beside the old one, syncs it and
renames it over: a reader sees the old rows or the new ones, even one that opens the file twice (`parquet.replacement`). The whole file is
rewritten because a sweep has thousands of rows, not millions (appending to 5,000 takes about 0.3 s on two cores, a cell takes seconds);
side tables, which do have millions, are written once each and never rewritten. What a killed writer leaves (temporaries, side tables
without a row) mentions nothing and is removed by `clean`. Rejected: one file per row (5,000 small files are slow to read and ugly to share)
and SQLite (not what pandas, DuckDB or a spreadsheet open first).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Container, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_results.errors import ResultsError
from trtllm_results.record.row import Row
from trtllm_results.store.files import atomically, temporaries, writing
from trtllm_results.store.layout import FILES, ROWS, ROWS_JSON, SIDE_KINDS, SideKind
from trtllm_results.store.lock import WRITE_LOCK, locked
from trtllm_results.store.parquet import METADATA, OPTIONS, read_table, replacement
from trtllm_results.store.remote import Mirror, fetched, is_address
from trtllm_results.store.rows import empty_frame, json_line, parsed, read_json, rows_of, to_table, unreadable, write_lines

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Sides = Mapping[SideKind, Mapping[str, Any]]
"""Side tables of a row: NumPy arrays of one length by column; a pair (values, offsets) makes a list column."""
_SIDE_NAME = re.compile(r"^[A-Za-z0-9._]+-r\d+-[A-Za-z0-9._-]{1,8}\.parquet$")
_ID_AT = len('{"row_id": "')
"""A line of results.json starts with the row's id, so that appending need not parse the others."""
SHEETS = (".csv", ".xlsx")
"""Endings of tables that a spreadsheet opens (`sheets`)."""
WAIT_S = 60.0
"""For another writer of the same folder; an append takes well below a second."""


class Store:
    """Rows under one folder. Reading needs no lock; `append` may run in several processes at once."""

    def __init__(self, path: str | os.PathLike[str], create: bool = True) -> None:
        """Opens `path`, making it when `create`. Raises `ResultsError` if it is not there, not writable, or not a store."""
        self.path = Path(path)
        self._lines: list[str] = []
        self._written = (0, 0, 0)
        """What this process last wrote into results.json, and the stamp of that file."""
        if self.path.is_file():
            raise ResultsError(f"{self.path} is a file, and a result store is a folder; name another place")
        if not self.path.is_dir():
            if not create:
                raise ResultsError(f"no result store at {self.path}: the folder does not exist")
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ResultsError(f"cannot create the result store {self.path}: {error.strerror}") from error
        elif not (self.path / ROWS).exists() and (self.path / ROWS_JSON).exists():
            raise ResultsError(
                f"{self.path} has a {ROWS_JSON} and no {ROWS} to go with it, which a new one would replace; "
                f"make a store of its rows: trtllm-bench results merge <new folder> {shlex.quote(str(self.path / ROWS_JSON))}"
            )
        elif not create and not (self.path / ROWS).exists():
            deeper = stores_deeper(self.path)
            where = f"stores lie deeper in it, such as {deeper[0]}" if deeper else "name a folder written by sweep or results import"
            raise ResultsError(f"{self.path} holds no {ROWS}, so it is not a result store; {where}")

    @property
    def place(self) -> str:
        """Where a reader finds the rows."""
        return str(self.path)

    def finish(self) -> None:
        """To be called after the last row; a store that is copied elsewhere copies what is left."""

    def append(self, *rows: Row) -> None:
        """Adds rows atomically. A row replaces an earlier one of the same cell and repeat that was not `ok`.

        Raises `ResultsError` when a row is malformed or another writer does not end, `WriteError` when the folder cannot be written.
        """
        checked = [row.checked() for row in rows]
        if checked:
            with self._locked():
                self._append(checked)

    def record(self, row: Row, sides: Sides) -> None:
        """Adds one row with its side tables: all or nothing. Raises as `append`."""
        checked = row.checked()
        with self._locked():
            written: list[Path] = []
            try:
                for kind, columns in sides.items():
                    written.append(self._side_path(kind, checked))
                    self._write_side(kind, checked, columns)
                self._append([checked])
            except BaseException:
                with contextlib.suppress(ResultsError):
                    if checked.row_id not in self._ids():
                        _remove(written)
                raise

    def write(self, name: str, write: Any) -> None:
        """Writes another file of the folder (`layout.FILES`), `write(handle)`, as whole as the tables."""
        with self._locked():
            atomically(self.path / name, write)

    def clean(self) -> list[tuple[Path, int]]:
        """Removes what killed writers left: temporaries, and side tables without a row. Returns what it removed, with sizes in bytes."""
        with self._locked(), writing(self.path):
            left = self._stale_temporaries()
            if (self.path / ROWS).exists() or not (self.path / ROWS_JSON).exists():
                known = {_side_name(row.key, row.repeat, row.row_id) for row in self.rows()}
                left += [path for path in _side_files(self.path) if path.name not in known]
            removed = [(path, path.stat().st_size) for path in left]
            _remove(left)
            return removed

    def rows(self) -> list[Row]:
        return self._read_rows()

    def frame(self) -> pd.DataFrame:
        """All rows as a pandas table, one column per field."""
        return read_table(self.path / ROWS).to_pandas() if (self.path / ROWS).exists() else empty_frame()

    def finished(self) -> set[tuple[str, int]]:
        """(cell key, repeat) of every `ok` row: what a resumed sweep skips."""
        path = self.path / ROWS
        if not path.exists():
            return set()
        table = read_table(path, columns=["cell_key", "repeat", "status"])
        columns = (table.column(name).to_pylist() for name in ("cell_key", "repeat", "status"))
        return {(key, repeat) for key, repeat, status in zip(*columns, strict=True) if status == "ok"}

    def read_side(self, kind: SideKind, row: Row, columns: list[str] | None = None) -> pa.Table | None:
        """The side table of `row`, or None when it has none."""
        path = self._side_path(kind, row)
        return read_table(path, columns, side=True) if path.exists() else None

    def _side_path(self, kind: SideKind, row: Row) -> Path:
        return self.path / kind / _side_name(row.key, row.repeat, row.row_id)

    def _stale_temporaries(self) -> list[Path]:
        """Call with the lock held: nobody is writing them then."""
        own = [path for path in temporaries(self.path) if path.name.startswith(tuple(f".{name}." for name in FILES))]
        return own + [path for kind in SIDE_KINDS for path in temporaries(self.path / kind)]

    def _write_side(self, kind: SideKind, row: Row, columns: Mapping[str, Any]) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        target = self._side_path(kind, row)
        try:
            arrays = {
                name: pa.ListArray.from_arrays(pa.array(data[1], pa.int32()), pa.array(data[0]))
                if isinstance(data, tuple)
                else pa.array(data)
                for name, data in columns.items()
            }
            table = pa.table(arrays)
        except pa.ArrowInvalid as error:
            raise ResultsError(f"side table '{kind}' of {row.label} has columns of unequal length: {error}") from error
        atomically(target, lambda handle: pq.write_table(table, handle, use_dictionary=False, **OPTIONS))
        return target

    def _append(self, rows: list[Row]) -> None:
        _remove(self._stale_temporaries())
        try:
            table, replaced = _merged(self._table(), rows)
            lines = self._json_lines(table, rows)
        except (OverflowError, TypeError, UnicodeError) as error:
            raise unreadable(self.path / ROWS, error) from None
        content = replacement(table, self.path / ROWS)
        atomically(self.path / ROWS, lambda handle: handle.write(content))
        _remove(self.path / kind / name for name in replaced for kind in SIDE_KINDS)
        self._lines = []
        atomically(self.path / ROWS_JSON, lambda handle: write_lines(lines, handle))
        self._lines, self._written = lines, self._stamp()

    def _ids(self) -> set[str]:
        table = read_table(self.path / ROWS, ["row_id"]) if (self.path / ROWS).exists() else None
        return set() if table is None else set(table.column("row_id").to_pylist())

    def _read_rows(self) -> list[Row]:
        table = self._table()
        return [] if table is None else rows_of(table, self.path / ROWS)

    def _table(self) -> pa.Table | None:
        path = self.path / ROWS
        return read_table(path) if path.exists() else None

    def _json_lines(self, table: pa.Table, new: list[Row]) -> list[str]:
        """One JSON line a row of `table`: earlier rows' as this process wrote them last, or all anew where another wrote since."""
        ids = table.column("row_id").to_pylist()
        known = {line[_ID_AT : line.index('"', _ID_AT)]: line for line in self._lines if self._stamp() == self._written}
        known |= {row.row_id: json_line(row.to_flat()) for row in new}
        if all(one in known for one in ids):
            return [known[one] for one in ids]
        return [json_line(flat) for flat in table.to_pylist()]

    def _stamp(self) -> tuple[int, int, int]:
        """Changes whenever another version of results.json is put in place."""
        try:
            status = os.stat(self.path / ROWS_JSON)
        except OSError:
            return (0, 0, 0)
        return (status.st_ino, status.st_size, status.st_mtime_ns)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclusive among writers of this folder; the kernel drops the lock when a writer dies."""
        with locked(self.path, WRITE_LOCK, WAIT_S, "being written"):
            yield


class MirroredStore(Store):
    """A store that is copied to an address each time it has grown. What cannot be copied stays here, and `finish` tries once more."""

    def __init__(self, folder: Path, address: str) -> None:
        super().__init__(folder)
        self.mirror = Mirror(self.path, address)

    def _append(self, rows: list[Row]) -> None:
        super()._append(rows)
        with contextlib.suppress(ResultsError):
            self.mirror.push()

    @property
    def place(self) -> str:
        return self.mirror.place

    def finish(self) -> None:
        """Raises `ResultsError` saying that everything is in the folder here."""
        try:
            self.mirror.push()
        except ResultsError as error:
            raise ResultsError(f"{error}; everything is in {self.path}") from None


def _side_files(folder: Path) -> list[Path]:
    """Side tables of the rows of a store in `folder`; none where there is no such folder."""
    folders = [folder / kind for kind in SIDE_KINDS if (folder / kind).is_dir()]
    return sorted(one / name for one in folders for name in os.listdir(one) if _SIDE_NAME.match(name))


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Rows of a store folder, of a folder or an address (`remote`) with stores below it, or of one Parquet, JSON, CSV or XLSX table that a
    store wrote or `results export` made.

    Raises `ResultsError` naming the file, and the row and field that are wrong.
    """
    if is_address(path):
        with fetched(os.fspath(path)) as copies:
            return _united(copies)
    source = Path(path)
    if source.is_dir():
        return _united(below) if (below := stores_below(source)) else Store(source, create=False).rows()
    if source.suffix == ".json" and source.exists():
        return read_json(source)
    if source.suffix.lower() in SHEETS and source.exists():
        from trtllm_results.store import sheets

        return parsed(sheets.read_csv(source) if source.suffix.lower() == ".csv" else sheets.read_xlsx(source), source)
    return rows_of(read_table(source), source)


def stores_below(folder: Path) -> list[Path]:
    """The stores directly in a folder that is not a store itself, such as `results/recorded/h100`."""
    return [] if (folder / ROWS).exists() else sorted(path.parent for path in folder.glob(f"*/{ROWS}"))


def stores_deeper(folder: Path) -> list[Path]:
    """The stores two levels below a folder that is not a store itself, in folders that are none either: nothing reads them for it."""
    if (folder / ROWS).exists():
        return []
    return sorted(path.parent for path in folder.glob(f"*/*/{ROWS}") if not (path.parent.parent / ROWS).exists())


def store_of(row: Row, source: Path) -> Store | None:
    """The store at `source`, or directly below it, that holds a row with its side tables; None where `source` is a table or an address."""
    if not source.is_dir():
        return None
    stores = [Store(one, create=False) for one in stores_below(source) or [source]]
    return stores[0] if len(stores) == 1 else next(one for one in stores if any(held.row_id == row.row_id for held in one.rows()))


def _united(places: Iterable[Path]) -> list[Row]:
    """Rows of several stores; one that was merged from another counts once."""
    rows = {row.row_id: row for place in places for row in read_rows(place)}
    return list(rows.values())


def _side_name(key: str, repeat: int, row_id: str) -> str:
    """The name of a row's side tables; `_SIDE_NAME` matches it."""
    return f"{key}-r{repeat}-{row_id[:8]}.parquet"


def _merged(table: pa.Table | None, new: list[Row]) -> tuple[pa.Table, list[str]]:
    """`table` without the rows that `new` replaces (same id, or same cell and repeat and not ok), then `new`; and the names of side tables
    that have lost their row."""
    import pyarrow as pa

    added = to_table(new)
    if table is None:
        return added, []
    replaced, ids = {(row.key, row.repeat) for row in new}, {row.row_id for row in new}
    columns = (table.column(name).to_pylist() for name in ("row_id", "cell_key", "repeat", "status"))
    earlier = list(zip(*columns, strict=True))
    keep = [one not in ids and (status == "ok" or (key, repeat) not in replaced) for one, key, repeat, status in earlier]
    gone = [_side_name(key, repeat, one) for kept, (one, key, repeat, _) in zip(keep, earlier, strict=True) if not kept]
    gone = [name for name in gone if _SIDE_NAME.match(name) and not any(name.endswith(f"-{one[:8]}.parquet") for one in ids)]
    kept = table if all(keep) else table.filter(pa.array(keep, pa.bool_()))
    try:
        merged = pa.concat_tables([kept, added], promote_options="default")
    except pa.ArrowException:  # another tool wrote it with types of its own
        merged = to_table([*parsed(kept.to_pylist(), Path(ROWS)), *new])
    return merged.combine_chunks().replace_schema_metadata(METADATA), gone


def extend(store: Store, rows: Iterable[Row]) -> int:
    """Appends the rows `store` lacks (by row id): merging twice adds nothing. Returns how many were new."""
    present = {row.row_id for row in store.rows()}
    new = [row for row in rows if row.row_id not in present]
    store.append(*new)
    return len(new)


def merge_store(store: Store, source: str | os.PathLike[str], ids: Container[str] | None = None) -> int:
    """`extend` with the rows of another store, set of stores or table, and copies of their side tables, also of a store that is named by
    one of its own tables. Returns how many rows were new.

    With `ids` only the rows of these ids, and their side tables.
    """
    if is_address(source):
        with fetched(os.fspath(source), sides=True) as copies:
            return sum(merge_store(store, copy, ids) for copy in copies)
    source = Path(source)
    if source.is_dir() and (below := stores_below(source)):
        return sum(merge_store(store, one, ids) for one in below)
    return _merge(store, source, ids)


def _merge(store: Store, source: Path, ids: Container[str] | None) -> int:
    import shutil

    rows = [row for row in read_rows(source) if ids is None or row.row_id in ids]
    chosen = None if ids is None else {_side_name(row.key, row.repeat, row.row_id) for row in rows}
    folder = source.parent if source.name in (ROWS, ROWS_JSON) else source
    with store._locked():
        for path in _side_files(folder):
            target = store.path / path.parent.name / path.name
            if target.exists() or (chosen is not None and path.name not in chosen):
                continue
            with open(path, "rb") as origin:
                atomically(target, partial(shutil.copyfileobj, origin))
        present = {row.row_id for row in store.rows()}
        new = [row.checked() for row in rows if row.row_id not in present]
        if new:
            store._append(new)
    return len(new)
