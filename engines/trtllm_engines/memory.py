"""Memory of the host: what is free of it, and what is said when it ends.

What is free is the least of what the machine, the container (cgroup v2) and the process (`ulimit -v`) have left, since each of them ends a
process that takes more.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trtllm_engines.errors import OutOfMemoryError

_CGROUP = Path("/sys/fs/cgroup")


def host_free_bytes() -> int:
    """Bytes that this process may still take of the host's memory."""
    return min([_available(), *_cgroup(), *_limit()])


def _available() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup() -> list[int]:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        return [] if limit == "max" else [max(0, int(limit) - int((_CGROUP / "memory.current").read_text()))]
    except (OSError, ValueError):
        return []


def _limit() -> list[int]:
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return []
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return [max(0, limit - pages * resource.getpagesize())]


@contextmanager
def allocating(what: str) -> Iterator[None]:
    """Turns an allocation on the host that fails within into an `OutOfMemoryError`: `what` was being done."""
    try:
        yield
    except MemoryError as error:
        raise _out_of_memory(what) from error
    except RuntimeError as error:
        if not any(said in str(error) for said in ("DefaultCPUAllocator", "can't allocate memory", "Cannot allocate memory")):
            raise
        raise _out_of_memory(what) from error


def _out_of_memory(what: str) -> OutOfMemoryError:
    return OutOfMemoryError(
        f"out of memory while {what}: {gib(host_free_bytes())} are free; use a smaller batch, shorter sequences or a smaller model"
    )


def gib(nbytes: int) -> str:
    """`16.1 GiB`; small sizes in MiB."""
    return f"{nbytes / 2**30:,.1f} GiB" if nbytes >= 2**30 // 10 else f"{nbytes / 2**20:,.1f} MiB"
