"""What a running sweep shows: a line for each finished cell, and on a terminal a live line below with the time left.

Lines scroll, so that a log keeps them and nothing flickers; only the last line is redrawn. The estimate scales the seconds per unit of
work seen so far (`spec.work_of`) to the work left, the latest cells counting most, since early cells of a new engine tell little. To make
an engine ready (build, load, capture, score) takes time of its own, which is counted for each engine to come.

The same is kept in the sweep's folder (`progress.json`), for a dashboard that follows it. It is written between measurements only: one
must not notice that it is watched.
"""

from __future__ import annotations

import contextlib
import json
import time

from rich.console import Console
from rich.live import Live
from rich.text import Text

from trtllm_bench.sweep.spec import GridPoint, SweepSpec, work_of
from trtllm_results.errors import ResultsError
from trtllm_results.record.row import Row
from trtllm_results.store.layout import PROGRESS
from trtllm_results.store.table import Store

RECENT = 0.5
"""Weight of the newest cell, or engine, in the running estimate of seconds per unit of work, or engine."""


class Estimate:
    """Seconds left, from the work done so far."""

    def __init__(self, total_work: float, engines: int = 0) -> None:
        """`engines`: how many are to be made ready."""
        self.left, self.engines = total_work, engines
        self._rate: float | None = None
        self._engine: float | None = None

    def ready(self, seconds: float | None) -> None:
        """An engine is ready for its cells; `seconds` None: it was not needed, or could not be made."""
        self.engines = max(0, self.engines - 1)
        if seconds is not None:
            self._engine = _recent(self._engine, seconds)

    def done(self, work: float, seconds: float | None) -> None:
        """`seconds` None: the work was skipped or failed, and says nothing of the speed."""
        self.left = max(0.0, self.left - work)
        if seconds is not None and work > 0:
            self._rate = _recent(self._rate, seconds / work)

    def seconds(self, elapsed: float = 0.0, work_done: float = 0.0) -> float | None:
        """`elapsed` seconds into a cell of which `work_done` is done, or into making an engine; None while nothing is known."""
        engines = (self._engine or 0.0) * self.engines
        if self._rate is not None:
            return max(0.0, engines + self._rate * self.left - elapsed)
        return engines + elapsed / work_done * (self.left - work_done) if work_done > 0 else None


def _recent(mean: float | None, value: float) -> float:
    return value if mean is None else RECENT * value + (1 - RECENT) * mean


class SweepView:
    """A `runner.Watcher` that writes to a terminal or a log. Use as a context manager."""

    def __init__(self, spec: SweepSpec, console: Console, store: Store | None = None) -> None:
        """`store`: where to keep the progress; None keeps none."""
        self._spec, self._console, self._store = spec, console, store
        points = spec.points
        self._total = len(points) * spec.repeats
        self._label_width = max(len(point.label) for point in points)
        engines = sum(any(not point.refused for point in one) for one in spec.engines())
        self._estimate = Estimate(spec.repeats * sum(work_of(point.spec) for point in points), engines)
        self._making: float | None = None
        """Since when the engine at hand is being made ready; None where it is."""
        self._count = 0
        self._now = ""
        self._requests = self._done = 0
        self._work = 0.0
        self._began = self._cell_began = time.perf_counter()
        self._live = Live(get_renderable=self._line, console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> SweepView:
        if self._live is not None:
            self._live.start()
        self._keep()
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._now = ""
        self._keep("ended" if error_type is None else "interrupted")

    def _keep(self, state: str = "running") -> None:
        if self._store is None:
            return
        left = self._estimate.seconds()
        content = {
            "state": state,
            "done": self._count,
            "total": self._total,
            "now": " ".join(self._now.split()),
            "requests": self._requests,
            "left_s": None if left is None else round(left, 1),
            "at": time.time(),
        }
        with contextlib.suppress(ResultsError):  # a full disk is met, and told, where results are written
            self._store.write(PROGRESS, lambda handle: handle.write(json.dumps(content).encode()))

    def preparing(self, engine: str) -> None:
        self._now, self._requests = f"{engine}: making the engine ready", 0
        if self._making is not None:
            self._estimate.ready(None)
        self._making = time.perf_counter()
        if self._live is None:
            self._print(Text(f"{engine}: making the engine ready"))
        self._keep()

    def stage(self, stage: str, done: int, total: int) -> None:
        """The engine being built or loaded; one line per stage in a log."""
        self._now, self._requests = f"{stage} {done}/{total}", 0
        if self._live is None and done == total:
            self._print(Text(f"  {stage}: {total} done"))

    def started(self, point: GridPoint, repeat: int, requests: int) -> None:
        self._now, self._requests, self._done = self._title(point, repeat), requests, 0
        self._work, self._cell_began = work_of(point.spec), time.perf_counter()
        if self._making is not None:
            self._estimate.ready(self._cell_began - self._making)
            self._making = None
        self._keep()

    def requests_done(self, done: int) -> None:
        self._done = done

    def finished(self, point: GridPoint, row: Row, seconds: float) -> None:
        self._count += 1
        self._requests = 0
        self._estimate.done(work_of(point.spec), seconds if row.status == "ok" else None)
        head = f"{self._counter()} {self._title(point, row.repeat)}  "
        if row.status == "ok":
            self._print(Text(self._line_of(head, row, seconds)))
        else:
            self._print(Text(head) + Text(f"{row.status}: {row.reason}", style="yellow" if row.status == "void" else "red"))
        for warning in row.warnings:
            self._print(Text(f"{' ' * (2 * len(str(self._total)) + 4)}{warning}", style="yellow"))
        self._keep()

    def skipped(self, point: GridPoint, repeat: int) -> None:
        self._count += 1
        self._estimate.done(work_of(point.spec), None)
        self._print(Text(f"{self._counter()} {self._title(point, repeat)}  measured before", style="dim"))

    def _line_of(self, head: str, row: Row, seconds: float) -> str:
        """As much as fits the console."""
        line = head + headline(row) + self._tail(seconds)
        for shorter in (self._tail(seconds), f"  ({seconds:.1f} s)", ""):
            if len(line) > self._console.width:
                line = head + headline(row, brief=True) + shorter
        return line

    def _title(self, point: GridPoint, repeat: int) -> str:
        suffix = f" #{repeat + 1}" if self._spec.repeats > 1 else ""
        return point.label.ljust(self._label_width) + suffix

    def _counter(self) -> str:
        width = len(str(self._total))
        return f"[{self._count:>{width}}/{self._total}]"

    def _tail(self, seconds: float) -> str:
        """`(4.1 s)`, and in a log also the time left."""
        left = self._estimate.seconds()
        if self._live is not None or left is None or self._count == self._total:
            return f"  ({seconds:.1f} s)"
        return f"  ({seconds:.1f} s, {duration(left)} left)"

    def _line(self) -> Text:
        now = time.perf_counter()
        left = self._estimate.seconds(0.0 if self._making is None else now - self._making)
        parts = [self._counter(), self._now]
        if self._requests:
            left = self._estimate.seconds(now - self._cell_began, self._work * self._done / self._requests)
            parts.append(f"{self._done}/{self._requests} requests")
        parts.append(f"{duration(now - self._began)} so far")
        parts.append("estimating time left" if left is None else f"about {duration(left)} left")
        line = Text("  ".join(parts), style="bold")
        line.truncate(self._console.width, overflow="ellipsis")
        return line

    def _print(self, line: Text) -> None:
        self._console.print(line, soft_wrap=self._live is None, highlight=False)


def headline(row: Row, brief: bool = False) -> str:
    """Output rate and, unless `brief`, time to first token."""
    figures = row.figures
    parts = [f"{figures.get('output_tokens_per_s', 0):>9,.1f} tok/s"]
    if "ttft_p50_ms" in figures and not brief:
        parts.append(f"TTFT {figures['ttft_p50_ms']:,.1f} ms")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
