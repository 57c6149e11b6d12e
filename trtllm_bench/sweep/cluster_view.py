"""What a sweep over a cluster shows: a line for each finished cell of any job, and on a terminal a live table of the jobs below."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trtllm_bench.sweep.jobs import JobPart
from trtllm_bench.sweep.progress import duration, headline
from trtllm_results.record.row import Row

FINISHED_BEFORE = "measured before"


@dataclass
class JobLine:
    """What is known of one job."""

    cells: int
    done: int = 0
    job_id: str = ""
    state: str = FINISHED_BEFORE
    began: float = field(default_factory=time.monotonic)
    last: str = ""


class ClusterView:
    """A `cluster.View` that writes to a terminal or a log."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._jobs: dict[str, JobLine] = {}
        self._width = 0

    @contextlib.contextmanager
    def showing(self, parts: Sequence[JobPart]) -> Iterator[None]:
        """Counts cells that were measured before as done."""
        for part in parts:
            rows = {(row.key, row.repeat) for row in part.rows() if row.status == "ok"}
            self._jobs[part.name] = JobLine(part.cells, len(rows), state="waiting" if len(rows) < part.cells else FINISHED_BEFORE)
        self._width = max(map(len, self._jobs))
        if not self._console.is_terminal:
            yield
            return
        with Live(get_renderable=self.table, console=self._console, refresh_per_second=2, transient=True):
            yield

    def submitted(self, part: JobPart, job_id: str) -> None:
        line = self._jobs[part.name]
        line.job_id, line.began = job_id, time.monotonic()
        self.state(part, "submitted")

    def state(self, part: JobPart, state: str) -> None:
        line, state = self._jobs[part.name], state.lower()
        if state not in (line.state, "unknown"):
            line.state = state
            if not self._console.is_terminal:
                self._print(f"{part.name:<{self._width}}  job {line.job_id} {state}", "dim")

    def row(self, part: JobPart, row: Row) -> None:
        line = self._jobs[part.name]
        line.done += 1
        text = headline(row) if row.status == "ok" else f"{row.status}: {row.reason}"
        line.last = headline(row, brief=True).strip() if row.status == "ok" else row.status
        suffix = f" #{row.repeat + 1}" if part.spec.repeats > 1 else ""
        self._print(f"{self._counter()} {row.label}{suffix}  {text.strip()}", "" if row.status == "ok" else "yellow")

    def ended(self, part: JobPart, reason: str) -> None:
        line = self._jobs[part.name]
        line.state = "failed" if reason else "done"
        took = duration(time.monotonic() - line.began)
        self._print(f"{part.name:<{self._width}}  {f'failed: {reason}' if reason else f'done in {took}'}", "red" if reason else "dim")

    def table(self) -> Table:
        """One line a job, as wide as the terminal."""
        table = Table(box=None, pad_edge=False, show_header=False)
        for justify in ("left", "left", "left", "right", "right"):
            table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
        for name, job in self._jobs.items():
            table.add_row(name, job.job_id, job.state, f"{job.done}/{job.cells}", job.last)
        return table

    def _counter(self) -> str:
        done, total = (sum(getattr(job, name) for job in self._jobs.values()) for name in ("done", "cells"))
        return f"[{done:>{len(str(total))}}/{total}]"

    def _print(self, line: str, style: str) -> None:
        self._console.print(Text(line, style=style), soft_wrap=True, highlight=False)
