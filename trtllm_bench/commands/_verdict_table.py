"""Tables whose interval and verdict must be readable: `compare` and `gate` at any width.

A table that is too wide first loses its optional columns. Where the rest does not fit either, each row becomes two lines, its name and
its figures. Rejected: shortening text or dropping the interval, as other tables do: a verdict without its interval is an opinion, and
`inconclu...` is no word to search for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from trtllm_dashboards.tables import Column

UNLIMITED = 10_000


def show_verdicts(
    rows: Sequence[Mapping[str, object]], columns: Sequence[Column], names: Sequence[str], title: str, console: Console
) -> None:
    """Print `rows`. `names` are the keys of the columns that together name a row; columns with a priority may be left out."""
    from rich.text import Text

    from trtllm_dashboards.tables import show

    kept = list(columns)
    left_out: list[str] = []
    while _width(rows, kept) > console.width and any(column.priority for column in kept):
        victim = max(reversed(kept), key=lambda column: column.priority)
        kept.remove(victim)
        left_out.append(victim.header)
    if _width(rows, kept) <= console.width:
        show(rows, kept, title=title, console=console)
        if left_out:
            console.print(Text(f"not shown, too wide for {console.width} columns: {', '.join(left_out)}", style="dim"))
        return
    console.print(Text(title, style="bold"), soft_wrap=True)
    for row in rows:
        name, figures = _as_lines(row, columns, names)
        console.print(Text(name), soft_wrap=True)
        console.print(Text(f"  {figures}"), soft_wrap=True)


def _width(rows: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> int:
    from trtllm_dashboards.tables import to_text

    lines = to_text(rows, columns, width=UNLIMITED).splitlines()
    return max((len(line) for line in lines if not line.startswith("all rows: ")), default=0)


def _as_lines(row: Mapping[str, object], columns: Sequence[Column], names: Sequence[str]) -> tuple[str, str]:
    """(name, figures) of one row: `b64, output` and `A 11,000, B 10,450 tok/s, change -5.0%, ... slower`."""
    from trtllm_dashboards.numbers import decimals, number, percent

    parts = []
    for column in columns:
        value = row.get(column.key)
        if column.key in names or value is None or value == "":
            continue
        if column.kind == "number":
            text = number(value, decimals([value]) if column.places is None else column.places)
        else:
            text = percent(value) if column.kind == "percent" else str(value)
        parts.append(text if column.key in ("verdict", "unit") else f"{column.header} {text}")
    return ", ".join(str(row[name]) for name in names if row.get(name)), "  ".join(parts)
