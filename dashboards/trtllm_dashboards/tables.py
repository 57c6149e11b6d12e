"""Terminal tables that fit: 80 columns in a log, the whole terminal otherwise, with or without colour, Unicode or a TTY.

A table that is too wide is made narrower in an order that loses least: (1) columns whose value is the same in every row move to one line
above the table, (2) text is shortened with an ellipsis, but what names a row only last, (3) the least important columns go, and a line
below names them, (4) titles of several words are broken, (5) numbers that are the same in every row move above too. Numbers are never
shortened: half a number is a wrong number. A table that is too wide after all that stays so. Wrapping cells was rejected: a row that spans
lines cannot be scanned or grepped.

    show(rows, [Column("precision"), Column("output_tok_s", "output", unit="tok/s", kind="number")])
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.table import Table
from rich.text import Text

from trtllm_dashboards.numbers import ABSENT, decimals, number, percent

Row = Mapping[str, object]
Kind = Literal["text", "number", "percent", "verdict"]
MIN_TEXT = 8
"""Text is never shortened below this many characters."""
NAME = 40
"""Characters up to which what names a row stays whole while a column can go instead."""
GAP = 3
"""Cells between two columns, in either box style."""

VERDICT_STYLES: Mapping[str, str] = {
    "faster": "green",
    "better": "green",
    "pass": "green",
    "ok": "green",
    "slower": "bold red",
    "worse": "bold red",
    "fail": "bold red",
    "failed": "bold red",
    "error": "bold red",
    "inconclusive": "yellow",
    "same": "dim",
}


@dataclass(frozen=True)
class Column:
    """One column. `priority` 0 always stays; higher goes first when the table is too wide. `hoist`: may move above when constant.

    `whole`: what names the row, not to be shortened while another column can go instead, unless it is longer than `NAME` and half of the
    width (a model's path); its end is kept then, which tells rows apart.
    """

    key: str
    title: str = ""
    unit: str = ""
    kind: Kind = "text"
    priority: int = 0
    places: int | None = None
    hoist: bool = True
    whole: bool = False

    @property
    def header(self) -> str:
        return self.title or self.key.replace("_", " ")

    @property
    def rightward(self) -> bool:
        return self.kind in ("number", "percent")


def plain_console(stderr: bool = False) -> Console:
    """The console of every command: text is printed as it is. Paths, labels and reasons hold brackets that rich would read as markup."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False)


def sentence(console: Console, text: str, style: str = "") -> None:
    """Print a sentence: broken between words in a terminal, one line in a log, where it can be searched for."""
    console.print(Text(text, style=style), soft_wrap=not console.is_terminal)


def show(rows: Sequence[Row], columns: Sequence[Column], *, title: str = "", console: Console | None = None) -> None:
    """Print the table to `console` (standard output by default) in the width it has; 80 where there is no terminal."""
    console = console or plain_console()
    console.print(table(rows, columns, title=title, width=console.width, ascii_only=console.options.ascii_only), crop=False)


def to_text(rows: Sequence[Row], columns: Sequence[Column], *, title: str = "", width: int = 80, ascii_only: bool = False) -> str:
    """The table as plain text without colour codes, for logs, reports and tests."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, force_terminal=False, legacy_windows=False, markup=False, emoji=False)
    console.print(table(rows, columns, title=title, width=width, ascii_only=ascii_only), crop=False)
    return "\n".join(line.rstrip() for line in stream.getvalue().splitlines()) + "\n"


def to_markdown(rows: Sequence[Row], columns: Sequence[Column]) -> str:
    """The table in Markdown, with every column: a page has room."""
    cells = [_column_cells(column, rows, ascii_only=False) for column in columns]
    heads = [f"{column.header}, {column.unit}" if column.unit else column.header for column in columns]
    lines = [heads, ["--:" if column.rightward else "---" for column in columns], *zip(*cells, strict=True)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def table(rows: Sequence[Row], columns: Sequence[Column], *, title: str = "", width: int = 80, ascii_only: bool = False) -> Group:
    """A rich renderable no wider than `width` cells, unless the numbers that must stay are; print it with `crop=False`."""
    cells = {c.key: _column_cells(c, rows, ascii_only) for c in columns}
    shown, constant = _hoist(columns, cells, rows)
    shown, dropped, limits = _fit(shown, cells, width)
    if _excess(shown, cells, limits, width) > 0:
        shown, _, limits = _fit(_with_broken_titles(shown, cells), cells, width)
    if _excess(shown, cells, limits, width) > 0:
        shown, more = _hoist(shown, cells, rows, ("text", "number"))
        constant += more
        shown, _, limits = _fit(shown, cells, width)

    grid = Table(box=box.ASCII if ascii_only else box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1), header_style="bold")
    for column in shown:
        header = f"{column.header}\n{column.unit}" if column.unit else column.header
        grid.add_column(header, justify="right" if column.rightward else "left", no_wrap=True, overflow="crop", vertical="bottom")
    for index in range(len(rows)):
        grid.add_row(*(_styled(c, _shorten(cells[c.key][index], limits.get(c.key), ascii_only, c.whole)) for c in shown))

    parts: list[Text | _AtLeast] = []
    if title:
        parts.append(Text(title, style="bold"))
    if constant:
        parts.append(Text("all rows: " + ", ".join(constant), style="dim"))
    parts.append(_AtLeast(grid, width + max(0, _excess(shown, cells, limits, width))) if rows else Text("no rows"))
    if dropped:
        parts.append(Text(f"not shown, too wide for {width} columns: " + ", ".join(c.header for c in dropped), style="dim"))
    return Group(*parts)


@dataclass(frozen=True)
class _AtLeast:
    """A grid in `width` cells, though the console be narrower: rich would cut its numbers."""

    grid: Table
    width: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        return console.render(self.grid, options.update(width=max(options.max_width, self.width)))


def _column_cells(column: Column, rows: Sequence[Row], ascii_only: bool) -> list[str]:
    values = [row.get(column.key) for row in rows]
    if column.kind == "number":
        places = column.places if column.places is not None else decimals(values)
        return [number(v, places) for v in values]
    if column.kind == "percent":
        return [percent(v) for v in values]
    plain = [ABSENT if v is None or v == "" else " ".join(str(v).split()) for v in values]
    return [p.encode("ascii", "replace").decode() for p in plain] if ascii_only else plain


def _hoist(
    columns: Sequence[Column], cells: Mapping[str, list[str]], rows: Sequence[Row], kinds: Sequence[Kind] = ("text",)
) -> tuple[list[Column], list[str]]:
    """Split off the columns of `kinds` whose value is the same in all of several rows."""
    shown, constant = [], []
    for column in columns:
        values = cells[column.key]
        if column.kind in kinds and column.hoist and len(rows) > 1 and len(set(values)) == 1:
            if values[0] != ABSENT:
                constant.append(f"{' '.join(column.header.split())} {values[0]}" + (f" {column.unit}" if column.unit else ""))
        else:
            shown.append(column)
    return (shown, constant) if shown else (list(columns), [])


def _natural(column: Column, cells: Mapping[str, list[str]]) -> int:
    return max(cell_len(text) for text in (*column.header.splitlines(), column.unit, *cells[column.key]))


def _excess(columns: Sequence[Column], cells: Mapping[str, list[str]], limits: Mapping[str, int], width: int) -> int:
    """By how many characters the columns are wider than `width`; negative where they are narrower."""
    return sum(limits.get(c.key, _natural(c, cells)) for c in columns) + GAP * (len(columns) - 1) - width


def _with_broken_titles(columns: Sequence[Column], cells: Mapping[str, list[str]]) -> list[Column]:
    """The columns, with a title broken between words where it is wider than the cells below it."""
    broken = []
    for column in columns:
        least = max(len(text) for text in (column.unit, *column.header.split(), *cells[column.key]))
        broken.append(replace(column, title="\n".join(textwrap.wrap(column.header, least))))
    return broken


def _fit(columns: list[Column], cells: Mapping[str, list[str]], width: int) -> tuple[list[Column], list[Column], dict[str, int]]:
    """Columns that stay, columns that go, and the width limits of shortened text columns."""
    shown: list[Column] = list(columns)
    dropped: list[Column] = []
    while True:
        candidates = [c for c in shown if c.priority > 0]
        widths = {c.key: _natural(c, cells) for c in shown}
        excess = _excess(shown, cells, {}, width)
        if excess <= 0:
            return shown, dropped, {}
        limits: dict[str, int] = {}
        for column in sorted((c for c in shown if c.kind == "text"), key=lambda c: -widths[c.key]):
            floor = max(MIN_TEXT, *(cell_len(line) for line in column.header.splitlines()), cell_len(column.unit))
            if column.whole and candidates:
                floor = max(floor, width // 2, NAME)
            cut = min(excess, widths[column.key] - floor)
            if cut > 0:
                limits[column.key] = widths[column.key] - cut
                excess -= cut
        if excess <= 0:
            return shown, dropped, limits
        if not candidates:
            return shown, dropped, limits
        victim = max(reversed(candidates), key=lambda c: c.priority)
        shown.remove(victim)
        dropped.append(victim)


def _shorten(cell: str, limit: int | None, ascii_only: bool, keep_end: bool = False) -> str:
    if limit is None or cell_len(cell) <= limit:
        return cell
    mark = "~" if ascii_only else "…"
    while cell_len(cell) + 1 > limit:
        cell = cell[1:] if keep_end else cell[:-1]
    return mark + cell if keep_end else cell + mark


def _styled(column: Column, cell: str) -> Text:
    if column.kind == "verdict":
        return Text(cell, style=VERDICT_STYLES.get(cell.split()[0].lower() if cell.split() else "", ""))
    if column.kind == "percent":
        return Text(cell)
    return Text(cell, style="dim" if cell == ABSENT else "")
