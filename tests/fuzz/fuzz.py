"""One case: a valid file, damaged, read."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from random import Random

from guard import fault_of
from kinds import KINDS


@cache
def _folder(name: str) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuzz-")


@cache
def _valid(name: str) -> tuple[Path, bytes, object]:
    path, read = KINDS[name].prepare(Path(_folder(name).name))
    return path, path.read_bytes(), read


def try_case(name: str, chance: Random) -> tuple[str, bytes]:
    """What went wrong, empty for nothing, and the file's content."""
    kind = KINDS[name]
    path, valid, read = _valid(name)
    content = kind.damage(chance, valid)
    everything = {one: one.read_bytes() for one in path.parent.rglob("*") if one.is_file() and one != path}
    try:
        path.write_bytes(content)
        return fault_of(read, kind.refusals), content  # type: ignore[arg-type]
    finally:
        path.write_bytes(valid)
        for one, earlier in everything.items():
            if not one.exists() or one.read_bytes() != earlier:
                one.write_bytes(earlier)
