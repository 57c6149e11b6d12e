"""Tables whose interval and verdict must be readable: `compare` and `gate` at any width.

A table that is too wide first loses its optional columns. Where the rest does not fit either, each row becomes its name with the verdict,
and its figures below. Rejected: shortening text or dropping the interval, as other tables do: a verdict without its interval is an
opinion, and `inconclu...` is not a word to search for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from trtllm_dashboards.tables import Column

UNLIMITED = 10_000
HELD = "\x00"
"""Stands for a space that is not a place to break a line."""


def show_verdicts(
    rows: Sequence[Mapping[str, object]], columns: Sequence[Column], names: Sequence[str], title: str, console: Console
) -> None:
    """Print `rows`. `names` are the keys of the columns that together name a row; columns with a priority may be left out."""
    import textwrap

    from rich.text import Text

    from trtllm_dashboards.tables import VERDICT_STYLES, sentence, show

    kept = list(columns)
    left_out: list[str] = []
    while _width(rows, kept) > console.width and any(column.priority for column in kept):
        victim = max(reversed(kept), key=lambda column: column.priority)
        kept.remove(victim)
        left_out.append(victim.header)
    if _width(rows, kept) <= console.width:
        show(rows, kept, title=title, console=console)
        if left_out:
            sentence(console, f"not shown, too wide for {console.width} columns: {', '.join(left_out)}", "dim")
        return
    sentence(console, title, "bold")
    for row in rows:
        name, figures = _as_lines(row, columns, names)
        console.print(Text.assemble(f"{name}: ", (str(row["verdict"]), VERDICT_STYLES.get(str(row["verdict"]), ""))), soft_wrap=True)
        whole = figures.replace(" ", HELD).replace(f",{HELD}", ", ")
        lines = textwrap.fill(whole, console.width, initial_indent="  ", subsequent_indent="  ", break_long_words=False)
        console.print(Text(lines.replace(HELD, " ")), soft_wrap=True)


def _width(rows: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> int:
    from trtllm_dashboards.tables import to_text

    lines = to_text(rows, columns, width=UNLIMITED).splitlines()
    return max((len(line) for line in lines if not line.startswith("all rows: ")), default=0)


def _as_lines(row: Mapping[str, object], columns: Sequence[Column], names: Sequence[str]) -> tuple[str, str]:
    """(name, figures) of one row: `b64, output (tok/s)` and `A 11,000, B 10,450, change -5.0%, ...`."""
    from trtllm_dashboards.numbers import decimals, number, percent

    parts = []
    for column in columns:
        value = row.get(column.key)
        if column.key in (*names, "unit", "verdict") or value is None or value == "":
            continue
        if column.kind == "number":
            text = number(value, decimals([value]) if column.places is None else column.places)
        else:
            text = percent(value) if column.kind == "percent" else str(value)
        parts.append(f"{column.header} {text}")
    unit = f" ({row['unit']})" if row.get("unit") else ""
    return ", ".join(str(row[name]) for name in names if row.get(name)) + unit, ", ".join(parts)
