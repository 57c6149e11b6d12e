"""A folder to write into that becomes another one at the end: hidden beside it, locked while it is written, gone when that failed.

A process that is killed cannot remove its folder. The next one that writes to the same place does: a folder whose lock is free belongs to
nobody. Rejected: the number of the process in the name, which says nothing of one in another container or on another host.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from trtllm_engines.errors import NoSpaceError

_ENDING = ".partial"


@contextmanager
def partial_folder(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, readable for everybody, removed at the end if it is still there. Raises OSError."""
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(out)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_ENDING, dir=out.parent))
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: then nobody finds this one free either
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        folder.chmod(0o755)
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


def check_space(what: str, out: Path, needed_bytes: int) -> None:
    """Raises `NoSpaceError` before work is begun whose result, `what`, has no room at `out`."""
    parent = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if needed_bytes > free:
        raise NoSpaceError(
            f"no space for {what} at {out}: it needs {needed_bytes / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
            f"free some or choose another output folder"
        )


def _remove_abandoned(out: Path) -> None:
    """Removes what killed processes left of writing `out`."""
    ours = re.compile(rf"\.{re.escape(out.name)}\.[a-z0-9_]{{8}}{re.escape(_ENDING)}")
    for folder in [entry for entry in out.parent.iterdir() if ours.fullmatch(entry.name)]:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
