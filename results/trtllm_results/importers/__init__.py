"""Other tools' result files as rows, so that their runs sit in the same tables.

Figures are mapped by *meaning* and not by name: AIPerf's and GuideLLM's "inter token latency" is one mean a request, which here is TPOT;
GuideLLM's "time per output token" counts the first token, which here is nothing, so it goes to `extra`. What a tool does not say
(precision, GPU) is asked for with `results import --set FIELD=VALUE` and stays empty otherwise; `extra.definitions` names the tool whose
clock and percentile rule produced the figures.

The tool is recognised by the shape of its JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from trtllm_results.errors import ResultsError
from trtllm_results.importers import aiperf, guidellm, nvidia, vllm
from trtllm_results.record.row import CELL_FIELDS, Row

TOOLS: Mapping[str, tuple[Callable[[Any], bool], Callable[[Any], list[Row]]]] = {
    "nvidia": (nvidia.recognises, nvidia.rows),
    "vllm": (vllm.recognises, vllm.rows),
    "aiperf": (aiperf.recognises, aiperf.rows),
    "guidellm": (guidellm.recognises, guidellm.rows),
}


def read(path: Path, tool: str = "", overrides: Mapping[str, str] | None = None) -> list[Row]:
    """Rows of another tool's JSON (or JSON lines) file. `overrides` sets cell fields, or `gpu`, the file does not tell.

    Raises `ResultsError` for a file that is missing, not JSON, of no known tool, or lacks what every result has.
    """
    content = _load(path)
    names = [tool] if tool else [name for name, (recognises, _) in TOOLS.items() if recognises(content)]
    if tool and tool not in TOOLS:
        raise ResultsError(f"There is no importer for '{tool}'; choose from {', '.join(TOOLS)}.")
    if not names:
        raise ResultsError(f"{path} is not a result file of {', '.join(TOOLS)}; import reads the JSON these tools write.")
    try:
        rows = TOOLS[names[0]][1](content)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ResultsError(f"{path} looks like a {names[0]} result but lacks {error}; it may be cut short or of a new version.") from error
    return [_override(row, overrides or {}, path) for row in rows]


def _load(path: Path) -> Any:
    try:
        text = path.read_text()
    except OSError as error:
        raise ResultsError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path} is not a JSON file.") from error
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise ResultsError(f"{path} is not a JSON file: {error}.") from error


def _override(row: Row, overrides: Mapping[str, str], path: Path) -> Row:
    cell, environment = row.cell, row.environment
    for name, text in overrides.items():
        if name == "gpu":
            environment = replace(environment, gpu=text)
            continue
        if name not in CELL_FIELDS or name == "settings":
            raise ResultsError(f"--set {name}: not a cell field; use {', '.join(f for f in CELL_FIELDS if f != 'settings')} or gpu.")
        kind = {"int": int, "float": float}.get(CELL_FIELDS[name], str)
        try:
            cell = replace(cell, **{name: kind(text)})
        except ValueError:
            raise ResultsError(f"--set {name}={text}: {name} is a number.") from None
    figures = dict(row.figures)
    if "output_tokens_per_s" in figures:
        figures["output_tokens_per_s_per_gpu"] = figures["output_tokens_per_s"] / cell.gpus
    key = row.stored_key if (cell, environment) == (row.cell, row.environment) else ""
    extra = {**row.extra, "imported_from": path.name}
    return replace(row, cell=cell, environment=environment, figures=figures, extra=extra, stored_key=key)
