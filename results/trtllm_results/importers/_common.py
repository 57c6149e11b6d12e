"""What the importers share: typed reading of a foreign file's fields, times in UTC, and the making of a row.

A tool's file is read through pydantic models that ignore what they do not know, because these tools add keys with every release. Two kinds
of numbers are told apart, because these tools write a placeholder where they measured nothing (vLLM and SGLang the mean of an empty list
as 0.0, SGLang's offline benchmark -1, GenAI-Perf "N/A"): `Measured` is above zero or absent, `MeasuredOrZero` may be a true zero, such as
a goodput.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row

LARGEST = 1e15
"""No duration, count or rate of a benchmark is beyond this; a value that is stands for a damaged file."""


SECRET = re.compile(r"key$|token$|secret|password|header|authorization", re.IGNORECASE)
"""Names of settings that may be a credential; none is kept."""


class FieldError(ValueError):
    """One field of a foreign file is missing or wrong: a sentence without the file's name, which `read` puts before it."""


def _nothing(content: Any) -> str:
    return ""


@dataclass(frozen=True)
class Importer:
    """How the files of one tool are known and read. A module of this folder has those of its tools in `TOOLS`, by name."""

    recognises: Callable[[Any], bool]
    rows: Callable[[Any], list[Row]]
    files: tuple[str, ...] = ()
    """Patterns of the names that its results have in a folder, where they say more than `*.json`; the first that is there is taken."""
    part_folders: tuple[str, ...] = ()
    """Folders beside such a file that hold results of parts of its run, by the same name."""
    unreadable: Callable[[Any], str] = _nothing
    """What a file of the tool is that holds no result to import, or ''."""
    unreadable_text: Callable[[str], str] = _nothing
    """The same of a file that need not be whole JSON."""
    of_text: Callable[[str], Any] = lambda text: None
    """The content of a log, in the form that `rows` takes; None for any other text. Raises `FieldError`."""
    of_csv: Callable[[Sequence[list[str]]], Any] = lambda lines: None
    """The content of a CSV file's lines, as `of_text`."""


class Foreign(BaseModel):
    """Part of another tool's file. What it does not name is ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)


def _number(value: Any) -> float | None:
    """A finite number or None. Raises ValueError for anything that is not a number at all, or beyond `LARGEST`."""
    if value is None or value in ("N/A", ""):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if abs(value) > LARGEST:
        raise ValueError(f"must be below {LARGEST:g}")
    return float(value)


def _above_zero(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number > 0 else None


def _at_least_zero(value: Any) -> float | None:
    number = _number(value)
    return number if number is not None and number >= 0 else None


def _count(value: Any) -> int | None:
    number = _at_least_zero(value)
    if number is not None and number != math.floor(number):
        raise ValueError("must be a whole number")
    return None if number is None else int(number)


def _rate(value: Any) -> float | None:
    """Requests/s asked for; None where there was no schedule: `inf`, or SGLang's `trace`."""
    return None if value in ("inf", "trace") else _above_zero(float(value) if isinstance(value, str) and _is_number(value) else value)


def _nanoseconds(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**63:
        raise ValueError("must be nanoseconds since 1970")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


Measured = Annotated[float | None, BeforeValidator(_above_zero)]
MeasuredOrZero = Annotated[float | None, BeforeValidator(_at_least_zero)]
Count = Annotated[int | None, BeforeValidator(_count)]
Nanoseconds = Annotated[int, BeforeValidator(_nanoseconds)]
Rate = Annotated[float | None, BeforeValidator(_rate)]
Text = Annotated[str, BeforeValidator(lambda value: "" if value is None else value), Field(max_length=10_000)]

_Model = TypeVar("_Model", bound=BaseModel)
_SHAPES = {
    "model_type": "an object",
    "dict_type": "an object",
    "list_type": "a list",
    "tuple_type": "a list",
    "string_type": "text",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}


def parse(model: type[_Model], content: Any) -> _Model:
    """`content` as a model. Raises `FieldError` for the first field that is missing or wrong."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise FieldError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"]) or "the content"
    if problem["type"] == "missing":
        return f"lacks '{where}'"
    shown = shorten(problem["input"])
    if problem["type"] == "value_error":
        return f"{where} is {shown}; it {problem['ctx']['error']}"
    if problem["type"] == "string_too_long":
        return f"{where} is text of {len(problem['input']):,} characters; it must be shorter"
    return f"{where} is {shown}; it must be {_SHAPES.get(problem['type'], 'of another type')}"


def shorten(value: Any) -> str:
    """A value as an error shows it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def number_of(value: Any) -> Any:
    """A number that its tool may have written as text; anything else as it is."""
    return float(value) if isinstance(value, str) and _is_number(value) else value


def required(value: float | None, name: str) -> float:
    """A number no result can do without. Raises `FieldError`."""
    if value is None:
        raise FieldError(f"lacks '{name}'")
    return value


def local_time(text: str, form: str) -> str:
    """A time that its tool wrote without a zone, as UTC ISO 8601; empty for what is not a time.

    The zone is that of the machine that wrote the file, which the file does not tell. It is taken to be this machine's (set `TZ` to
    import a file of another zone); the row keeps the text itself in `extra`.
    """
    try:
        return utc(datetime.datetime.strptime(text, form).astimezone())
    except (ValueError, OverflowError, OSError):
        return ""


def iso_time(text: str) -> str:
    """An ISO 8601 time as UTC; without a zone it is taken as `local_time` takes it; '' where it is not a time."""
    try:
        return utc(datetime.datetime.fromisoformat(text).astimezone())
    except (ValueError, OverflowError, OSError):
        return ""


def epoch_time(seconds: float | None) -> str:
    """Seconds since 1970 as UTC ISO 8601; '' where there are none."""
    if seconds is None:
        return ""
    try:
        return utc(datetime.datetime.fromtimestamp(seconds, datetime.UTC))
    except (ValueError, OverflowError, OSError):
        return ""


def utc(moment: datetime.datetime) -> str:
    return moment.astimezone(datetime.UTC).isoformat(timespec="seconds")


def make(cell: Cell, figures: Mapping[str, float | None], tool: str, content: Any, **more: Any) -> Row:
    """A row of the figures that exist. Its id is the content's hash, so that importing a file twice adds nothing.

    A run whose requests failed says so: with a warning, or, when none completed, with the status `failed`.
    """
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]
    extra = {"definitions": tool} | {name: value for name, value in more.pop("extra", {}).items() if value not in (None, "")}
    warnings: list[str] = list(more.pop("warnings", ()))
    completed, failed = figures.get("completed_requests"), figures.get("failed_requests")
    if completed == 0:
        more |= {"status": "failed", "reason": "no request completed"}
    elif failed:
        total = failed + (completed or 0)
        warnings.append(f"{failed:,.0f} of {total:,.0f} requests failed" if completed else f"{failed:,.0f} requests failed")
    return Row(
        cell=cell,
        environment=more.pop("environment", Environment()),
        figures={name: float(value) for name, value in figures.items() if value is not None},
        row_id=digest,
        extra=extra,
        warnings=tuple(warnings),
        run_id=f"import-{tool}",
        **more,
    )


def limits_ms(limits: Any, names: Mapping[str, str]) -> dict[str, float] | None:
    """The limits (ms) that a goodput counts within, by our names where `names` has theirs; None where the file tells none. Two runs that
    differ in them are two cells."""
    told = limits if isinstance(limits, Mapping) else {}
    return {names.get(name, name): float(limit) for name, limit in told.items() if isinstance(limit, int | float) and limit > 0} or None


def settings_of(**values: Any) -> dict[str, Any]:
    """Settings that were given."""
    return {name: value for name, value in values.items() if value not in (None, "", [], {})}


def without_user(address: Any) -> str:
    """An address without the user and password that it may hold, and without its query, where some servers want a key."""
    scheme, slashes, rest = str(address or "").partition("?")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}"


def scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def ratio(numerator: float | None, denominator: float | None) -> float | None:
    return numerator / denominator if numerator is not None and denominator else None


def whole(value: float | None) -> int:
    return 0 if value is None else round(value)
