"""Where results go: a folder here, or an address to which such a folder is mirrored."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from trtllm_bench.errors import BenchError
from trtllm_results.store.files import check_writable
from trtllm_results.store.layout import ROWS
from trtllm_results.store.remote import is_address
from trtllm_results.store.table import MirroredStore, Store


def open_store(out: str | os.PathLike[str]) -> Store:
    """The store `out`; of an address (`s3://bucket/set`) a new folder `runs/<time>` that is copied there as it grows.

    Raises `ResultsError` and `WriteError`, before anything is measured, for one that cannot be made or written.
    """
    store = MirroredStore(by_time(), os.fspath(out)) if is_address(out) else Store(out)
    check_writable(store.path / ROWS)
    return store


def by_time() -> Path:
    """A folder of its own, also for runs that begin in the same second. Raises `BenchError` where none is free."""
    runs, name = Path("runs"), time.strftime("%Y%m%d-%H%M%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 100))):
        folder = runs / f"{name}{suffix}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise BenchError(f"{runs / name} is taken; choose a folder with --out")
