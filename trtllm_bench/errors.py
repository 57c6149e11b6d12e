"""The bench's own errors, and what exit code an error of any component means.

One rule for the whole command line: 0 done, 1 tried and failed, 2 inconclusive (gates only: `trtllm_results.gate.verdict.EXIT_CODES`),
3 usage or bad input. Each package has one base class for errors a user can cause (`XError(ValueError)`); those carry one sentence and end
in 3, unless the class says otherwise through an `exit_code` attribute. Everything else that is raised is either the machine's fault (disk,
permissions, memory: 1, one sentence) or ours (1, one sentence that asks for `--debug`). A signal ends in 128 + its number
(`interrupts.py`); so does output whose reader has gone (`| head`), which is no verdict of a gate's.
"""

from __future__ import annotations

import errno

FAILURE, USAGE, INTERRUPTED, CLOSED_PIPE = 1, 3, 130, 141


class BenchError(ValueError):
    """Bad input to the bench: one sentence that says what was wrong, where, and what to do."""

    exit_code = USAGE


class RunFailure(BenchError):
    """Good input, but the work could not be done."""

    exit_code = FAILURE


def user_errors() -> tuple[type[Exception], ...]:
    """Base classes of every component's user-facing errors; imported only once something has gone wrong."""
    from trtllm_engines.errors import EngineError
    from trtllm_kernels.errors import KernelError
    from trtllm_results.errors import ResultsError
    from trtllm_workloads.errors import WorkloadError

    return (BenchError, EngineError, KernelError, ResultsError, WorkloadError)


MOST_PATH = 300
"""Characters of a path that a sentence shows."""
MISTAKEN_PATHS = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""Errors of a path that no free space or permission would mend."""


def sentence_for(error: OSError) -> str:
    """An operating-system error as a sentence with its path, and what to do about the common ones."""
    where = f" ({str(error.filename)[:MOST_PATH]})" if error.filename else ""
    hint = {
        errno.ENOSPC: "; free some space, or write elsewhere with --out",
        errno.EACCES: "; it must be yours to read, and its folder to write to",
        errno.EROFS: "; choose a folder you may write to",
    }.get(error.errno or 0, "")
    return f"{error.strerror or error}{where}{hint}"


class LayoutError(BenchError):
    """A layout that this machine cannot run, as for want of GPUs; others may."""
