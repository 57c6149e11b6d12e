"""Finding libraries that torch brings: the file that this process has mapped already, so that both use one copy of its state."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

_MAPS = Path("/proc/self/maps")


def mapped(name: str) -> list[str]:
    """Paths of the files of library `name` (such as `libnccl.so`) that this process has mapped, each once."""
    if not _MAPS.exists():
        return []
    lines = (line.split(None, 5) for line in _MAPS.read_bytes().split(b"\n"))  # a path may have spaces, and bytes that are no UTF-8
    paths = (os.fsdecode(fields[5]) for fields in lines if len(fields) == 6)
    return list(dict.fromkeys(path for path in paths if name in path.rpartition("/")[2]))


def first_that_loads(paths: Iterable[str]) -> ctypes.CDLL | None:
    """None where the loader takes none of them."""
    for path in paths:
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None
