"""How far a sweep is, as it tells whoever follows it: a small file in its folder, rewritten between measurements.

A killed sweep leaves the file saying `running`; whether its lock is still held tells that apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trtllm_results.store.document import read_document
from trtllm_results.store.layout import PROGRESS
from trtllm_results.store.lock import RUN_LOCK, held

STATES = ("running", "ended", "interrupted")


def read_progress(store: Path) -> dict[str, Any] | None:
    """`state` (running, ended, interrupted), `done` and `total` measurements, `now` (the current cell), `requests` in it, `left_s` seconds
    (None: unknown) as of `at` (seconds since the epoch). None where no sweep runs and none has told anything.
    """
    running = held(store, RUN_LOCK)
    try:
        content = read_document(store / PROGRESS)
        told = {name: content[name] for name in ("state", "done", "total", "now", "requests", "left_s", "at")}
        if told["state"] not in STATES or not isinstance(told["done"], int) or not isinstance(told["total"], int):
            raise ValueError(told["state"])
    except (OSError, ValueError, KeyError, TypeError):
        return {"state": "running", "done": 0, "total": 0, "now": "", "requests": 0, "left_s": None, "at": 0.0} if running else None
    if told["state"] == "running" and not running:
        told["state"] = "interrupted"
    return told
