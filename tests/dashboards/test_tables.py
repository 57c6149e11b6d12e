"""Terminal tables: they fit, they never cut a number, and they lose the least important thing first."""

from __future__ import annotations

import io
import math

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from trtllm_dashboards.numbers import compact, decimals, number, percent
from trtllm_dashboards.tables import Column, sentence, show, to_text

COLUMNS = [
    Column("gpu"),
    Column("precision"),
    Column("batch", kind="number"),
    Column("tput", "output", unit="tok/s", kind="number"),
    Column("ttft", "TTFT p50", unit="ms", kind="number", priority=1),
    Column("note", priority=3),
    Column("verdict", kind="verdict"),
]
ROWS = [
    {"gpu": "H100", "precision": "fp8", "batch": 1, "tput": 24318.61, "ttft": 8.123, "note": "x" * 90, "verdict": "faster"},
    {"gpu": "H100", "precision": "bf16", "batch": 64, "tput": 3.5, "ttft": None, "note": "short", "verdict": "slower"},
]


def test_table_fits_80_columns_and_keeps_every_number_whole() -> None:
    text = to_text(ROWS, COLUMNS)
    assert max(cell_len(line) for line in text.splitlines()) <= 80
    assert "24,318.6" in text
    assert "…" in text
    assert "tok/s" in text


def test_numbers_are_right_aligned_on_the_decimal_point() -> None:
    first, second = (line for line in to_text(ROWS, COLUMNS[1:4]).splitlines() if "fp8" in line or "bf16" in line)
    assert first.index(".") == second.index(".")
    assert first.endswith("24,318.6")
    assert second.endswith("3.5")


def test_a_constant_text_column_moves_above_the_table() -> None:
    text = to_text(ROWS, COLUMNS)
    assert text.startswith("all rows: gpu H100\n")
    assert text.count("H100") == 1


def test_the_least_important_columns_go_first_and_are_named() -> None:
    text = to_text(ROWS, COLUMNS, width=45)
    head, _, tail = text.partition("not shown")
    assert "note" in tail
    assert "note" not in head
    assert "24,318.6" in head
    assert "slower" in head


def test_numbers_stay_whole_where_every_column_must_stay() -> None:
    names = ("max num tokens", "page size", "batch", "ISL", "OSL", "output", "from", "to")
    columns = [*(Column(name, kind="number", unit="tok/s" * (n > 4)) for n, name in enumerate(names)), Column("status", kind="verdict")]
    lines = [
        dict(zip(names, (tokens, 16, 512, 1024, 2048, 16506, 15850, 17189), strict=True)) | {"status": "ok"} for tokens in (2048, 8192)
    ]
    text = to_text(lines, columns, width=76)
    assert [line.split() for line in text.splitlines()[-2:]] == [
        [tokens, "16", "512", "1,024", "2,048", "16,506", "15,850", "17,189", "ok"] for tokens in ("2,048", "8,192")
    ]
    assert "all rows" not in text, "titles are broken first"
    narrow = to_text(lines, columns, width=40)
    assert " ".join(narrow.split()).startswith("all rows: page size 16, batch 512, ISL 1,024, OSL 2,048,")
    assert [line.split() for line in narrow.splitlines()[-2:]] == [["2,048", "ok"], ["8,192", "ok"]]
    assert max(cell_len(line) for line in narrow.splitlines()) <= 40


def test_numbers_that_do_not_fit_make_the_table_wider() -> None:
    names = ("num requests", "max num tokens", "batch", "rate", "output")
    lines = [dict(zip(names, (4096 + n, 16384 + n, 2048 + n, 66.5 + n, 9449.25 + n), strict=True)) for n in (0, 1)]
    columns = [Column(name, kind="number") for name in names]
    whole = [["4,096", "16,384", "2,048", "66.50", "9,449"], ["4,097", "16,385", "2,049", "67.50", "9,450"]]
    assert [line.split() for line in to_text(lines, columns, width=24).splitlines()[-2:]] == whole
    stream = io.StringIO()
    show(lines, columns, console=Console(file=stream, width=24, force_terminal=True, color_system=None))
    assert [line.split() for line in stream.getvalue().splitlines()[-2:]] == whole


def test_without_unicode_no_byte_is_above_127() -> None:
    rows = [*ROWS, {"gpu": "Añb", "precision": "ü", "note": "y" * 99}]
    to_text(rows, COLUMNS, ascii_only=True).encode("ascii")


def test_console_of_an_ascii_log_gets_ascii_without_colour() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    show(ROWS, COLUMNS, console=Console(file=stream, width=80, force_terminal=False, _environ={}))
    stream.flush()
    assert b"24,318.6" in raw.getvalue()
    assert b"\x1b" not in raw.getvalue()


def test_verdicts_are_coloured_on_a_terminal_and_still_words() -> None:
    stream = io.StringIO()
    show(ROWS, COLUMNS, console=Console(file=stream, width=100, force_terminal=True, color_system="standard", _environ={}))
    assert "\x1b[32mfaster" in stream.getvalue()


def test_absent_nan_and_empty_are_told_apart() -> None:
    assert number(None) == "-"
    assert number(math.nan) == "nan"
    assert number(0) == "0"
    assert "no rows" in to_text([], COLUMNS)


def test_number_formats() -> None:
    assert percent(0.031) == "+3.1%"
    assert percent(-0.0004) == "-0.04%"
    assert compact(24318) == "24.3k"
    assert compact(999.6) == "1k"
    assert decimals([24318.61, 3.5]) == 1
    assert decimals([1, 2, 3.0]) == 0


cell = st.one_of(st.none(), st.text(max_size=60), st.integers(-(10**9), 10**9), st.floats(allow_nan=True, allow_infinity=True))


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries({"a": cell, "b": st.floats(0, 1e6), "c": cell, "d": st.text(max_size=40)}), max_size=6),
    width=st.integers(40, 120),
    ascii_only=st.booleans(),
)
def test_any_rows_fit_any_width(rows: list[dict[str, object]], width: int, ascii_only: bool) -> None:
    columns = [Column("a", priority=2), Column("b", kind="number", unit="ms"), Column("c", priority=1), Column("d")]
    text = to_text(rows, columns, width=width, ascii_only=ascii_only, title="t")
    assert all(cell_len(line) <= width for line in text.splitlines())


def test_what_names_a_row_is_whole_as_long_as_something_else_can_go() -> None:
    columns = [Column("cell", whole=True), Column("device", priority=1), Column("rate", kind="number")]
    lines = [{"cell": f"llama-3.1-8b fp8 b{n} 128/128", "device": f"NVIDIA H100 {n}", "rate": n} for n in (1, 2)]
    narrow = to_text(lines, columns, width=40)
    assert "llama-3.1-8b fp8 b2 128/128" in narrow
    assert "device" in narrow.split("not shown")[1]
    assert "…" in to_text(lines, columns, width=20), "nothing left to go"


def test_a_path_that_names_a_row_leaves_room_for_its_figures() -> None:
    columns = [Column("cell", whole=True), Column("rate", kind="number", priority=1)]
    lines = [{"cell": f"/mnt/models/meta-llama/Llama-3.1-8B-Instruct {p} b64 128/128", "rate": 9446} for p in ("fp8", "int4")]
    narrow = to_text(lines, columns, width=60).splitlines()
    assert [line.split()[-1] for line in narrow[-2:]] == ["9,446", "9,446"]
    assert [line[:30].startswith("…") for line in narrow[-2:]] == [True, True]
    assert "-Instruct int4 b64 128/128" in narrow[-1]


def test_sentences_break_between_words_in_a_terminal_and_stay_whole_in_a_log() -> None:
    text = "inconclusive: neither a change nor a difference below 1% is shown"
    for terminal, lines in ((True, ["inconclusive: neither a change nor a", "difference below 1% is shown"]), (False, [text])):
        stream = io.StringIO()
        sentence(Console(file=stream, width=40, force_terminal=terminal, color_system=None), text)
        assert [line.rstrip() for line in stream.getvalue().splitlines()] == lines
