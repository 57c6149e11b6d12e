"""Knobs: dataclass fields that carry everything about themselves once.

A field made with `knob` says its default, help, flag names, unit, bounds, and whether it is part of a cell's identity. From that are
derived the command-line flags, the keys of `sweep.toml`, the settings that are hashed and kept in a row, and the spec made again from a
row. The type comes from the annotation: `int`, `float`, `str`, `bool` or `Path`, optional or not. So a new knob is one line in one file.

Rejected: pydantic models for this (150 ms of import, which `--help` would pay, and a second set of names for the command line).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_type_hints

from trtllm_bench.errors import BenchError
from trtllm_results.record.flat import shown

MOST = 2**63 - 1
"""Largest whole number, as of a table's column."""
MOST_TEXT = 4096
"""Characters of a knob's text; no path is longer."""


@dataclass(frozen=True)
class Knob:
    """What a field says of itself besides its name, type and default."""

    help: str
    flag: str = ""
    """NVIDIA's name where its tool has one, else derived from the field's name."""
    aliases: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    """Other names in a TOML file: NVIDIA's flags that the command line takes for this one."""
    unit: str = ""
    identity: bool | str = False
    """Whether the value can change a result and is told by no column of its own; a text names the attribute to take instead."""
    least: float | None = None
    most: float | None = None
    above: float | None = None
    """Exclusive lower bound."""
    separator: str = ","
    """Between the values of an axis on the command line."""
    secret: bool = False
    """Whether it must reach no file, row or message."""
    parse: Callable[[Any], Any] | None = None
    """Checks a value and brings it into its one canonical form. Raises a component's user error."""


def knob(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field with a `Knob`; `facts` are those of `Knob`. The default is valid whatever the bounds say."""
    return field(default=default, metadata={"knob": Knob(help, **facts)}, repr=not facts.get("secret", False))


@dataclass(frozen=True)
class KnobField:
    """One knob of a spec: the field's name and type with its `Knob`."""

    name: str
    type: type
    optional: bool
    default: Any
    knob: Knob

    @property
    def flags(self) -> tuple[str, ...]:
        """`--max-num-tokens`, and aliases."""
        return (self.knob.flag or "--" + self.name.replace("_", "-"), *self.knob.aliases)

    @property
    def keys(self) -> tuple[str, ...]:
        """Names in a TOML file: the field's, those of its flags, and others."""
        return tuple(dict.fromkeys([self.name, *(flag.strip("-").replace("-", "_") for flag in self.flags), *self.knob.keys]))

    @property
    def setting(self) -> str:
        """The name under which a row keeps it."""
        return self.knob.identity if isinstance(self.knob.identity, str) else self.name

    @property
    def help(self) -> str:
        unit = f", {self.knob.unit}" if self.knob.unit else ""
        default = "" if self.default in (None, False, 0, "") or "default" in self.knob.help else f" (default {self.default})"
        text = self.knob.help.removesuffix(".")
        return f"{text}{unit}{default}."

    def parsed(self, raw: Any, name: str, how_many: str = " separated by commas") -> Any:
        """A value from the command line or a TOML file. `name` is what the user called it, and `how_many` numbers may stand there. Raises
        `BenchError`."""
        return self._bounded(self._typed(raw, name, how_many), name)

    def values(self, raw: Any, name: str) -> tuple[Any, ...]:
        """The values of an axis: one, a list, or a text with separators; doubles count once. Raises `BenchError`."""
        if isinstance(raw, str) and self.type is not bool:
            raw = [part.strip() for part in raw.split(self.knob.separator) if part.strip()]
        values = tuple(dict.fromkeys(self.parsed(one, name) for one in (raw if isinstance(raw, list | tuple) else [raw])))
        if not values:
            raise BenchError(f"{name} needs at least one value")
        return values

    def checked(self, value: Any, name: str) -> Any:
        """The value in its canonical form, if it is the default or lies within the bounds. Raises `BenchError`."""
        return value if value is None or value == self.default else self._bounded(value, name)

    def _bounded(self, value: Any, name: str) -> Any:
        facts = self.knob
        if isinstance(value, float) and not math.isfinite(value):
            raise BenchError(f"{name} must be a finite number, not {value:g}")
        if isinstance(value, int) and abs(value) > MOST:
            raise BenchError(f"{name} must be at most {MOST}")
        for broken, bound in (
            (facts.least is not None and value < facts.least, f"at least {facts.least}"),
            (facts.most is not None and value > facts.most, f"at most {facts.most}"),
            (facts.above is not None and not value > facts.above, f"above {facts.above}"),
        ):
            if broken:
                raise BenchError(f"{name} must be {bound}, not {shown(value)}")
        if facts.parse is None:
            return value
        try:
            return facts.parse(value)
        except ValueError as error:
            raise BenchError(f"{name}: {error}") from error

    def _typed(self, raw: Any, name: str, how_many: str) -> Any:
        try:
            if self.type is bool:
                return {"true": True, "false": False}[str(raw).lower()]
            if self.type in (int, float):
                if isinstance(raw, bool) or (self.type is int and isinstance(raw, float) and raw != int(raw)):
                    raise ValueError
                return self.type(raw)
        except (ValueError, TypeError, KeyError, OverflowError):
            kinds = {int: f"whole numbers{how_many}", float: f"numbers{how_many}", bool: "true or false"}
            raise BenchError(f"{name} takes {kinds[self.type]}, not {shown(raw)}") from None
        if self.knob.parse is not None and isinstance(raw, Mapping):
            return raw
        if not isinstance(raw, str | Path):
            raise BenchError(f"{name} takes text, not {shown(raw)}")
        if len(str(raw)) > MOST_TEXT:
            raise BenchError(f"{name} has {len(str(raw)):,} characters; at most {MOST_TEXT:,} are taken")
        if not str(raw).isprintable():
            raise BenchError(f"{name} is {shown(raw)}; it must be text that can be printed")
        return self.type(raw)


@cache
def knobs_of(spec: type) -> tuple[KnobField, ...]:
    """The knobs of a spec class, in order."""
    hints = get_type_hints(spec)
    knobs = []
    for one in fields(spec):
        if "knob" not in one.metadata:
            continue
        options = [option for option in get_args(hints[one.name]) or (hints[one.name],) if option is not type(None)]
        assert len(options) == 1, f"{spec.__name__}.{one.name}: a knob has one type"
        assert one.default is not MISSING, f"{spec.__name__}.{one.name}: a knob has a default"
        optional = type(None) in get_args(hints[one.name])
        knobs.append(KnobField(one.name, options[0], optional, one.default, one.metadata["knob"]))
    return tuple(knobs)


def check(spec: Any) -> None:
    """For `__post_init__` of a frozen spec: every knob within its bounds and in canonical form. Raises `BenchError` naming the flag."""
    for one in knobs_of(spec.__class__):
        object.__setattr__(spec, one.name, one.checked(getattr(spec, one.name), "/".join(one.flags)))


def identity_of(spec: Any) -> dict[str, Any]:
    """Settings that can change a result, by the name a row keeps them under; choices left open are left out."""
    settings = {one.setting: getattr(spec, one.setting) for one in knobs_of(spec.__class__) if one.knob.identity}
    return {name: value for name, value in settings.items() if value not in (None, False, "") and value != {}}
