"""Locks of what processes make in the cache: one at a time makes a thing, and the others wait and find it made.

A lock is a file in the cache's folder `locks`, held by `flock`, so it is free when its process is gone, however that ended.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trtllm_kernels.files import cache_folder


def lock_file(name: str) -> Path:
    return folder() / f"{name}.lock"


def folder() -> Path:
    return cache_folder() / "locks"


@contextmanager
def one_at_a_time(name: str) -> Iterator[None]:
    """Waits until no other process is in here with `name`. Where the cache cannot be locked there is no waiting: what is made there says
    itself what is wrong with the folder."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        handle = _lock(lock_file(name))
    except OSError:
        yield
        return
    try:
        yield
    finally:
        os.close(handle)


def is_locked(lock: Path) -> bool:
    """Whether some process holds file `lock`; one that is not there is held by nobody."""
    try:
        handle = os.open(lock, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


def _lock(path: Path) -> int:
    """Waits for the lock and returns its open file. A lock file that was removed meanwhile locks nothing."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)
