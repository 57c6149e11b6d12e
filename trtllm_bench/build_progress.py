"""An engine build's progress: a bar for each stage on a terminal; in a log a line for each that took long, so that a sentence about a
mistake stands alone. On standard error, as it is not a result.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from trtllm_dashboards.tables import plain_console
from trtllm_engines.engine.build import Progress as Report

TOLD_AFTER_S = 20.0


@contextmanager
def build_progress() -> Iterator[Report]:
    """What to hand to `trtllm_engines.engine.build.build(progress=...)`."""
    console = plain_console(stderr=True)
    columns = (TextColumn("{task.description:<16}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as view:
        tasks: dict[str, TaskID] = {}
        began: dict[str, float] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage], began[stage] = view.add_task(stage, total=total), monotonic()
            view.update(tasks[stage], completed=done, total=total)
            if done == total and not console.is_terminal and monotonic() - began[stage] > TOLD_AFTER_S:
                console.print(f"{stage}: {total} done")

        yield report
