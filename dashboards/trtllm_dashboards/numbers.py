"""How a number is written, once, for terminals, figures and the page.

A column shares one count of decimals, chosen from the numbers in it: the largest shows `digits` significant digits and the smallest at
least two. Formatting each cell by itself (`%g`) was rejected: the decimal points do not line up, and the eye compares lengths first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

ABSENT = "-"


def is_number(value: object) -> bool:
    """True for finite ints and floats (NumPy's too); booleans, None, NaN and text are not numbers here."""
    if isinstance(value, bool | str) or value is None:
        return False
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def decimals(values: Iterable[object], digits: int = 4) -> int:
    """Decimals that suit a whole column; 0 for a column of integers."""
    numbers = [abs(float(v)) for v in values if is_number(v)]  # type: ignore[arg-type]
    if all(n == round(n) for n in numbers):
        return 0
    nonzero = [n for n in numbers if n > 0]
    if not nonzero:
        return 0
    for_largest = digits - 1 - math.floor(math.log10(max(nonzero)))
    for_smallest = 1 - math.floor(math.log10(min(nonzero)))
    return min(max(0, for_largest, for_smallest), digits + 2, max(0, for_largest) + 2)


def number(value: object, places: int | None = None, digits: int = 4) -> str:
    """`24,318.6`; `-` for an absent value; `nan` and `inf` as themselves, because hiding them hides a fault."""
    if value is None or value == "":
        return ABSENT
    if not is_number(value):
        return str(value)
    if places is None:
        places = decimals([value], digits)
    return f"{float(value):,.{places}f}"  # type: ignore[arg-type]


def percent(ratio: object, *, signed: bool = True) -> str:
    """A ratio of change (0.031) as `+3.1%`."""
    if not is_number(ratio):
        return ABSENT if ratio is None else str(ratio)
    value = 100 * float(ratio)  # type: ignore[arg-type]
    places = 0 if abs(value) >= 99.5 else 1 if abs(value) >= 0.95 else 2
    return f"{value:{'+' if signed else ''},.{places}f}%"


def compact(value: object) -> str:
    """For axes and tiles: `24.3k`, `1.40M`, `850`, `0.012`."""
    if not is_number(value):
        return ABSENT if value is None else str(value)
    x = float(value)  # type: ignore[arg-type]
    for scale, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= scale * 0.9995:
            return f"{x / scale:.3g}{suffix}" if abs(x / scale) < 999.5 else f"{x / scale:.0f}{suffix}"
    return f"{x:.3g}"
