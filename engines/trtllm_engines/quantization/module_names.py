"""Regular expressions over modules' names, as checkpoints bring them: matched within a limit of time.

An expression of twenty characters can take `re` for ever on a name of forty, and nothing can interrupt it. Rejected: RE2 (pyarrow has it),
which knows no look-ahead and takes half a second for a list of 3,000 names.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import Any

from trtllm_engines.errors import EngineError

SECONDS = 5.0
"""Most that all matches of one expression may take."""
MOST_COUNTED = 2
"""Counted repeats in an expression, each of at most two digits: they multiply, also in memory."""
_COUNTED = re.compile(r"(?<!\\)\{\d*,?\d*\}")


class Expression:
    """One expression, compiled. Raises `EngineError` where it cannot be read."""

    def __init__(self, pattern: str) -> None:
        import regex

        try:
            re.compile(pattern)
            self._compiled: Any = regex.compile(pattern)
        except (re.error, regex.error, OverflowError, RecursionError) as error:
            raise EngineError(f"the names of modules hold an expression that cannot be read ({error}): {pattern}") from None
        self._pattern, self._left_s = pattern, SECONDS

    def matches(self, name: str) -> bool:
        """Whether the whole name does. Raises `EngineError` when all its matches together take too long."""
        began = time.monotonic()
        try:
            return self._compiled.fullmatch(name, timeout=max(self._left_s, 1e-3)) is not None
        except TimeoutError:
            raise EngineError(
                f"the names of modules hold an expression that takes more than {SECONDS:g} s to match; write a simpler one: {self._pattern}"
            ) from None
        finally:
            self._left_s -= time.monotonic() - began


@lru_cache(maxsize=256)
def expression(pattern: str) -> Expression:
    return Expression(pattern)


def check_counted(pattern: str) -> None:
    """Raises `EngineError` for counted repeats that would multiply."""
    counted = _COUNTED.findall(pattern)
    if len(counted) > MOST_COUNTED or any(len(digits) > 2 for one in counted for digits in re.findall(r"\d+", one)):
        raise EngineError(
            f"the names of modules hold an expression with more than {MOST_COUNTED} counted repeats, or one over 99; "
            f"write a simpler one: {pattern}"
        )
