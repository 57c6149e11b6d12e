"""Choosing rows: named result sets from paths, filters such as `precision=fp8` or `batch>=64`, and the field of a row by name."""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trtllm_results.errors import ResultsError, did_you_mean
from trtllm_results.metrics.registry import METRICS
from trtllm_results.record.cell import CELL_FIELDS
from trtllm_results.record.environment import ENVIRONMENT_FIELDS
from trtllm_results.record.row import Row
from trtllm_results.store.remote import is_address, name_of
from trtllm_results.store.table import read_rows

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
ROW_NAMES = ("status", "repeat", "run_id", "arm", "started_at")


@dataclass(frozen=True)
class ResultSet:
    """Rows under one name, as a reader thinks of them: `before`, `after`, `vllm`."""

    name: str
    rows: tuple[Row, ...]


def settings_in(rows: Iterable[Row]) -> frozenset[str]:
    """Names of the settings that any of `rows` has."""
    return frozenset(name for row in rows for name in row.settings)


def field_of(row: Row, name: str, settings: Collection[str] = ()) -> Any:
    """A cell field, `env_*` field, figure, `status`, `repeat`, `gpu`, `run_id`, `arm` or `started_at` of `row`, or a setting; None for a
    figure it lacks, and for one of `settings` that it lacks.

    Raises `ResultsError` for a name that is none of these.
    """
    if name in CELL_FIELDS:
        return getattr(row.cell, name)
    if name == "gpu":
        return row.environment.device
    if name in ROW_NAMES:
        return getattr(row, name)
    if name.removeprefix("env_") in ENVIRONMENT_FIELDS:
        return getattr(row.environment, name.removeprefix("env_"))
    if name in METRICS or name in row.figures:
        return row.figures.get(name)
    known = row.settings
    if name in known or name in settings:
        return known.get(name)
    near = did_you_mean(name, (*CELL_FIELDS, *ROW_NAMES, "gpu", *METRICS, *known, *settings, *(f"env_{one}" for one in ENVIRONMENT_FIELDS)))
    raise ResultsError(
        f"results have no field '{name}'{near}; use a cell field ({', '.join(CELL_FIELDS)}), env_*, a setting or a figure (docs/schema.md)"
    )


def parse_filter(text: str, settings: Collection[str] = ()) -> Callable[[Row], bool]:
    """`FIELD OP VALUE` with = != >= <= > <. A row that lacks the figure, or the one of `settings`, does not pass. Raises `ResultsError` if
    not understood."""
    match = re.fullmatch(r"\s*([a-z0-9_]+)\s*(>=|<=|!=|=|>|<)\s*(.+?)\s*", text)
    if not match:
        raise ResultsError(f"filter '{text}' is not understood; write for example precision=fp8 or batch>=64")
    name, symbol, asked = match.groups()

    def passes(row: Row) -> bool:
        value = field_of(row, name, settings)
        if value is None:
            return False
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return bool(_OPERATORS[symbol](value, float(asked)))
            except ValueError:
                raise ResultsError(f"filter '{text}': {name} is a number, '{asked}' is not") from None
        return bool(_OPERATORS[symbol](str(value), asked))

    return passes


def keep(rows: Iterable[Row], filters: Sequence[str]) -> list[Row]:
    """The rows that pass every filter."""
    rows = list(rows)
    settings = settings_in(rows) if filters else ()
    tests = [parse_filter(text, settings) for text in filters]
    return [row for row in rows if all(test(row) for test in tests)]


def none_passes(filters: Sequence[str]) -> str:
    """What to say where `keep` leaves nothing."""
    return f"no result passes {' and '.join(filters)}; leave a filter out (trtllm-bench results ls shows what there is)"


def named_path(spec: str) -> tuple[str, Path]:
    """Name and path of a result set, `PATH` or `NAME=PATH`. What exists is a path as it stands, whatever signs it holds."""
    name, equals, path = spec.partition("=")
    if equals and not os.path.exists(spec):
        return name, Path(os.path.expanduser(path))
    return spec.rstrip("/").rsplit("/", 1)[-1] or spec, Path(spec)


def path_and_filters(spec: str) -> tuple[str, list[str]]:
    """`PATH@FILTER,FILTER` apart. What exists is a path as it stands."""
    if os.path.exists(spec):
        return spec, []
    path, _, filters = spec.rpartition("@") if "@" in spec else (spec, "", "")
    return path, [part.strip() for part in filters.split(",") if part.strip()]


def load_set(spec: str) -> ResultSet:
    """`PATH` or `NAME=PATH`: a store folder, a folder of stores, a table file, or an address of any of them (`s3://bucket/set`).

    Raises `ResultsError` if it cannot be read or is empty.
    """
    name, place = named_place(spec)
    rows = tuple(read_rows(place))
    if not rows:
        raise ResultsError(f"{place} holds no results")
    return ResultSet(name, rows)


def named_place(spec: str) -> tuple[str, str | Path]:
    """`named_path`, or name and address."""
    name, _, rest = spec.partition("=")
    if is_address(spec):
        return name_of(spec), spec
    return (name, rest) if is_address(rest) and not os.path.exists(spec) else named_path(spec)


def split_by(rows: Iterable[Row], field: str) -> list[ResultSet]:
    """One set for each value of `field`, in order of first appearance. Raises `ResultsError` if there is only one value."""
    rows, groups = list(rows), dict[str, list[Row]]()
    settings = settings_in(rows)
    for row in rows:
        groups.setdefault(str(field_of(row, field, settings)), []).append(row)
    if len(groups) < 2:
        raise ResultsError(f"all rows have {field} = {next(iter(groups), '(none)')}; there is nothing to compare by {field}")
    return [ResultSet(name, tuple(members)) for name, members in groups.items()]
