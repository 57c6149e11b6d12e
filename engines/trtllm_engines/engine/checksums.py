"""`checksums.json`: size and sha256 of every other file of an engine, written when it is built and compared when it is loaded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel

from trtllm_engines.documents import checked, read_object, regular_file, shown
from trtllm_engines.engine.verified import Progress, Verifier
from trtllm_engines.errors import EngineError

CHECKSUMS = "checksums.json"
Verify = Literal["sizes", "once", "full"]
"""`sizes` compares sizes alone (a rank's process, after the engine's own has verified); `once` hashes files that were not hashed since they
last changed; `full` hashes all of them."""


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or "\\" in name or str(path) != name or name in ("", ".", CHECKSUMS):
        raise EngineError(f"{shown(name)} is not a file of the engine's own folder")
    return name


class Checksum(BaseModel):
    model_config = ConfigDict(strict=True)

    bytes: Annotated[int, Field(ge=0, le=2**60)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Checksums(RootModel[dict[Annotated[str, AfterValidator(_inside)], Checksum]]):
    """By the file's path in the engine's folder; every file in it is regular and lies in that folder."""


def read_checksums(path: Path) -> Mapping[str, Checksum]:
    """Of engine folder `path`. Raises `EngineError`."""
    file = path / CHECKSUMS
    content = read_object(file, f"{path} is not an engine: it has no {CHECKSUMS}; make one with trtllm-bench build")
    return checked(Checksums, content, f"engine file {file} is damaged").root


def check_files(path: Path, verify: Verify = "once", progress: Progress | None = None) -> Mapping[str, Checksum]:
    """Every file and its checksum. Raises `EngineError` naming the first file that is missing, truncated or altered."""
    expected = read_checksums(path)
    verifier = Verifier(verify == "full", progress)
    verifier.expect(sum(entry.bytes for entry in expected.values()))
    try:
        for name, entry in expected.items():
            _check_file(path / name, entry, None if verify == "sizes" else verifier)
    finally:
        verifier.close()
    return expected


def _check_file(file: Path, entry: Checksum, verifier: Verifier | None) -> None:
    try:
        size = regular_file(file).st_size
        if size != entry.bytes:
            raise EngineError(
                f"engine file {file} is {'truncated' if size < entry.bytes else 'altered'}: {size} bytes instead of {entry.bytes}; "
                f"rebuild the engine or copy it again"
            )
        if verifier is not None and verifier.digest(file) != entry.sha256:
            raise EngineError(f"engine file {file} was altered (its checksum differs); rebuild the engine or copy it again")
    except FileNotFoundError:
        raise EngineError(f"engine file {file} is missing; rebuild the engine or copy it again") from None
    except OSError as error:
        raise EngineError(f"engine file {file} cannot be read ({error.strerror}); rebuild the engine or copy it again") from None


def write_checksums(folder: Path) -> None:
    """Of every file in `folder`. Raises OSError."""
    verifier = Verifier()
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name != CHECKSUMS)
    entries = {file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": verifier.digest(file)} for file in files}
    (folder / CHECKSUMS).write_text(json.dumps(entries, indent=1))
    verifier.close()
