"""The one error a user of workloads can cause: a distribution, trace, dataset or specification that cannot be used."""

from __future__ import annotations

SKIP_HINT = "leave such rows out with --skip-bad-rows, or skip_bad_rows = true in a workload file"


class WorkloadError(ValueError):
    """One clear sentence: what was wrong, where, and what to do."""
