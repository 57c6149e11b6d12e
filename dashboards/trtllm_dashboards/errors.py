"""What a user can get wrong when asking for a table, a figure or a page. The command line prints the sentence and exits with 3."""

from __future__ import annotations

from pathlib import Path

from trtllm_results.errors import ResultsError, WriteError


class DashboardError(ResultsError):
    """One sentence: what was wrong, where, what to do. A result error, since every figure and page is drawn from results."""


class OutputError(DashboardError):
    """The figure or page could be drawn but not written as asked."""


class NotWritten(OutputError, WriteError):
    """The disk or the folder did not take it."""

    def __init__(self, target: Path, error: WriteError) -> None:
        OutputError.__init__(self, f"cannot write {target}: {error.reason}")
        self.reason, self.exit_code = error.reason, error.exit_code
