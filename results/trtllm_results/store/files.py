"""Files that are whole or absent: written beside their place, synced, renamed over it; and read only where they are files.

Every file of a store, and every file the tool exports, is written through `atomically`, so there is one place where a full disk is met.
The temporary's name carries the process that writes it: whoever holds the folder's lock may remove one whose process is gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from trtllm_results.errors import ResultsError, WriteError

HINTS = {
    errno.ENOSPC: "; free some space, then go on",
    errno.EDQUOT: "; free some space, then go on",
    errno.ENXIO: "; a pipe needs a process that reads it",
}
"""What to do about an error of the operating system."""
_TEMPORARY = re.compile(r"^\..+\.\d+-[0-9a-f]{8}\.tmp$")


def atomically(target: Path, write: Callable[[BinaryIO], object]) -> None:
    """`write(handle)` to a temporary file, sync, rename over `target`, sync the folder. Nothing is left of a failed attempt.

    Folders above are made. What is not a regular file (a pipe, `/dev/stdout`) is written to as it is, and a link is followed.
    Raises `WriteError` where the disk or the folder does not take it.
    """
    with writing(target):
        if target.exists() and not target.is_file():
            with open_stream(target) as handle:
                write(handle)
            return
        target = Path(os.path.realpath(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
        try:
            with open(temporary, "wb") as handle:
                write(handle)
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)


def open_stream(target: Path) -> BinaryIO:
    """What is not a regular file, to write to. Raises OSError (ENXIO) for a pipe that nobody reads, for which `open` would wait."""
    descriptor = os.open(target, os.O_WRONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return os.fdopen(descriptor, "wb")


def write_text(target: Path, text: str) -> None:
    """`atomically`, in UTF-8."""
    atomically(target, lambda handle: handle.write(text.encode()))


def check_writable(*targets: Path | None) -> None:
    """Before long work whose result goes there: raises `WriteError` for a file that `atomically` could not write now."""
    for target in targets:
        if target is None or (target.exists() and not target.is_file() and not target.is_dir()):
            continue
        with writing(target):
            place = Path(os.path.realpath(target))
            if place.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
            place.parent.mkdir(parents=True, exist_ok=True)
            trial = place.with_name(f".{place.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
            try:
                with open(trial, "wb") as handle:
                    handle.write(b" ")
            finally:
                trial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turns the operating system's refusal to write `target` into `WriteError`."""
    try:
        yield
    except OSError as error:
        hint = HINTS.get(error.errno or 0, "")
        in_the_way = isinstance(error, FileExistsError)
        what = f"{error.filename} is a file, and a folder is needed there" if in_the_way else error.strerror or error
        code = 3 if error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG) else 1
        raise WriteError(target, f"{what}{hint}", code) from error


def sync_folder(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporaries(folder: Path) -> list[Path]:
    """What `atomically` left in `folder` when its process was killed, or is writing now."""
    if not folder.is_dir():
        return []
    return sorted(folder / name for name in os.listdir(folder) if _TEMPORARY.match(name))


def check_regular(path: Path) -> int:
    """Size of `path` in bytes. Raises `ResultsError` unless it is a file with something in it: opening a FIFO waits for ever."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise ResultsError(f"no results at {path}") from None
    except (OSError, ValueError) as error:
        raise ResultsError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ResultsError(f"{path} is a folder; a file belongs there")
    if not stat.S_ISREG(status.st_mode):
        raise ResultsError(f"{path} is a pipe, socket or device; name a file")
    if not status.st_size:
        raise ResultsError(f"{path} is empty; remove it, or restore it from a copy")
    return status.st_size


def read_text(path: Path, most_bytes: int) -> str:
    """A text file of ours, with its line ends, without a byte-order mark. Raises `ResultsError` where it is not a file, is larger than
    `most_bytes`, or is not UTF-8."""
    size = check_regular(path)
    if size > most_bytes:
        raise ResultsError(f"{path} has {size:,} bytes; at most {most_bytes:,} are read")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path} is not UTF-8 text at byte {error.start:,}; it is damaged, or another tool wrote it") from None
    except OSError as error:
        raise ResultsError(f"cannot read {path}: {error.strerror}") from error


def check_last_line(text: str, path: Path) -> None:
    """Raises `ResultsError` where the last line of a table or log has no end: its last number may have lost digits, which nothing else
    would show."""
    if not text.endswith(("\n", "\r")):
        raise ResultsError(f"{path}: the last line has no end, as in a file that was cut short; end it if the file is whole")
