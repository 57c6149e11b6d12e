"""Where this user's cache is: engines, shared weights, fetched models, kernels' machine code, ceilings, and what was verified."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """`$TRTLLM_BENCH_CACHE`, else `trtllm-bench` in the user's cache folder."""
    chosen = os.environ.get("TRTLLM_BENCH_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtllm-bench"
