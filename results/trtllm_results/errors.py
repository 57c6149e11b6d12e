"""Errors a user can cause. Each carries one sentence: what was wrong, where, what to do."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class ResultsError(ValueError):
    """Bad input to the store, the comparison or the gate; the command line prints it on one line and exits 3."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean batch_size?)`, for a sentence on a name that is not `known`; empty where none is near."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(dict.fromkeys(known)), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


class WriteError(ResultsError):
    """The disk or the folder did not take a file (full, read-only, gone); nothing half-written is left. Exits 1, or 3 where the
    name was a mistake."""

    def __init__(self, target: Path, reason: str, exit_code: int = 1) -> None:
        super().__init__(f"cannot write {target}: {reason}")
        self.reason, self.exit_code = reason, exit_code
