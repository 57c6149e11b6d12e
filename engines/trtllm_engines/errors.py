"""The exceptions a user can cause here: their text is a single sentence saying what was wrong, where, and what to do."""

from __future__ import annotations

import errno

MOST_CHARACTERS = 900
"""Of a sentence: room for a path, a value and a command; not for what a damaged file holds."""
_KEPT_AT_END = 300


class EngineError(ValueError):
    """A model, weight file, build request or engine folder that cannot be used as asked.

    Whatever the text quotes, it is one line that any terminal can print, and it is no longer than a sentence.
    """

    def __init__(self, text: object) -> None:
        super().__init__(_sentence(str(text)))


class OutOfMemoryError(EngineError):
    """What was asked for is right, but this machine has not the memory: a result's status is then `oom`."""

    exit_code = 1


class NoSpaceError(EngineError):
    """What was asked for is right, but the disk is full."""

    exit_code = 1


class WriteError(EngineError):
    """What was asked for is right, but the disk or the folder's permissions do not allow it; a path that cannot be is bad input."""

    def __init__(self, what: str, error: OSError, hint: str) -> None:
        in_the_way = isinstance(error, FileExistsError) and error.filename  # the system says so of a file in a folder's place
        reason = f"{error.filename} is a file, and a folder is needed there" if in_the_way else error.strerror or error
        super().__init__(f"cannot write {what} ({reason}); {hint}")
        self.exit_code = 3 if error.errno in NO_PLACE else 1


NO_PLACE = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY)
"""Errors of a path, not of the machine."""


def _sentence(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        text = f"{text[: MOST_CHARACTERS - _KEPT_AT_END]} ... {text[-_KEPT_AT_END:]}"
    line = " ".join(text.split("\n"))
    return line if line.isprintable() else "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line)
