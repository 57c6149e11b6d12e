"""Rows as runs of an experiment tracker. One tracker is one file of this folder with a `push(rows, place, project) -> int`.

One row is one run: its cell and environment are parameters, its figures metrics, its row id a tag by which pushing twice adds nothing.
Trackers are optional dependencies, imported when one is pushed to.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from trtllm_results.errors import ResultsError
from trtllm_results.record.cell import CELL_FIELDS
from trtllm_results.record.environment import ENVIRONMENT_FIELDS
from trtllm_results.record.row import Row

TRACKERS: Mapping[str, str] = {"mlflow": "mlflow-skinny", "wandb": "wandb"}
"""Name, and the distribution that it needs."""
PROJECT = "trtllm-bench"
ROW_ID = "trtllm_bench.row_id"


def push(tracker: str, rows: Sequence[Row], place: str = "", project: str = PROJECT) -> int:
    """Sends the rows that `tracker` lacks; returns how many were new. `place`: the server or folder, by default the tracker's own.

    Raises `ResultsError` for an unknown tracker, one that is not installed, and what it refuses.
    """
    if tracker not in TRACKERS:
        raise ResultsError(f"there is no tracker '{tracker}'; choose {' or '.join(TRACKERS)}")
    module: Any = importlib.import_module(f"{__name__}.{tracker}")
    try:
        count: int = module.push(rows, place, project)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != tracker:
            raise
        raise ResultsError(f"--to {tracker} needs {TRACKERS[tracker]}; install it with: pip install 'trtllm-bench[{tracker}]'") from None
    return count


def name_of(row: Row) -> str:
    return f"{row.label} r{row.repeat}"


def parameters(row: Row) -> dict[str, Any]:
    """What was asked for and where it was measured; empty fields are left out."""
    cell = {name: getattr(row.cell, name) for name in CELL_FIELDS if name != "settings"}
    environment = {f"env_{name}": getattr(row.environment, name) for name in ENVIRONMENT_FIELDS}
    settings = {f"settings.{name}": value for name, value in row.cell.settings.items()}
    return {name: value for name, value in {**cell, **settings, **environment}.items() if value not in ("", None)}


def tags(row: Row) -> dict[str, str]:
    """What finds a row again, and whether it counts."""
    named = {ROW_ID: row.row_id, "cell_key": row.key, "status": row.status, "reason": row.reason, "arm": row.arm, "command": row.command}
    return {name: value for name, value in named.items() if value} | ({"predicted": "true"} if row.predicted else {})
