"""The errors a user of workloads can cause: a distribution, trace, dataset or specification that cannot be used, or a file that cannot be
written."""

from __future__ import annotations

import errno
from pathlib import Path

NO_PLACE = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOENT)
"""Errors of a path, not of the machine."""

SKIP_HINT = "leave such rows out with --skip-bad-rows, or skip_bad_rows = true in a workload file"


MOST_SHOWN = 40
"""Characters of a value in a sentence."""


def shown(value: object) -> str:
    """A value from outside for a sentence, cut where it is long; Python writes no whole number of more than 4,300 digits."""
    if isinstance(value, int) and abs(value) >= 10**MOST_SHOWN:
        return f"a number of more than {MOST_SHOWN} digits"
    text = str(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


class WorkloadError(ValueError):
    """One clear sentence: what was wrong, where, and what to do."""


class WriteError(WorkloadError):
    """The disk or the folder did not take a file; the old one is as it was. Exits 1, or 3 where the path was a mistake."""

    def __init__(self, path: Path, error: OSError) -> None:
        hint = "; a pipe needs a process that reads it" if error.errno == errno.ENXIO else ""
        super().__init__(f"cannot write {path}: {error.strerror or error}{hint}")
        self.exit_code = 3 if error.errno in NO_PLACE else 1
