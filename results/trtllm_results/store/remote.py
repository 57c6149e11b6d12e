"""Stores at an address: object storage and shared folders, through pyarrow's filesystems (`s3://`, `gs://`, `abfs://`, `hdfs://`, `file://`).

    s3://bucket/set/<host>-<run>/   one store, written by one sweep on one host

An object store has neither lock nor rename, so no two writers may share a table there. A sweep measures into a folder of its own machine,
as always, and mirrors it to a place of its own below the address each time a cell ends; what is read at an address is the union of all
stores below it. So any number of hosts write into one set, a lost connection loses nothing (the folder has it all), and nobody waits.

Credentials and endpoints are the filesystem's own: `AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` and the like, or `?endpoint_override=...` in the
address. Rejected: fsspec, whose S3 half is boto's event loop, where pyarrow is here already.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_results.errors import ResultsError
from trtllm_results.store.layout import ROWS, SIDE_KINDS

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

_ADDRESS = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)
TABLES = (".parquet", ".json", ".csv", ".xlsx")
MOST_STORES = 10_000
RETRY_S = 20
"""Seconds."""
MOST_REASON = 200
"""Characters of a refusal."""
OBJECT_STORES = ("s3", "gcs")
"""Filesystems without folders."""


def is_address(text: str | os.PathLike[str]) -> bool:
    """Whether `text` names a place by a scheme, and not a path."""
    return _ADDRESS.match(os.fspath(text)) is not None


def name_of(address: str) -> str:
    """The last part of an address, which names its result set."""
    return address.partition("?")[0].rstrip("/").rsplit("/", 1)[-1] or address


def open_address(address: str) -> tuple[FileSystem, str]:
    """The filesystem and the path in it. Raises `ResultsError`."""
    import pyarrow as pa
    from pyarrow import fs

    try:
        filesystem, path = fs.FileSystem.from_uri(_patient(address))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ResultsError(f"cannot open {address}: {_reason(error)}; write for example s3://bucket/folder") from None
    return filesystem, path.rstrip("/")


def _patient(address: str) -> str:
    """Google's client tries for a quarter of an hour unless it is told how long."""
    if not address.lower().startswith(("gs://", "gcs://")) or "retry_limit_seconds" in address:
        return address
    return f"{address}{'&' if '?' in address else '?'}retry_limit_seconds={RETRY_S}"


@contextlib.contextmanager
def _reaching(address: str, doing: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ResultsError(f"cannot {doing} {address}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    """The end of Arrow's chain of causes, which is the one that tells."""
    text = " ".join(str(error).split()).rpartition("operation: ")[2].rstrip(".") or type(error).__name__
    return text if len(text) <= MOST_REASON else f"{text[:MOST_REASON]}..."


@contextlib.contextmanager
def fetched(address: str, sides: bool = False) -> Iterator[list[Path]]:
    """Local copies of the stores below an address, or of the one table that it names; gone when the block ends.

    `sides`: with the side tables. Raises `ResultsError` where there is none or it cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="trtllm-bench-fetched-") as scratch:
        with _reaching(address, "read"):
            copies = _fetch(address, Path(scratch), sides)
        yield copies


def _fetch(address: str, scratch: Path, sides: bool) -> list[Path]:
    filesystem, path = open_address(address)
    files = _files(filesystem, path)
    if len(files) == 1 and files[0].path == path and path.endswith(TABLES):
        return [_download(filesystem, path, scratch / files[0].base_name)]
    stores = {os.path.dirname(one.path) for one in files if one.base_name == ROWS}
    if not stores:
        raise ResultsError(f"{address} holds no {ROWS}; name the place of a store, or of a set of stores")
    for one in files:
        if one.base_name == ROWS or (sides and _is_side(one, stores)):
            _download(filesystem, one.path, scratch / os.path.relpath(one.path, path))
    return [scratch / os.path.relpath(store, path) for store in sorted(stores)]


def _files(filesystem: FileSystem, path: str) -> list[FileInfo]:
    from pyarrow import fs

    found = filesystem.get_file_info(path)
    if found.type == fs.FileType.File:
        return [found]
    selector = fs.FileSelector(path, allow_not_found=True, recursive=True)
    files = [one for one in filesystem.get_file_info(selector) if one.type == fs.FileType.File]
    if sum(one.base_name == ROWS for one in files) > MOST_STORES:
        raise ResultsError(f"{path} holds more than {MOST_STORES:,} stores; name a part of it")
    return sorted(files, key=lambda one: one.path)


def _is_side(one: FileInfo, stores: set[str]) -> bool:
    folder, kind = os.path.split(os.path.dirname(one.path))
    return kind in SIDE_KINDS and folder in stores


def _download(filesystem: FileSystem, path: str, target: Path) -> Path:
    import shutil

    target.parent.mkdir(parents=True, exist_ok=True)
    with filesystem.open_input_stream(path) as source, open(target, "wb") as copy:
        shutil.copyfileobj(source, copy)
    return target


@dataclass
class Mirror:
    """Copies a store's folder to a place of its own below `address`, file by file as they change."""

    folder: Path
    address: str
    _known: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def place(self) -> str:
        base, question, query = self.address.partition("?")
        return f"{base.rstrip('/')}/{platform.node() or 'host'}-{self.folder.name}{question}{query}"

    def push(self) -> int:
        """Copies what has changed since the last call; the table of rows goes last, so that its side tables are there before it.

        Returns the number of files copied. Raises `ResultsError`.
        """
        filesystem, base = open_address(self.place)
        changed = [path for path in self._files() if self._known.get(str(path)) != _stamp(path)]
        with _reaching(self.place, "write to"):
            for path in changed:
                stamp, target = _stamp(path), f"{base}/{path.relative_to(self.folder).as_posix()}"
                if filesystem.type_name not in OBJECT_STORES:
                    filesystem.create_dir(os.path.dirname(target), recursive=True)
                with filesystem.open_output_stream(target) as handle:
                    handle.write(path.read_bytes())
                self._known[str(path)] = stamp
        return len(changed)

    def _files(self) -> list[Path]:
        found = [path for path in sorted(self.folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
        return sorted(found, key=lambda path: (path.name == ROWS, path))


def _stamp(path: Path) -> tuple[int, int]:
    state: Any = os.stat(path)
    return state.st_size, state.st_mtime_ns
