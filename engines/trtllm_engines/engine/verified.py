"""Checksums of files, remembered by the file's identity: device, inode, size and time of last change.

So every byte of an engine's weights is read once by each machine that runs it, and again only when the file is another or was changed
since. Hashing at every load would be most of an engine's start (1.5 s for 538 MB on a busy two-core machine); hashing samples missed 40 of
40 flipped bytes. A disk that changes bytes by itself changes no time: `--verify` hashes whatever is remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from trtllm_engines.documents import read_object_if_there, regular_file
from trtllm_engines.errors import EngineError
from trtllm_kernels.files import cache_folder, write_whole

Progress = Callable[[str, int, int], None]
"""(stage, MiB done, of how many); the stage is `verify`."""

FILE = "verified.json"
MOST_REMEMBERED = 20_000
_CLOCK_TICK_NS = 20_000_000
"""A change within this time of another may leave the same time on the file: Linux stamps files by a clock that ticks every 4 to 10 ms."""
_SHOW_AFTER_S = 2.0
_BLOCK = 8 << 20


class Verifier:
    """Hashes files, or remembers having done so; `close` keeps what is new. `again`: hashes all of them, whatever is remembered."""

    def __init__(self, again: bool = False, progress: Progress | None = None) -> None:
        self._again, self._progress = again, progress
        self._known: dict[str, str] | None = None
        self._new: dict[str, str] = {}
        self._total = self._done = 0
        self._began = time.monotonic()

    def expect(self, nbytes: int) -> None:
        """What all files together have, for the progress."""
        self._total = nbytes

    def digest(self, path: Path) -> str:
        """sha256 of `path`. Raises FileNotFoundError, and `EngineError` for what is not a regular file."""
        identity = _identity(regular_file(path))
        if not self._again and (known := self._remembered().get(identity)) is not None:
            self._done += regular_file(path).st_size
            return known
        digest = self._hash(path)
        status = regular_file(path)
        if _identity(status) == identity and time.time_ns() - status.st_mtime_ns > _CLOCK_TICK_NS:
            self._new[identity] = digest
        return digest

    def _hash(self, path: Path) -> str:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                self._done += len(block)
                if self._progress is not None and time.monotonic() - self._began > _SHOW_AFTER_S:
                    self._progress("verify", min(self._done, self._total) >> 20, max(self._total >> 20, 1))
        return digest.hexdigest()

    def close(self) -> None:
        """Remembers what was hashed, for other processes too; a cache that cannot be written only forgets."""
        if not self._new:
            return
        try:
            path = cache_folder() / FILE
            entries = {**_read(path), **self._new}
            write_whole(path, json.dumps(dict(list(entries.items())[-MOST_REMEMBERED:])).encode())
        except (OSError, RuntimeError):
            pass
        self._known, self._new = None, {}

    def _remembered(self) -> dict[str, str]:
        if self._known is None:
            try:
                self._known = _read(cache_folder() / FILE)
            except RuntimeError:  # no home folder
                self._known = {}
        return self._known


def _identity(status: os.stat_result) -> str:
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}"


def _read(path: Path) -> dict[str, str]:
    try:
        return {key: value for key, value in read_object_if_there(path).items() if isinstance(value, str)}
    except EngineError:
        return {}
