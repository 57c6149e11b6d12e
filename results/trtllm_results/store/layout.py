"""The names of what a store's folder holds: its tables of rows, the documents beside them, the folders of side tables."""

from __future__ import annotations

from typing import Literal, get_args

ROWS = "results.parquet"
"""The rows. A folder that has this file is a store."""
ROWS_JSON = "results.json"
"""The same rows as one JSON document."""
SWEEP = "sweep.json"
"""What the sweep that fills the folder was asked for."""
PROGRESS = "progress.json"
"""How far that sweep is."""
GATE_REPORT = "gate.json"
"""What a gate made of the folder's runs."""
FILES = (ROWS, ROWS_JSON, SWEEP, PROGRESS, GATE_REPORT)
SideKind = Literal["requests", "steps", "samples"]
SIDE_KINDS: tuple[SideKind, ...] = get_args(SideKind)
"""Side tables of a row, each kind in a folder of its name."""
