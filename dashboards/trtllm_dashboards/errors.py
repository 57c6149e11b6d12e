"""What a user can get wrong when asking for a table, a figure or a page. The command line prints the sentence and exits with 3."""

from __future__ import annotations


class DashboardError(ValueError):
    """One sentence: what was wrong, where, what to do."""
