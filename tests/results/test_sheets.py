"""Tables for spreadsheets: rows come back as they went, through every command that reads results; damage is one sentence."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openpyxl import Workbook, load_workbook

from trtllm_bench.__main__ import main
from trtllm_dashboards.sources import load
from trtllm_results.errors import ResultsError
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.sheets import write_csv, write_xlsx
from trtllm_results.store.table import Store, read_rows

AB = Path(__file__).parents[2] / "results" / "recorded" / "h100" / "gate" / "ab"
WRITERS = {".csv": write_csv, ".xlsx": write_xlsx}
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=6) | st.sampled_from(
    ["=1+1", "NA", "1e5", " x ", 'a,"b"\r\n', "_x000D_", "\x00\t"]
)
COUNT = st.integers(0, 2**53)
FIGURE = st.floats(1e-9, 1e15) | st.just(0.0)
JSON = st.dictionaries(TEXT, TEXT | st.integers(-9, 9) | st.booleans(), max_size=2)
CELLS = st.builds(Cell, TEXT, TEXT, COUNT, COUNT, COUNT, kv_dtype=TEXT, request_rate=FIGURE, target=TEXT, settings=JSON)
HERE = st.builds(Environment, gpu=TEXT, gpu_count=COUNT, power_limit_w=FIGURE, mig=st.booleans(), git_revision=TEXT)
ROWS = st.builds(
    Row,
    CELLS,
    HERE,
    repeat=COUNT,
    status=st.sampled_from(["ok", "failed", "oom", "void"]),
    reason=TEXT,
    figures=st.dictionaries(st.sampled_from(["output_tokens_per_s", "mfu", "ttft_p50_ms", "steps"]), FIGURE),
    warnings=st.lists(TEXT, max_size=2).map(tuple),
    extra=JSON,
)


@given(rows=st.lists(ROWS, min_size=1, max_size=3))
@settings(max_examples=15, deadline=None)
def test_rows_come_back_from_a_spreadsheets_table_as_they_went(rows: list[Row], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    for ending, write in WRITERS.items():
        write(rows, folder / f"rows{ending}")
        back = read_rows(folder / f"rows{ending}")
        assert back == rows, ending
        assert [row.key for row in back] == [row.key for row in rows]


@pytest.mark.parametrize("ending", WRITERS)
def test_an_exported_table_is_read_like_its_store(ending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / f"ab{ending}"
    assert main(["results", "export", str(AB), str(table)]) == 0
    assert read_rows(table) == Store(AB, create=False).rows()
    assert load([str(table)]).sets[""] == load([str(AB)]).sets[""]
    said = []
    for source in (AB, table):
        capsys.readouterr()
        assert main(["compare", f"ab={source}", "--by", "arm"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert main(["results", "merge", str(tmp_path / "merged"), str(table)]) == 0
    assert len(Store(tmp_path / "merged").rows()) == 22


def test_a_table_opens_in_other_tools_with_its_numbers(tmp_path: Path) -> None:
    rows = Store(AB, create=False).rows()
    write_csv(rows, tmp_path / "ab.csv")
    write_xlsx(rows, tmp_path / "ab.xlsx")
    frame = pd.read_csv(tmp_path / "ab.csv")
    assert frame["output_tokens_per_s"].tolist() == [row.figures["output_tokens_per_s"] for row in rows]
    sheet = load_workbook(tmp_path / "ab.xlsx").active
    assert sheet is not None
    names = [cell.value for cell in sheet[1]]
    assert sheet.cell(2, names.index("output_tokens_per_s") + 1).value == rows[0].figures["output_tokens_per_s"]
    assert (tmp_path / "ab.csv").read_bytes().startswith(b"\xef\xbb\xbf")


def test_text_that_looks_like_a_formula_is_text(tmp_path: Path) -> None:
    write_xlsx([Row(Cell("=HYPERLINK(1)", "fp8", 1, 1, 1), Environment())], tmp_path / "a.xlsx")
    sheet = load_workbook(tmp_path / "a.xlsx").active
    assert sheet is not None
    assert {cell.data_type for cell in sheet[2] if isinstance(cell.value, str)} == {"s"}


def _foreign_book(path: Path) -> None:
    book = Workbook()
    assert book.active is not None
    book.active.append(["a", "b"])
    book.save(path)


def _broken_book(path: Path) -> None:
    write_xlsx([Row(Cell("tiny", "fp8", 7, 1, 1), Environment())], path)
    with zipfile.ZipFile(path) as book:
        parts = {name: book.read(name) for name in book.namelist()}
    with zipfile.ZipFile(path, "w") as book:
        for name, content in parts.items():
            book.writestr(name, content[:-40] if name.endswith("sheet1.xml") else content)


def _edited(old: str, new: str) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        write_csv([Row(Cell("tiny", "fp8", 7, 1, 1), Environment())], path)
        path.write_text(path.read_text().replace(old, new))

    return edit


def _cut_in_a_number(path: Path) -> None:
    write_csv([Row(Cell("tiny", "fp8", 7, 1, 1), Environment(), figures={"output_tokens_per_s": 123.75})], path)
    path.write_bytes(path.read_bytes().removesuffix(b"3.75\r\n"))


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("a.csv", lambda path: path.write_text("x,y\n1,2\n"), "not a table of trtllm-bench: column row_id is missing"),
        ("a.csv", lambda path: path.write_bytes(b"\xff\xfe\x00"), "not UTF-8 text"),
        ("a.csv", _edited(",7,", ",seven,"), "row 1: batch is 'seven'; it must be a number"),
        ("a.csv", _edited(",7,", ",-7,"), "row 1: batch is -7; it must be at least 0"),
        ("a.csv", _edited("false", "perhaps"), "env_mig is 'perhaps'; it must be true or false"),
        ("a.csv", _edited("\n1,", "\n99,"), "result schema 99, newer than this tool's"),
        ("a.csv", _edited("row_id", "row_id,row_id"), "column row_id is there twice"),
        ("a.csv", _cut_in_a_number, "the last line has no end"),
        ("a.xlsx", lambda path: path.write_text("no book"), "not a workbook that can be read"),
        ("a.xlsx", _foreign_book, "not a table of trtllm-bench: column row_id is missing"),
        ("a.xlsx", lambda path: path.write_bytes(b""), "is empty"),
        ("a.xlsx", _broken_book, "not a workbook that can be read"),
    ],
)
def test_a_damaged_table_is_one_sentence(name: str, make: Callable[[Path], object], says: str, tmp_path: Path) -> None:
    make(tmp_path / name)
    with pytest.raises(ResultsError) as caught:
        read_rows(tmp_path / name)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_text_too_long_for_a_cell_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    long = Row(Cell("m", "fp8", 1, 1, 1), Environment(), command="x" * 40_000)
    with pytest.raises(ResultsError, match=r"command of row 1 has 40,000 characters .*export to \.csv or \.parquet"):
        write_xlsx([long], tmp_path / "a.xlsx")
    assert not list(tmp_path.iterdir())
