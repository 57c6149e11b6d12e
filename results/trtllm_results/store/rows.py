"""Rows as an Arrow table, a Parquet file and a JSON document, and back. What is wrong with a file is told by its name, row and field."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from trtllm_results.errors import ResultsError
from trtllm_results.record.cell import CELL_FIELDS
from trtllm_results.record.environment import ENVIRONMENT_FIELDS
from trtllm_results.record.flat import ROW_FIELDS, shown
from trtllm_results.record.row import SCHEMA_VERSION, Row
from trtllm_results.store.files import atomically, read_text
from trtllm_results.store.parquet import METADATA, OPTIONS, check_version

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MOST_JSON_BYTES = 2**28


def rows_of(table: pa.Table, path: Path) -> list[Row]:
    def flats() -> Iterator[Mapping[str, Any]]:
        for batch in table.to_batches(max_chunksize=512):
            try:
                yield from batch.to_pylist()
            except (ValueError, OverflowError, TypeError) as error:
                raise unreadable(path, error) from None

    return parsed(flats(), path)


def unreadable(path: Path, error: Exception) -> ResultsError:
    return ResultsError(f"{path}: a column has values that cannot be read ({shown(str(error))}); the file is damaged")


def parsed(flats: Iterable[Any], path: Path) -> list[Row]:
    rows = []
    for number, flat in enumerate(flats, 1):
        if not isinstance(flat, Mapping):
            raise ResultsError(f"{path}: row {number} is {shown(flat)}; it must be an object")
        try:
            rows.append(Row.from_flat(flat))
        except ResultsError as error:
            raise ResultsError(f"{path}: row {number}: {error}") from None
    return rows


def read_json(path: Path) -> list[Row]:
    text = read_text(path, MOST_JSON_BYTES)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno:,}" if isinstance(error, json.JSONDecodeError) else ""
        raise ResultsError(f"{path} is not a results.json of trtllm-bench: it contains invalid JSON{where}") from None
    if not isinstance(content, dict) or not {"schema_version", "rows"} <= set(content):
        raise ResultsError(f"{path} is not a results.json of trtllm-bench; use `results import` for other tools' files")
    check_version(path, content["schema_version"])
    if not isinstance(content["rows"], list):
        raise ResultsError(f"{path}: rows is {shown(content['rows'])}; it must be a list")
    return parsed(content["rows"], path)


def _arrow_type(kind: str) -> Any:
    import pyarrow as pa

    return {"int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}.get(kind, pa.string())


def _schema(rows: list[Row]) -> pa.Schema:
    import pyarrow as pa

    fields = [pa.field(name, _arrow_type(kind)) for name, kind in (*ROW_FIELDS.items(), *CELL_FIELDS.items())]
    fields += [pa.field(f"env_{name}", _arrow_type(kind)) for name, kind in ENVIRONMENT_FIELDS.items()]
    figures = dict.fromkeys(name for row in rows for name in row.figures)
    fields += [pa.field(name, pa.float64()) for name in figures]
    return pa.schema(fields, metadata=METADATA)


def to_table(rows: list[Row]) -> pa.Table:
    """Rows as the Arrow table a store holds."""
    import pyarrow as pa

    return pa.Table.from_pylist([row.to_flat() for row in rows], schema=_schema(rows))


def empty_frame() -> pd.DataFrame:
    frame: pd.DataFrame = to_table([]).to_pandas()
    return frame


def write_parquet(rows: list[Row], target: Path) -> None:
    import pyarrow.parquet as pq

    atomically(target, lambda handle: pq.write_table(to_table(rows), handle, **OPTIONS))


def write_json(rows: list[Row], target: Path) -> None:
    atomically(target, lambda handle: write_lines([json_line(row.to_flat()) for row in rows], handle))


def json_line(flat: Mapping[str, Any]) -> str:
    return json.dumps({"row_id": flat["row_id"]} | {name: value for name, value in flat.items() if value not in ("", None)})


def write_lines(lines: list[str], handle: BinaryIO) -> None:
    handle.write((f'{{"schema_version": {SCHEMA_VERSION}, "rows": [\n' + ",\n".join(lines) + "\n]}\n").encode())
