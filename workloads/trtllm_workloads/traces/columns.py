"""Conversions the formats share: CSV by column name, strings to checked numbers. Each raises ValueError with what is wrong."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from trtllm_workloads.tokens import Int32Array

Float64Array = npt.NDArray[np.float64]
MAX_TOKENS = 2**31 - 1
LARGEST_FIELD = 1 << 24
"""Characters of one field; a conversation may be one."""
LARGEST_TIME = 1e15
"""In whatever unit a trace has: milliseconds since 1970 are 1.8e12."""


class Csv:
    """CSV whose columns are found by name, whatever their order and whatever else there is."""

    header_lines = 1

    def __init__(self, header: str, required: Sequence[str], optional: Sequence[str] = ()) -> None:
        names = [name.strip().lower() for name in next(_csv([header]))]
        twice = [name for name in (*required, *optional) if names.count(name.lower()) > 1]
        if twice:
            raise ValueError(f"there are two columns {twice[0]}; leave one")
        missing = [name for name in required if name.lower() not in names]
        if missing:
            raise ValueError(f"there is no column {', '.join(missing)}; the columns are {header.strip()}")
        self._width = len(names)
        self._places = {name: names.index(name.lower()) for name in (*required, *optional) if name.lower() in names}

    def columns(self, lines: Sequence[str]) -> dict[str, tuple[str, ...]]:
        rows = list(_csv(lines))
        if len(rows) != len(lines):
            raise ValueError("a quoted field does not end on its line")
        widths = set(map(len, rows))
        if widths != {self._width}:
            odd = next(width for width in widths if width != self._width)
            raise ValueError(f"{odd} fields where the header has {self._width}")
        columns = list(zip(*rows, strict=True))
        return {name: columns[place] for name, place in self._places.items()}


def _csv(lines: Sequence[str]) -> Iterator[list[str]]:
    """The fields of each line. csv's own error is no ValueError, and its limit is the process's."""
    before = csv.field_size_limit(LARGEST_FIELD)
    try:
        yield from csv.reader(lines)
    except csv.Error as error:
        raise ValueError(f"the line is not CSV: {error}") from None
    finally:
        csv.field_size_limit(before)


def counts(values: Sequence[str] | Sequence[int], what: str) -> Int32Array:
    """Token counts, whole numbers of at least 1."""
    try:
        given = np.asarray(values)
        array = _whole(given) if given.dtype.kind == "f" else given.astype(np.int64)
    except (ValueError, TypeError, OverflowError):
        try:
            array = _whole(np.asarray(values).astype(np.float64))
        except (ValueError, TypeError, OverflowError):
            raise ValueError(f"{what} is {_example(values)}, not a whole number") from None
    if len(array) and (array.min() < 1 or array.max() > MAX_TOKENS):
        bad = int(array[(array < 1) | (array > MAX_TOKENS)][0])
        raise ValueError(f"{what} is {bad}; it must be at least 1" if bad < 1 else f"{what} is {bad}, beyond any sequence length")
    return array.astype(np.int32)


def _whole(numbers: Float64Array) -> npt.NDArray[np.int64]:
    """Floating-point numbers that are whole, as integers. Raises ValueError when one is not, or is beyond 64 bits."""
    if not (np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2**63)).all():
        raise ValueError
    return numbers.astype(np.int64)


def seconds(values: Sequence[str] | Sequence[float], what: str) -> Float64Array:
    """Finite numbers."""
    try:
        array = np.asarray(values).astype(np.float64)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"{what} is {_example(values)}, not a number") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{what} is not a finite number")
    if len(array) and np.abs(array).max() > LARGEST_TIME:
        raise ValueError(f"{what} is {array[np.abs(array).argmax()]:g}, beyond any time")
    return array


def _example(values: Sequence[object]) -> str:
    return f"{values[0]!r:.60}" if len(values) == 1 else "in some row"
