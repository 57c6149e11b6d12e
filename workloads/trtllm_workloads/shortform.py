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
        raise WorkloadError(f"'{shown(kind)}' is no {what}; there are {', '.join(kinds)}")
    fields = {field.name: field for field in dataclasses.fields(kinds[kind])}
    places = list(fields)
    values: dict[str, Any] = {}
    for place, item in enumerate(rest.split(",") if rest else ()):
        name, equals, number = (part.strip() for part in item.partition("="))
        if not equals:
            name, number = (places[place] if place < len(places) else ""), name
        if name not in fields:
            raise WorkloadError(f"'{shown(text)}': {kind} takes {', '.join(places) or 'nothing more'}, not '{shown(item.strip())}'")
        if name in values:
            raise WorkloadError(f"'{shown(text)}': {name} is given twice; give it once")
        values[name] = _value(text, name, number, str(fields[name].type))
    missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in values]
    if missing:
        raise WorkloadError(f"'{shown(text)}': {kind} needs {', '.join(missing)}")
    return kinds[kind](**values)


def text_of(settings: Mapping[str, Any]) -> str:
    """A table of settings, `kind` among them, as the text that `build` takes."""
    named = {name: "/".join(map(str, value)) if isinstance(value, list) else value for name, value in settings.items() if name != "kind"}
    return f"{settings.get('kind', '')}:{','.join(f'{name}={value}' for name, value in named.items())}"


def spelled(made: Any, kinds: Mapping[str, type]) -> str:
    """The one spelling of what `build` makes: settings in order, without names, and without the last ones where they are the default."""
    kind = next(name for name, cls in kinds.items() if cls is type(made))
    values = [(getattr(made, field.name), field.default) for field in dataclasses.fields(made)]
    while values and values[-1][0] == values[-1][1]:
        values.pop()
    return f"{kind}:{','.join('/'.join(map(_shortest, v)) if isinstance(v, tuple) else _shortest(v) for v, _ in values)}".rstrip(":")


def _shortest(number: float) -> str:
    """The shortest text that reads as the number again: `50`, not `50.0`."""
    return repr(int(number)) if number == int(number) and abs(number) < 2**53 else repr(number)


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
