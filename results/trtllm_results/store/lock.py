"""Locks on a folder that die with their holder.

The kernel's `flock` on a file in the folder: it cannot outlive its process, so there is no stale lock to judge by its age. The file's
content says who holds it, for the refusal only. A forked child gives up its share of the lock, else it would keep the folder locked after
its parent was killed. Rejected: a file whose existence is the lock (a killed process leaves it, and its pid may be another's by then) and
record locks (`lockf`), which a process loses when it closes any other handle of that file.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path

from trtllm_results.errors import ResultsError
from trtllm_results.store.document import read_document
from trtllm_results.store.files import writing

RUN_LOCK = ".run.lock"
"""Held by a sweep from its first look into the folder to its end."""
WRITE_LOCK = ".lock"
"""Held for one append."""
_held: set[int] = set()
"""Descriptors of the locks this process holds or waits for."""


@contextlib.contextmanager
def locked(folder: Path, name: str, wait_s: float, purpose: str) -> Iterator[None]:
    """Holds the lock `name` of `folder` exclusively, also among threads, waiting `wait_s` seconds for it.

    Raises `ResultsError` naming the holder where it was not free in time, `WriteError` where the lock's file cannot be made.
    """
    path = folder / name
    with writing(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    _held.add(descriptor)
    try:
        until = time.monotonic() + wait_s
        while not _try(descriptor, path):
            if time.monotonic() >= until:
                raise ResultsError(f"{folder} is {purpose} by {_holder(path)}; wait until it has ended, or name another folder")
            time.sleep(0.02)
        _sign(descriptor)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def held(folder: Path, name: str) -> bool:
    """Whether someone holds the lock `name` of `folder` now."""
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _try(descriptor: int, path: Path) -> bool:
    with writing(path):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _sign(descriptor: int) -> None:
    """A full disk must not keep anyone from locking."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        holder = {"pid": os.getpid(), "host": platform.node(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.pwrite(descriptor, json.dumps(holder).encode(), 0)


def _holder(path: Path) -> str:
    try:
        holder = read_document(path)
        return f"process {int(holder['pid'])} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _give_up_in_child() -> None:
    """The descriptor becomes one of the null device: its number stays taken, so closing it later closes nothing else."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, descriptor)
            os.close(null)


os.register_at_fork(after_in_child=_give_up_in_child)
