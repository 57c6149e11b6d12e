"""The errors a user of workloads can cause: a distribution, trace, dataset or specification that cannot be used, or a file that cannot be
written."""

from __future__ import annotations

import errno
from pathlib import Path

NO_PLACE = (errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ENOENT)
"""Errors of a path, not of the machine."""

SKIP_HINT = "leave such rows out with --skip-bad-rows, or skip_bad_rows = true in a workload file"


class WorkloadError(ValueError):
    """One clear sentence: what was wrong, where, and what to do."""


class WriteError(WorkloadError):
    """The disk or the folder did not take a file; the old one is as it was. Exits 1, or 3 where the path was a mistake."""

    def __init__(self, path: Path, error: OSError) -> None:
        super().__init__(f"cannot write {path}: {error.strerror or error}")
        self.exit_code = 3 if error.errno in NO_PLACE else 1
