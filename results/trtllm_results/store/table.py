"""The store: a folder that is readable at every instant, whatever dies and whoever else writes.

    results.parquet   every row (the truth); scalar columns
    results.json      the same rows for people and scripts, one step behind at most
    requests/, steps/, samples/   side tables of a row, `<cell key>-r<repeat>-<row id>.parquet`

`append` takes a lock, reads, adds, writes a new file beside the old one, syncs it and renames it over: a reader sees the old rows or the
new ones. The whole file is rewritten because a sweep has thousands of rows, not millions (appending to 5,000 takes about 0.3 s on two
cores, a cell takes seconds); side tables, which do have millions, are written once each and never rewritten. Rejected: one file a row
(5,000 small files are slow to read and ugly to share) and SQLite (not what pandas, DuckDB or a spreadsheet open first).
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trtllm_results.errors import ResultsError
from trtllm_results.record.row import CELL_FIELDS, ENVIRONMENT_FIELDS, ROW_FIELDS, SCHEMA_VERSION, Row

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SideKind = Literal["requests", "steps", "samples"]
_VERSION_KEY = b"trtllm_results.schema_version"
_METADATA = {_VERSION_KEY: str(SCHEMA_VERSION).encode()}
_TABLE = "results.parquet"
_JSON = "results.json"
_ID_AT, _ID_LENGTH = len('{"row_id": "'), 32
"""A line of results.json starts with the row's id, so that appending need not parse the others."""


class Store:
    """Rows under one folder. Reading needs no lock; `append` may run in several processes at once."""

    def __init__(self, path: str | os.PathLike[str], create: bool = True) -> None:
        """Opens `path`, making it when `create`. Raises `ResultsError` if it is not there, not writable, or not a store."""
        self.path = Path(path)
        if self.path.is_file():
            raise ResultsError(f"{self.path} is a file; a result store is a folder (read a single table with `read_rows`).")
        if not self.path.is_dir():
            if not create:
                raise ResultsError(f"No result store at {self.path}: the folder does not exist.")
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ResultsError(f"Cannot create the result store {self.path}: {error.strerror}.") from error
        elif not create and not (self.path / _TABLE).exists():
            raise ResultsError(
                f"{self.path} holds no {_TABLE}, so it is not a result store; name a folder written by sweep or results import."
            )

    def append(self, *rows: Row) -> None:
        """Adds rows atomically. A row replaces an earlier one of the same cell and repeat that was not `ok`.

        Raises `ResultsError` when the folder cannot be written or a row is malformed.
        """
        checked = [row.checked() for row in rows]
        if not checked:
            return
        try:
            with self._locked():
                table = _merged(self._table(), checked)
                lines = self._json_lines(table, checked)
                self._replace(_TABLE, lambda target: _write_table(table, target))
                self._replace(_JSON, lambda target: _write_lines(lines, target))
        except OSError as error:
            raise ResultsError(f"Cannot write results to {self.path}: {error.strerror}.") from error

    def rows(self) -> list[Row]:
        return self._read_rows()

    def frame(self) -> pd.DataFrame:
        """All rows as a pandas table, one column a field."""
        return read_table(self.path / _TABLE).to_pandas() if (self.path / _TABLE).exists() else _empty_frame()

    def finished(self) -> set[tuple[str, int]]:
        """(cell key, repeat) of every `ok` row: what a resumed sweep skips."""
        path = self.path / _TABLE
        if not path.exists():
            return set()
        table = read_table(path, columns=["cell_key", "repeat", "status"])
        columns = (table.column(name).to_pylist() for name in ("cell_key", "repeat", "status"))
        return {(key, repeat) for key, repeat, status in zip(*columns, strict=True) if status == "ok"}

    def write_side(self, kind: SideKind, row: Row, columns: Mapping[str, Any]) -> Path:
        """Writes one side table of `row` (NumPy arrays of one length; a pair (values, offsets) makes a list column). Returns its path.

        Write it before `append(row)`: a row's side tables then always exist.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        target = self._side_path(kind, row)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            arrays = {
                name: pa.ListArray.from_arrays(pa.array(data[1], pa.int32()), pa.array(data[0]))
                if isinstance(data, tuple)
                else pa.array(data)
                for name, data in columns.items()
            }
            table = pa.table(arrays)
            _atomically(target, lambda temporary: pq.write_table(table, temporary, compression="lz4", use_dictionary=False))
        except OSError as error:
            raise ResultsError(f"Cannot write {target}: {error.strerror}.") from error
        except pa.ArrowInvalid as error:
            raise ResultsError(f"Side table '{kind}' of {row.cell.label} has columns of unequal length: {error}.") from error
        return target

    def read_side(self, kind: SideKind, row: Row, columns: list[str] | None = None) -> pa.Table | None:
        """The side table of `row`, or None when it has none."""
        path = self._side_path(kind, row)
        return read_table(path, columns, side=True) if path.exists() else None

    def _side_path(self, kind: SideKind, row: Row) -> Path:
        return self.path / kind / f"{row.key}-r{row.repeat}-{row.row_id[:8]}.parquet"

    def _read_rows(self) -> list[Row]:
        table = self._table()
        return [] if table is None else [Row.from_flat(flat) for flat in table.to_pylist()]

    def _table(self) -> pa.Table | None:
        path = self.path / _TABLE
        return read_table(path) if path.exists() else None

    def _json_lines(self, table: pa.Table, new: list[Row]) -> list[str]:
        """One JSON line a row of `table`: earlier rows' from the file as they are, or all anew if the file lacks any."""
        ids = table.column("row_id").to_pylist()
        try:
            lines = (self.path / _JSON).read_text().splitlines()[1:-1]
        except OSError:
            lines = []
        known = {line[_ID_AT : _ID_AT + _ID_LENGTH]: line.rstrip(",") for line in lines}
        known |= {row.row_id: _json_line(row.to_flat()) for row in new}
        if all(one in known for one in ids):
            return [known[one] for one in ids]
        return [_json_line(flat) for flat in table.to_pylist()]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclusive among writers of this folder; the kernel drops the lock when a writer dies."""
        import fcntl

        with open(self.path / ".lock", "a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            for name in (_TABLE, _JSON):
                for stale in self.path.glob(f".{name}.*.tmp"):
                    stale.unlink(missing_ok=True)
            yield

    def _replace(self, name: str, write: Any) -> None:
        _atomically(self.path / name, write)


def read_table(path: Path, columns: list[str] | None = None, side: bool = False) -> pa.Table:
    """Reads one Parquet file of ours. Raises `ResultsError` if it is missing, damaged, foreign, or of a newer schema."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        raise ResultsError(f"No results at {path}.")
    try:
        with pq.ParquetFile(path) as file:
            metadata = file.schema_arrow.metadata or {}
            names = set(file.schema_arrow.names)
            if not side:
                _check_schema(path, metadata, names)
            return file.read(columns=[name for name in columns if name in names] if columns is not None else None)
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise ResultsError(f"{path} is not a readable Parquet file (damaged or not Parquet).") from error


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Rows of a store folder or of one Parquet or JSON table that a store wrote or `results export` made."""
    source = Path(path)
    if source.is_dir():
        return Store(source, create=False).rows()
    if source.suffix == ".json" and source.exists():
        return _read_json(source)
    return [Row.from_flat(flat) for flat in read_table(source).to_pylist()]


def _check_schema(path: Path, metadata: Mapping[bytes, bytes], names: set[str]) -> None:
    if _VERSION_KEY not in metadata or not {"row_id", "cell_key", "model"} <= names:
        raise ResultsError(f"{path} is a Parquet file but not one of trtllm-bench; use `results import` for other tools' files.")
    version = int(metadata[_VERSION_KEY])
    if version > SCHEMA_VERSION:
        raise ResultsError(f"{path} has result schema {version}, newer than this tool's {SCHEMA_VERSION}; upgrade trtllm-bench to read it.")


def _read_json(path: Path) -> list[Row]:
    try:
        content = json.loads(path.read_text())
        version, flats = int(content["schema_version"]), content["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise ResultsError(f"{path} is not a results.json of trtllm-bench; use `results import` for other tools' files.") from error
    if version > SCHEMA_VERSION:
        raise ResultsError(f"{path} has result schema {version}, newer than this tool's {SCHEMA_VERSION}; upgrade trtllm-bench to read it.")
    return [Row.from_flat(flat) for flat in flats]


def _merged(table: pa.Table | None, new: list[Row]) -> pa.Table:
    """`table` without the rows that `new` replaces (same id, or same cell and repeat and not ok), then `new`."""
    import pyarrow as pa

    added = to_table(new)
    if table is None:
        return added
    replaced, ids = {(row.key, row.repeat) for row in new}, {row.row_id for row in new}
    columns = (table.column(name).to_pylist() for name in ("row_id", "cell_key", "repeat", "status"))
    keep = [one not in ids and (status == "ok" or (key, repeat) not in replaced) for one, key, repeat, status in zip(*columns, strict=True)]
    kept = table if all(keep) else table.filter(pa.array(keep, pa.bool_()))
    merged = pa.concat_tables([kept, added], promote_options="default")
    return merged.combine_chunks().replace_schema_metadata(_METADATA)


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    return {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}.get(kind, pa.string())


def _schema(rows: list[Row]) -> pa.Schema:
    import pyarrow as pa

    fields = [pa.field(name, _arrow_type(kind)) for name, kind in (*ROW_FIELDS.items(), *CELL_FIELDS.items())]
    fields += [pa.field(f"env_{name}", _arrow_type(kind)) for name, kind in ENVIRONMENT_FIELDS.items()]
    figures = dict.fromkeys(name for row in rows for name in row.figures)
    fields += [pa.field(name, pa.float64()) for name in figures]
    return pa.schema(fields, metadata=_METADATA)


def to_table(rows: list[Row]) -> pa.Table:
    """Rows as the Arrow table a store holds."""
    import pyarrow as pa

    return pa.Table.from_pylist([row.to_flat() for row in rows], schema=_schema(rows))


def _empty_frame() -> pd.DataFrame:
    frame: pd.DataFrame = to_table([]).to_pandas()
    return frame


def write_parquet(rows: list[Row], target: Path) -> None:
    _write_table(to_table(rows), target)


def _write_table(table: pa.Table, target: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table, target, compression="lz4")


def write_json(rows: list[Row], target: Path) -> None:
    _write_lines([_json_line(row.to_flat()) for row in rows], target)


def _json_line(flat: Mapping[str, Any]) -> str:
    return json.dumps({"row_id": flat["row_id"]} | {name: value for name, value in flat.items() if value not in ("", None)})


def _write_lines(lines: list[str], target: Path) -> None:
    target.write_text(f'{{"schema_version": {SCHEMA_VERSION}, "rows": [\n' + ",\n".join(lines) + "\n]}\n")


def write_csv(rows: list[Row], target: Path) -> None:
    """CSV with a byte order mark, which is what makes a spreadsheet read it as UTF-8."""
    to_table(rows).to_pandas().to_csv(target, index=False, encoding="utf-8-sig")


def _atomically(target: Path, write: Any) -> None:
    """`write(path)` to a temporary file, sync, rename over `target`, sync the folder."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def extend(store: Store, rows: Iterable[Row]) -> int:
    """Appends the rows `store` lacks (by row id): merging twice adds nothing. Returns how many were new."""
    present = {row.row_id for row in store.rows()}
    new = [row for row in rows if row.row_id not in present]
    store.append(*new)
    return len(new)


def merge_store(store: Store, source: Path) -> int:
    """`extend` with the rows of another store or table, and copies of their side tables. Returns how many rows were new."""
    import shutil

    rows = read_rows(source)
    if source.is_dir():
        for kind in ("requests", "steps", "samples"):
            for path in sorted((source / kind).glob("*.parquet")):
                target = store.path / kind / path.name
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _atomically(target, lambda temporary, path=path: shutil.copyfile(path, temporary))
    return extend(store, rows)
