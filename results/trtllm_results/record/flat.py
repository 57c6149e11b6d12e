"""The columns of a row on disk, and a typed model of them: what a file says of a row is checked, field by field, before a `Row` is made.

Types and bounds follow from the dataclasses, so that a new field is checked without another line here. Writing is checked by the same
model as reading: a row that could not be read again is refused before it is stored. The refusal names field and value in our words;
pydantic's are for programmers.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from trtllm_results.errors import ResultsError
from trtllm_results.metrics.registry import METRICS, SIGNED
from trtllm_results.record.cell import CELL_FIELDS, Cell
from trtllm_results.record.environment import ENVIRONMENT_FIELDS

if TYPE_CHECKING:
    from pydantic import BaseModel, TypeAdapter, ValidationError

Status = Literal["ok", "failed", "oom", "void"]
STATUSES: tuple[str, ...] = get_args(Status)
REQUIRED = (
    *("row_id", "cell_key", "repeat", "status"),
    *(f.name for f in fields(Cell) if f.default is MISSING and f.default_factory is MISSING),
)
"""Columns that every stored row must have."""
ROW_FIELDS: Mapping[str, str] = {
    "schema_version": "int",
    "row_id": "str",
    "cell_key": "str",
    "run_id": "str",
    "repeat": "int",
    "status": "str",
    "reason": "str",
    "warnings": "json",
    "started_at": "str",
    "command": "str",
    "extra": "json",
}
"""Columns that are not the cell's, the environment's or figures."""

MOST_COUNT = 2**53
"""Largest integer that a number of a JSON or Parquet reader keeps exact."""
MOST_FIGURE = 1e21
LEAST_FIGURE = 1e-21
"""Of what is not 0: quotients and logarithms of two figures stay far from a float's ends."""
MOST_TEXT = 100_000
"""Characters."""
MOST_DEPTH = 32
"""Levels of a nested JSON value."""
SHOWN = 60
"""Characters of a wrong value that a refusal shows."""
LEAST: Mapping[str, float] = {"tp": 1, "pp": 1, "replicas": 1, "schema_version": 1}
"""Lower bounds that are not 0."""


def absent(value: Any) -> bool:
    """Whether a column says nothing of this row: null, or the NaN that pandas makes of it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def checked_flat(flat: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    """The identity columns of a row and its figures, each of its type; absent ones are left out.

    A numeric column that is not a known figure is kept as one; a text column that is not known is a newer version's, and left out.
    Raises `ResultsError` naming the field and its value.
    """
    from pydantic import ValidationError

    model = _model()
    known = {name: flat[name] for name in model.model_fields if not absent(flat.get(name))}
    try:
        values = model.model_validate(known).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise ResultsError(refusal(error)) from None
    figures = {}
    for name, value in flat.items():
        if name in model.model_fields or absent(value):
            continue
        if name in METRICS or (isinstance(value, int | float) and not isinstance(value, bool)):
            figures[name] = checked_figure(name, value)
    return values, figures


def checked_figure(name: str, value: Any) -> float:
    """Raises `ResultsError` if `value` cannot be this figure."""
    from pydantic import ValidationError

    try:
        return _figure(name in SIGNED or name not in METRICS).validate_python(value)
    except ValidationError as error:
        raise ResultsError(refusal(error, name)) from None


def refusal(error: ValidationError, name: str = "") -> str:
    """The first thing wrong, as `isl is -4; it must be at least 0`."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or name
    if first["type"] == "missing":
        return f"{place} is missing"
    return f"{place} is {shown(first['input'])}; {_expected(first['type'], first.get('ctx', {}))}"


def shown(value: Any) -> str:
    """A value as a refusal quotes it: on one line, cut where it is long, never as long as the value is."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > MOST_COUNT:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, dict | list | tuple):
        return f"a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)} entries"
    text = ascii(value[:SHOWN] if isinstance(value, str | bytes) else value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _expected(kind: str, context: Mapping[str, Any]) -> str:
    if kind in ("greater_than_equal", "less_than_equal"):
        bound = context["ge" if kind == "greater_than_equal" else "le"]
        return f"it must be at {'least' if kind == 'greater_than_equal' else 'most'} {bound:g}"
    words = {
        "finite_number": "it must be a finite number",
        "string_unicode": "it must be valid Unicode text",
        "string_too_long": f"it must have at most {MOST_TEXT} characters",
        "string_pattern_mismatch": "it must be of letters, digits and . _ - only",
        "literal_error": f"use one of {context.get('expected', '')}",
        "value_error": str(context.get("error", "")),
    }
    if kind in words:
        return words[kind]
    types = {"int": "a whole number", "float": "a number", "string": "text", "bool": "true or false", "dict": "an object", "list": "a list"}
    return f"it must be {types.get(kind.split('_')[0], 'of another type')}"


@cache
def _model() -> type[BaseModel]:
    """One field per identity column, those of `REQUIRED` required."""
    from pydantic import BeforeValidator, ConfigDict, Field, create_model

    def kind_of(name: str, kind: str) -> Any:
        if name == "status":
            return Literal[STATUSES]
        if name in ("row_id", "cell_key"):
            return Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9._-]{1,200}$")]
        if name == "started_at":
            return Annotated[str, Field(strict=True, max_length=MOST_TEXT), BeforeValidator(_moment)]
        if name == "warnings":
            return Annotated[list[str], Field(strict=True), BeforeValidator(_unpacked)]
        least = -MOST_COUNT if name.startswith("env_") else LEAST.get(name, 0)
        return {
            "int": Annotated[int, Field(strict=True, ge=least, le=MOST_COUNT), BeforeValidator(_integral)],
            "float": Annotated[float, Field(strict=True, ge=least, le=MOST_FIGURE, allow_inf_nan=False), BeforeValidator(_number)],
            "bool": Annotated[bool, Field(strict=True)],
            "str": Annotated[str, Field(strict=True, max_length=MOST_TEXT)],
        }.get(kind, Annotated[dict[str, Any], Field(strict=True), BeforeValidator(_unpacked)])

    columns = {**ROW_FIELDS, **CELL_FIELDS, **{f"env_{name}": kind for name, kind in ENVIRONMENT_FIELDS.items()}}
    fields: dict[str, Any] = {
        name: (kind_of(name, kind), ... if name in REQUIRED else Field(default=None, validate_default=False))
        for name, kind in columns.items()
    }
    return create_model("FlatRow", __config__=ConfigDict(extra="forbid", protected_namespaces=()), **fields)


@cache
def _figure(signed: bool) -> TypeAdapter[float]:
    from pydantic import BeforeValidator, Field, TypeAdapter

    least = -MOST_FIGURE if signed else 0
    bounds = Field(strict=True, ge=least, le=MOST_FIGURE, allow_inf_nan=False)
    return TypeAdapter(Annotated[float, bounds, BeforeValidator(_number)])


def _integral(value: Any) -> Any:
    """Pandas turns an integer column with gaps into floats, NumPy has integers of its own."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(value) if hasattr(value, "__index__") and not isinstance(value, bool) else value


def _number(value: Any) -> Any:
    value = value.item() if type(value).__module__ == "numpy" else value
    if isinstance(value, float) and 0 < abs(value) < LEAST_FIGURE:
        raise ValueError(f"it must be 0 or at least {LEAST_FIGURE:g}")
    return value


def _moment(value: Any) -> Any:
    if isinstance(value, str) and value:
        try:
            datetime.datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("it must be a time in ISO 8601, such as 2026-01-31T12:00:00+00:00") from None
    return value


def _unpacked(value: Any) -> Any:
    """The value of a column that holds JSON."""
    if not isinstance(value, str):
        raise ValueError("it must be text that holds JSON")
    try:
        content = json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError("it must be valid JSON") from None
    if depth(content) > MOST_DEPTH:
        raise ValueError(f"it must be nested at most {MOST_DEPTH} deep")
    return content


def depth(content: Any) -> int:
    """Levels of nesting of a JSON value; a scalar has none."""
    level, deepest = [content], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        deepest += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return deepest
