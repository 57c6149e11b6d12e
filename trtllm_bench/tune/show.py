"""Tuning in the terminal: what it is doing, how long that will take, and what it found."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from trtllm_bench.tune.decide import Decision
from trtllm_bench.tune.run import Progress
from trtllm_dashboards.tables import Column, plain_console, show

COLUMNS = (
    Column("op", hoist=False, whole=True),
    Column("choice", hoist=False),
    Column("step", hoist=False),
    Column("m", "M", kind="number"),
    Column("default", unit="us", kind="number", places=2),
    Column("argmax_scratch", unit="us", kind="number", places=2),
    Column("gain", unit="%", kind="number", places=1),
    Column("tried", kind="number", places=0, priority=2),
    Column("dropped", kind="number", places=0, priority=3),
)
_LOG_EVERY_S = 15.0


@contextmanager
def tuning_progress() -> Iterator[Progress]:
    """A bar for each stage with the time it still takes; in a log, a line now and then. On standard error, as it is not a result."""
    console = plain_console(stderr=True)
    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Bars(*columns, console=console, disable=not console.is_terminal) as view:
        tasks: dict[str, TaskID] = {}
        began: dict[str, float] = {}
        said: dict[str, float] = {}

        def report(stage: str, done: int, total: int, note: str = "") -> None:
            if total < 0:
                console.print(note, style="yellow", soft_wrap=True)
                return
            now = time.monotonic()
            if stage not in tasks:
                tasks[stage] = view.add_task(stage, total=total, note="")
                began[stage] = said[stage] = now
            view.update(tasks[stage], completed=done, total=total, note=note)
            if not console.is_terminal and (done == total or now - said[stage] > _LOG_EVERY_S):
                said[stage] = now
                left = (now - began[stage]) / max(1, done) * (total - done)
                console.print(f"{stage}: {done} of {total}" + (f", about {left:.0f} s left" if done < total else ""), soft_wrap=True)

        yield report


def rows(decisions: Sequence[Decision]) -> list[dict[str, object]]:
    shown: list[dict[str, object]] = []
    for decision in decisions:
        for outcome in decision.outcomes:
            default, best = decision.times(outcome)
            shown.append(
                {
                    "op": decision.role.rpartition(".")[2],
                    "choice": decision.choice.name,
                    "step": outcome.race.case.label,
                    "m": outcome.race.case.shape.tokens,
                    "default": default.mean_us,
                    "argmax_scratch": best.mean_us,
                    "gain": 100 * (1 - best.mean_us / default.mean_us),
                    "tried": sum(timing is not None for timing in outcome.timings),
                    "dropped": len(outcome.dropped),
                }
            )
    return shown


def print_decisions(decisions: Sequence[Decision], title: str, console: Console) -> None:
    if decisions:
        show(rows(decisions), COLUMNS, title=title, console=console)
    for decision in decisions:
        if decision.winner:
            values = " ".join(f"{name}={value}" for name, value in decision.winner.items())
            console.print(f"{decision.role.rpartition('.')[2]}, {decision.choice.name}: {values}", style="green", soft_wrap=True)
