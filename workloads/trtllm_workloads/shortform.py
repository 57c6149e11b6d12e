"""Settings on one line, `kind:a,b,...` or `kind:name=a,...`: how a length distribution or an arrival process is named in a flag.

A number is whole where its field is an `int`; a field that is a tuple takes its numbers with `/` between them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from trtllm_workloads.errors import WorkloadError, shown


def build(text: str, kinds: Mapping[str, type], what: str) -> Any:
    """An object of the dataclass that `kinds` has for the text's kind. Raises `WorkloadError`; `what` is said in it."""
    kind, _, rest = (part.strip() for part in text.partition(":"))
    if kind not in kinds:
        raise WorkloadError(f"'{kind}' is no {what}; there are {', '.join(kinds)}")
    fields = {field.name: field for field in dataclasses.fields(kinds[kind])}
    places = list(fields)
    values: dict[str, Any] = {}
    for place, item in enumerate(rest.split(",") if rest else ()):
        name, equals, number = (part.strip() for part in item.partition("="))
        if not equals:
            name, number = (places[place] if place < len(places) else ""), name
        if name not in fields:
            raise WorkloadError(f"'{text}': {kind} takes {', '.join(places) or 'nothing more'}, not '{item.strip()}'")
        values[name] = _value(text, name, number, str(fields[name].type))
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    if missing:
        raise WorkloadError(f"'{text}': {kind} needs {', '.join(missing)}")
    return kinds[kind](**values)


def _value(text: str, name: str, number: str, type_name: str) -> Any:
    whole = type_name == "int"
    try:
        if type_name.startswith("tuple"):
            return tuple(float(part) for part in number.split("/"))
        return int(number) if whole else float(number)
    except ValueError:
        raise WorkloadError(
            f"'{shown(text)}': {name} is '{shown(number)}', which is not a {'whole number' if whole else 'number'}"
        ) from None
