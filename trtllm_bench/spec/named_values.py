"""A repeatable option of `NAME=VALUE`, such as `--margin output_tokens_per_s=2%`, as a mapping. The last of two values would win unseen, so
a name that is given twice is refused."""

from __future__ import annotations

from collections.abc import Sequence

from trtllm_bench.errors import BenchError


def named_values(flag: str, texts: Sequence[str] | None, form: str) -> dict[str, str]:
    """Values by name, in the order given. `form` is how one is written, for the error. Raises `BenchError`."""
    values: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise BenchError(f"{flag} {text}: write {form}")
        if name in values:
            raise BenchError(f"{flag} {name} is given twice, as {values[name]} and {value}; give it once")
        values[name] = value
    return values
