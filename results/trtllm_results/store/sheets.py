"""Rows as tables that a spreadsheet opens, CSV and XLSX, and back without loss.

A spreadsheet's cell has no type that can be trusted, so types come from the record: identity and environment columns have those of their
fields, every other column is a figure. An empty cell is empty text in a column of text, and says nothing of its row in another. Floats are
written with as many digits as bring the same float back. XLSX cannot hold control characters; they are written as Excel itself writes them
(`_x000D_`), and so is text that looks like it. Text that begins like a formula is stored as text in XLSX; CSV has no way to say so.

CSV is RFC 4180 with a byte order mark, which makes spreadsheets read it as UTF-8. Rejected: pandas for reading, which guesses types (a
revision `12345e6` became a float) and takes `NA` for nothing.
"""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from trtllm_results.errors import ResultsError
from trtllm_results.record.cell import CELL_FIELDS
from trtllm_results.record.environment import ENVIRONMENT_FIELDS
from trtllm_results.record.flat import REQUIRED, ROW_FIELDS, shown
from trtllm_results.record.row import Row
from trtllm_results.store.files import atomically, check_last_line, check_regular, read_text
from trtllm_results.store.parquet import MOST_COLUMNS, MOST_ROWS, check_version

MOST_BYTES = 2**28
SHEET = "results"
MOST_SHEET_TEXT = 32_767
"""Characters that a spreadsheet's cell holds."""
KINDS: Mapping[str, str] = {**ROW_FIELDS, **CELL_FIELDS, **{f"env_{name}": kind for name, kind in ENVIRONMENT_FIELDS.items()}}
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\ufffe\uffff]|_(?=x[0-9A-Fa-f]{4}_)")
_ESCAPED = re.compile(r"_x([0-9A-Fa-f]{4})_")


def write_csv(rows: Sequence[Row], target: Path) -> None:
    names, lines = _table(rows)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(names)
    writer.writerows([_text(line.get(name)) for name in names] for line in lines)
    atomically(target, lambda handle: handle.write(text.getvalue().encode("utf-8-sig")))


def write_xlsx(rows: Sequence[Row], target: Path) -> None:
    """One sheet, one row per measurement. Raises `ResultsError` where a text is longer than a cell holds."""
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell

    names, lines = _table(rows)
    texts = [[_escaped(target, number, name, line.get(name)) for name in names] for number, line in enumerate(lines, 1)]
    book = Workbook(write_only=True)
    sheet = book.create_sheet(SHEET)
    sheet.freeze_panes = "A2"

    def cell(value: Any) -> Any:
        if not isinstance(value, str | float):
            return value
        made = WriteOnlyCell(sheet, value=value if isinstance(value, str) else repr(value))  # openpyxl keeps 16 digits of a float, not 17
        made.data_type = "s" if isinstance(value, str) else "n"  # a text that starts with "=" is not a formula
        return made

    sheet.append(names)
    for values in texts:
        sheet.append([cell(value) for value in values])
    atomically(target, lambda handle: _save(book, handle))


def _escaped(target: Path, number: int, name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    escaped = _UNPRINTABLE.sub(lambda match: f"_x{ord(match[0]):04X}_", value)
    if len(escaped) > MOST_SHEET_TEXT:
        raise ResultsError(
            f"{target}: {name} of row {number} has {len(escaped):,} characters and a cell of a spreadsheet holds {MOST_SHEET_TEXT:,}; "
            "export to .csv or .parquet"
        )
    return escaped


def _save(book: Any, handle: BinaryIO) -> None:
    content = io.BytesIO()
    book.save(content)
    handle.write(content.getvalue())


def read_csv(path: Path) -> Iterator[Mapping[str, Any]]:
    """Flat rows of a CSV file of ours. Raises `ResultsError` naming file, row and column."""
    text = read_text(path, MOST_BYTES).removeprefix("\ufeff")
    before = csv.field_size_limit(2**31 - 1)
    try:
        check_last_line(text, path)
        yield from _flats(path, csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise ResultsError(f"{path} is no CSV table: {shown(str(error))}") from None
    finally:
        csv.field_size_limit(before)


def read_xlsx(path: Path) -> Iterator[Mapping[str, Any]]:
    """Flat rows of the first sheet of a workbook of ours. Raises `ResultsError` naming file, row and column."""
    from openpyxl import load_workbook

    if check_regular(path) > MOST_BYTES:
        raise ResultsError(f"{path} is larger than the {MOST_BYTES >> 20} MiB that are read")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
                raise ResultsError(f"{path} unpacks to more than the {MOST_BYTES >> 20} MiB that are read")
        sheet = load_workbook(path, read_only=True, data_only=True).worksheets[0]
        lines = [["" if value is None else _plain(value) for value in line] for line in sheet.iter_rows(values_only=True)]
    except ResultsError:
        raise
    except Exception as error:  # of a damaged part openpyxl raises whatever its parser does: zlib's, expat's, TypeError
        raise ResultsError(f"{path} is not a workbook that can be read ({shown(' '.join(str(error).split()))})") from None
    yield from _flats(path, iter(lines))


def _plain(value: Any) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 16)), value) if isinstance(value, str) else _text(value)


def _table(rows: Iterable[Row]) -> tuple[list[str], list[dict[str, Any]]]:
    """Columns (identity, environment, then figures in the order first seen) and flat rows."""
    lines = [row.to_flat() for row in rows]
    figures = dict.fromkeys(name for line in lines for name in line if name not in KINDS)
    return [*KINDS, *figures], lines


def _text(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else repr(value) if isinstance(value, float) else str(value)


def _flats(path: Path, lines: Iterator[list[str]]) -> Iterator[Mapping[str, Any]]:
    header = next(lines, [])
    missing = next((name for name in REQUIRED if name not in header), None)
    if missing is not None:
        other = "use `results import` for other tools' files"
        raise ResultsError(f"{path} is not a table of trtllm-bench: column {missing} is missing; {other}")
    double = next((name for name in header if name and header.count(name) > 1), None)
    if double is not None or len(header) > MOST_COLUMNS:
        raise ResultsError(f"{path}: column {double} is there twice" if double else f"{path}: more than {MOST_COLUMNS:,} columns")
    for number, line in enumerate(lines, 1):
        if not any(line):
            continue
        if len(line) > len(header) or number > MOST_ROWS:
            raise ResultsError(f"{path}: row {number} has {len(line)} cells and the header {len(header)}; it is damaged")
        cells = [(name, text) for name, text in zip(header, line, strict=False) if name and (text != "" or KINDS.get(name) == "str")]
        flat = {name: _typed(path, number, name, text) for name, text in cells}
        check_version(path, flat.get("schema_version", 1))
        yield flat


def _typed(path: Path, number: int, name: str, text: str) -> Any:
    """A cell's value by the type of its column. A whole number may have got a decimal point from a spreadsheet."""
    kind = KINDS.get(name, "float")
    if kind in ("str", "json") or kind.startswith("Mapping"):
        return text
    if kind == "bool":
        if text.lower() in ("true", "false", "1", "0"):
            return text.lower() in ("true", "1")
        raise ResultsError(f"{path}: row {number}: {name} is {shown(text)}; it must be true or false")
    try:
        return int(text) if kind == "int" and text.lstrip("-").isdecimal() else float(text)
    except (ValueError, OverflowError):
        if name not in KINDS:
            return text  # a text column that a newer version added
        raise ResultsError(f"{path}: row {number}: {name} is {shown(text)}; it must be a number") from None
