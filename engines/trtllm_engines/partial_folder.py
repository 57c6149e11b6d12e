"""A folder to write into, which becomes the target folder at the end. It lies hidden beside the target, is locked while it is written, and
is removed where writing fails. Where the target exists and is empty, it lies within the target: a folder that is mounted, or in which a
shell stands, cannot be replaced.

A killed process cannot remove its folder. The next one that writes to the same target does: a folder whose lock is free belongs to nobody.
Rejected: the number of the process in the name, which says nothing of one in another container or on another host.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import ENOTEMPTY
from pathlib import Path

from trtllm_engines.errors import NoSpaceError

_ENDING = ".partial"


@contextmanager
def partial_folder(out: Path, within: bool = False) -> Iterator[Path]:
    """A new folder beside `out` or `within` it, readable for everybody, removed at the end if it is still there. Raises OSError."""
    parent = out if within else out.parent
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent, out.name)
    folder, descriptor = _new_and_locked(parent, out.name)
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        os.close(descriptor)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def folder_for(out: Path, last: str) -> Iterator[Path]:
    """A partial folder that becomes `out`, which is new or empty; a link is followed. Where `out` exists, file `last` is moved there last.
    Raises OSError."""
    place = Path(os.path.realpath(out))
    within = place.is_dir()
    with partial_folder(place, within) as folder:
        yield folder
        if within:
            move_up(folder, last)
        else:
            folder.rename(place)


def is_empty(out: Path) -> bool:
    """Whether there is nothing in folder `out` (a link is followed) but what killed processes left, which is removed."""
    place = Path(os.path.realpath(out))
    _remove_abandoned(place, place.name)
    return not any(place.iterdir())


def move_up(folder: Path, last: str) -> None:
    """Moves the content of `folder` up into its parent. File `last` is moved last: without it nobody takes the parent for whole. Raises
    OSError where the parent holds anything else by now."""
    if list(folder.parent.iterdir()) != [folder]:
        raise OSError(ENOTEMPTY, os.strerror(ENOTEMPTY))
    for entry in sorted(folder.iterdir(), key=lambda one: one.name == last):
        entry.rename(folder.parent / entry.name)


def check_space(what: str, out: Path, needed_bytes: int) -> None:
    """Raises `NoSpaceError` before work is begun whose result, `what`, has no room at `out`; a link is followed."""
    place = Path(os.path.realpath(out))
    parent = next(folder for folder in (place, *place.parents) if folder.is_dir())
    free = shutil.disk_usage(parent).free
    if needed_bytes > free:
        raise NoSpaceError(
            f"no space for {what} at {out}: it needs {needed_bytes / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
            f"free some or choose another output folder"
        )


def _new_and_locked(parent: Path, name: str) -> tuple[Path, int]:
    """A new folder, and the descriptor that holds its lock. Until it is locked, another process that starts may take it for an abandoned
    one and remove it; then a next one is made."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=_ENDING, dir=parent))
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            removed = not folder.is_dir()
        except BlockingIOError:
            removed = True
        except OSError:  # a file system without locks: then nobody finds this one free either
            removed = False
        if not removed:
            return folder, descriptor
        os.close(descriptor)


def _remove_abandoned(parent: Path, name: str) -> None:
    """Removes what killed processes left in `parent` of writing a folder called `name`."""
    ours = re.compile(rf"\.{re.escape(name)}\.[a-z0-9_]{{8}}{re.escape(_ENDING)}")
    for folder in [entry for entry in parent.iterdir() if ours.fullmatch(entry.name)]:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
