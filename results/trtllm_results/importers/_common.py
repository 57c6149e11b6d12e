"""Small helpers the importers share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Cell, Row


def present(figures: Mapping[str, Any]) -> dict[str, float]:
    """The entries that are numbers."""
    return {name: float(value) for name, value in figures.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def make(cell: Cell, figures: Mapping[str, Any], tool: str, content: Any, **more: Any) -> Row:
    """A row whose id is the content's hash, so that importing a file twice adds nothing."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:32]
    extra = {"definitions": tool, **more.pop("extra", {})}
    environment = more.pop("environment", Environment())
    return Row(cell=cell, environment=environment, figures=present(figures), row_id=digest, extra=extra, run_id=f"import-{tool}", **more)
