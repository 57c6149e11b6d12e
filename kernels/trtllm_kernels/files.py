"""Where this user's cache is, and files that other processes may read while they are written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """`$TRTLLM_BENCH_CACHE`, else `trtllm-bench` in the user's cache folder. It holds engines, shared weights, fetched models, kernels'
    machine code, ceilings, and what was verified."""
    chosen = os.environ.get("TRTLLM_BENCH_CACHE")
    return Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtllm-bench"


def write_whole(path: Path, content: bytes) -> None:
    """Writes `path` whole or not at all, readable for everybody; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
