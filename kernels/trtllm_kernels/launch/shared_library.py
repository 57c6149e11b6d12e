"""Finding libraries that torch brings: the file that this process has mapped already, so that both use one copy of its state."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from pathlib import Path

_MAPS = Path("/proc/self/maps")


def mapped(name: str) -> list[str]:
    """Paths of the files of library `name` (such as `libnccl.so`) that this process has mapped, each once."""
    return list(dict.fromkeys(re.findall(rf"(/\S*{re.escape(name)}\S*)", _MAPS.read_text()))) if _MAPS.exists() else []


def first_that_loads(paths: Iterable[str]) -> ctypes.CDLL | None:
    """None where the loader takes none of them."""
    for path in paths:
        try:
            return ctypes.CDLL(path)
        except OSError:
            continue
    return None
