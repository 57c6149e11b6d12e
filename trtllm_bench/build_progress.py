"""An engine build's progress: a bar for each stage on a terminal, a line for each in a log. On standard error, as it is no result.

In a log a stage's line waits until the next stage begins or all is done, so that an error stands alone with what led up to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from trtllm_dashboards.tables import plain_console
from trtllm_engines.engine.build import Progress as Report


@contextmanager
def build_progress() -> Iterator[Report]:
    """What to hand to `trtllm_engines.engine.build.build(progress=...)`."""
    console = plain_console(stderr=True)
    columns = (TextColumn("{task.description:<16}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as view:
        tasks: dict[str, TaskID] = {}
        waiting = ""

        def report(stage: str, done: int, total: int) -> None:
            nonlocal waiting
            if waiting and not waiting.startswith(f"{stage}: "):
                console.print(waiting)
                waiting = ""
            if stage not in tasks:
                tasks[stage] = view.add_task(stage, total=total)
            view.update(tasks[stage], completed=done, total=total)
            if done == total and not console.is_terminal:
                waiting = f"{stage}: {total} done"

        yield report
        if waiting:
            console.print(waiting)
