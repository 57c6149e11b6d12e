"""Errors a user can cause. Each carries one sentence: what was wrong, where, what to do."""

from __future__ import annotations


class ResultsError(ValueError):
    """Bad input to the store, the comparison or the gate; the command line prints it on one line and exits 3."""
