"""Errors a user can cause. Each carries one sentence: what was wrong, where, what to do."""

from __future__ import annotations


class ResultsError(ValueError):
    """Bad input to the store, the comparison or the gate; the command line prints it on one line and exits 3."""


class WriteError(ResultsError):
    """The disk or the folder did not take a file (full, read-only, gone); nothing half-written is left. Exits 1."""

    exit_code = 1
