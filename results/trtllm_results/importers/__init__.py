"""Other tools' result files as rows, so that their runs sit in the same tables.

Figures are mapped by *meaning* and not by name: AIPerf's and GuideLLM's "inter token latency" is one mean per request, which here is TPOT;
GuideLLM's "time per output token" counts the first token, which here is nothing, so it goes to `extra`. A figure that a tool did not
measure is absent, whatever placeholder it wrote. What a tool does not say (precision, GPU) is asked for with `results import --set
FIELD=VALUE` and stays empty otherwise; NVIDIA's names of precisions become ours. `extra.definitions` names the tool whose clock and
percentile rule produced the figures.

Times are UTC. vLLM, AIPerf and GuideLLM's CSV write local time without its zone, which is taken to be this machine's
(`_common.local_time`); vLLM's is the time when the run had ended.

The tool is recognised by the shape of its file. A file that one of these tools writes beside its result is refused by what it is. One tool
is one module of this folder, whose `TOOLS` say all that differs (`_common.Importer`); `MODULES` is the only list of them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trtllm_results.errors import ResultsError, did_you_mean
from trtllm_results.importers import aiperf, guidellm, inference_perf, llmperf, mlperf, nvidia, sglang, vllm
from trtllm_results.importers._common import FieldError, Importer
from trtllm_results.importers.files import csv_lines, json_values, read_text
from trtllm_results.precision_names import our_precision
from trtllm_results.record.cell import CELL_FIELDS
from trtllm_results.record.row import Row
from trtllm_results.store.files import check_last_line
from trtllm_results.store.layout import ROWS

MODULES = (nvidia, vllm, sglang, aiperf, mlperf, guidellm, llmperf, inference_perf)
TOOLS: Mapping[str, Importer] = {name: importer for module in MODULES for name, importer in module.TOOLS.items()}
OTHER_RESULTS = (("*.json", "*.jsonl"), ("*.csv",))
"""What is taken of a folder that has no file of a name that a tool always gives its result: the first of these groups that it has."""
MOST_LOOKED_INTO = 1 << 24
"""Bytes of a file of which a folder's other files have been taken; what tools write beside a result may be hundreds of megabytes."""
FEWEST_ALIKE = 6
"""Figures by which a run is known again."""
LISTED = 5
"""Files not read that a sentence names."""
NO_JSON = {".yaml": "a YAML file", ".yml": "a YAML file", ".html": "a page of HTML"}
"""Other forms that these tools write a result in, by suffix."""


class NoResult(ResultsError):
    """A file that is whole and holds no result: another tool's, or one that a tool writes beside its result."""


class OwnTable(NoResult):
    """A table of this tool's own rows."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is not a result file of another tool but a table of trtllm-bench; add its rows with `results merge`")


def read(
    path: Path, tool: str = "", overrides: Mapping[str, str] | None = None, passed_over: Callable[[str], None] = lambda sentence: None
) -> list[Row]:
    """Rows of another tool's file, or of all results in a folder and those below it. `overrides` sets cell fields, or `gpu`, that the file
    does not tell.

    Files of a folder that hold no result are passed over, with a sentence each to `passed_over`; one more tells what was not read, since
    tools write a run in several forms, and one run must not count as two.
    Raises `ResultsError` for a file that is missing, damaged, of no known tool, or lacks what every result has.
    """
    if tool and tool not in TOOLS:
        raise ResultsError(f"there is no importer for '{tool}'; choose from {', '.join(TOOLS)}")
    files, unread = _results_in(path) if path.is_dir() else ([path], [])
    rows: list[Row] = []
    others: list[NoResult] = []
    for one in files:
        try:
            rows += [_override(row, overrides or {}, one) for row in _read_file(one, tool)]
        except NoResult as error:
            others.append(error)
    if others and not rows:
        raise next((other for other in others if isinstance(other, OwnTable)), others[0])
    for other in others:
        passed_over(str(other))
    if unread:
        more = f" and {len(unread) - LISTED} more" if len(unread) > LISTED else ""
        passed_over(
            f"not read, as other forms or parts of the runs beside them: {', '.join(map(str, unread[:LISTED]))}{more}; name a file itself "
            "to import it"
        )
    return as_repeats({row.row_id: row for row in rows}.values())


def _results_in(top: Path) -> tuple[list[Path], list[Path]]:
    """(results, files not read that may have some too) of a folder and those below it, each folder for itself. Raises `ResultsError`."""
    results: list[Path] = []
    unread: list[Path] = []
    for folder in sorted({top, *(path for path in top.rglob("*") if path.is_dir())}):
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        named = {name: found for name, one in TOOLS.items() if (found := _first_of(files, [(pattern,) for pattern in one.files]))}
        if named:
            usual = {path for found in named.values() for path in found}
            taken = [path for path in files if path in usual and not _is_part(path, top)]
            taken += [path for path in _matching(files, OTHER_RESULTS[0]) if path not in usual and _tool_of(path) not in ("", *named)]
        else:
            taken = _first_of(files, OTHER_RESULTS)
        results += taken
        unread += [path for path in _matching(files, [pattern for group in OTHER_RESULTS for pattern in group]) if path not in taken]
    if not results:
        raise ResultsError(f"{top} has no result file of {', '.join(TOOLS)}; name the file itself")
    return results, unread


def _tool_of(path: Path) -> str:
    """Whose result a file is, as far as it can be told at a look; '' where it is none, or large."""
    if path.stat().st_size > MOST_LOOKED_INTO:
        return ""
    try:
        content = _content(read_text(path), path)
    except (ResultsError, FieldError):
        return ""
    return next((name for name, importer in TOOLS.items() if importer.recognises(content)), "")


def _first_of(files: Iterable[Path], groups: Iterable[Iterable[str]]) -> list[Path]:
    """The files that match the first group of patterns that any matches."""
    return next((found for group in groups if (found := _matching(files, group))), [])


def _matching(files: Iterable[Path], patterns: Iterable[str]) -> list[Path]:
    return [path for path in files if any(path.match(pattern) for pattern in patterns)]


def _is_part(path: Path, top: Path) -> bool:
    """Whether a result is of a part of a run, whose own result lies in a folder above it."""
    names = {name for one in TOOLS.values() for name in one.part_folders}
    above = [folder for folder in path.parents if folder.is_relative_to(top)]
    return any(inner.name in names and (outer / path.name).is_file() for inner, outer in itertools.pairwise(above))


def as_repeats(rows: Iterable[Row], present: Iterable[Row] = ()) -> list[Row]:
    """Rows whose cell was measured several times, numbered as its repeats where their tool did not number them, after those `present`."""
    taken: dict[str, set[int]] = {}
    for row in present:
        taken.setdefault(row.key, set()).add(row.repeat)
    numbered = []
    for row in rows:
        used = taken.setdefault(row.key, set())
        repeat = row.repeat if row.repeat not in used else next(number for number in range(len(used) + 1) if number not in used)
        used.add(repeat)
        numbered.append(row if repeat == row.repeat else replace(row, repeat=repeat))
    return numbered


def _read_file(path: Path, tool: str) -> list[Row]:
    if path.name == ROWS:
        raise OwnTable(path)
    text = read_text(path)
    try:
        content = _content(text, path)
        names = [tool] if tool else [name for name, importer in TOOLS.items() if importer.recognises(content)]
        if not names:
            raise (
                OwnTable(path)
                if isinstance(content, dict) and {"schema_version", "rows"} <= set(content)
                else NoResult(_unknown(path, content))
            )
    except FieldError as error:
        raise ResultsError(f"{path}: {error}") from None
    name = names[0]
    if not TOOLS[name].recognises(content):
        raise ResultsError(f"{path} is not a result file of {name}; leave --tool out to have it recognised")
    try:
        return TOOLS[name].rows(content)
    except FieldError as error:
        if str(error).startswith("lacks"):
            raise ResultsError(f"{path} looks like a {name} result but {error}; it may be cut short or of a new version") from None
        raise ResultsError(f"{path}: {error}") from None


def _content(text: str, path: Path) -> Any:
    """JSON values, or a table or log in the form its importer takes. Raises `FieldError`."""
    importers = TOOLS.values()
    if (log := _first(one.of_text(text) for one in importers)) is not None:
        check_last_line(text, path)
        return log
    if what := _first(one.unreadable_text(text) or None for one in importers):
        raise ResultsError(f"{path} is {what}")
    if path.suffix in NO_JSON:
        raise ResultsError(f"{path} is {NO_JSON[path.suffix]}; import the JSON or CSV that the tool writes of the same run")
    if path.suffix == ".csv" and text.lstrip()[:1] not in ("{", "["):
        lines = csv_lines(text, path)
        if lines and (table := _first(one.of_csv(lines) for one in importers)) is not None:
            check_last_line(text, path)
            return table
        if lines and {"row_id", "cell_key"} <= set(lines[0]):
            raise OwnTable(path)
        raise ResultsError(
            f"{path} is not a result file of {', '.join(TOOLS)}: its columns are {', '.join(lines[0])[:80] if lines else 'none'}"
        )
    return json_values(text, path)


def _first(found: Iterable[Any]) -> Any:
    """The first that is not None, or None."""
    return next((one for one in found if one is not None), None)


def _unknown(path: Path, content: Any) -> str:
    if what := _first(one.unreadable(content) or None for one in TOOLS.values()):
        return f"{path} is {what}"
    return f"{path} is not a result file of {', '.join(TOOLS)}; import reads the files these tools write"


def in_another_form(present: Iterable[Row], imported: Iterable[Row]) -> set[str]:
    """Ids of those `imported` whose run is `present` already from another file, such as the table beside a report. Runs of their own never
    agree in every figure, and one run taken for two repeats would look certain."""
    by_key: dict[str, list[Row]] = {}
    for row in present:
        by_key.setdefault(row.key, []).append(row)
    return {row.row_id for row in imported if any(_same_run(row, other) for other in by_key.get(row.key, ()))}


def _same_run(row: Row, other: Row) -> bool:
    files = [one.extra.get("imported_from") for one in (row, other)]
    shared = [(row.figures[name], other.figures[name]) for name in row.figures if name in other.figures]
    if row.row_id == other.row_id or None in files or files[0] == files[1] or row.repeat or len(shared) < FEWEST_ALIKE:
        return False
    return all(math.isclose(ours, theirs, rel_tol=1e-6) for ours, theirs in shared)


def corrected(present: Iterable[Row], imported: Iterable[Row], overrides: Mapping[str, str]) -> list[Row]:
    """Those of the rows `present` that were `imported` before and that `overrides` change, as these have them; what was set before and is
    not in `overrides` stays."""
    ids = {row.row_id for row in imported}
    changed = []
    for row in present:
        if row.row_id in ids:
            new = _override(row, overrides, Path(str(row.extra.get("imported_from", ""))))
            changed += [new] if (new.cell, new.environment) != (row.cell, row.environment) else []
    return changed


def _override(row: Row, overrides: Mapping[str, str], path: Path) -> Row:
    cell, environment = row.cell, row.environment
    for name, text in overrides.items():
        if name == "gpu":
            environment = replace(environment, gpu=text)
            continue
        if name not in CELL_FIELDS or name == "settings":
            known = [field for field in CELL_FIELDS if field != "settings"]
            near = did_you_mean(name, (*known, "gpu"))
            raise ResultsError(f"--set {name}: not a cell field{near}; use {', '.join(known)} or gpu")
        cell = replace(cell, **{name: _cell_value(name, text)})
    cell = replace(cell, precision=our_precision(cell.precision), kv_dtype=cell.kv_dtype.lower())
    figures = dict(row.figures)
    if "output_tokens_per_s" in figures:
        figures["output_tokens_per_s_per_gpu"] = figures["output_tokens_per_s"] / cell.gpus
    key = row.stored_key if (cell, environment) == (row.cell, row.environment) else ""
    extra = {**row.extra, "imported_from": path.name}
    return replace(row, cell=cell, environment=environment, figures=figures, extra=extra, stored_key=key)


def _cell_value(name: str, text: str) -> Any:
    convert: Callable[[str], Any] = {"int": int, "float": float}.get(CELL_FIELDS[name], str)
    lowest = 1 if name in ("tp", "pp", "replicas") else 0
    try:
        value = convert(text)
    except ValueError:
        raise ResultsError(f"--set {name}={text}: {name} is a number of at least {lowest}") from None
    if not isinstance(value, str) and not lowest <= value < math.inf:
        raise ResultsError(f"--set {name}={text}: {name} is a number of at least {lowest}")
    return value
