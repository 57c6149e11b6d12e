"""`throughput` and `latency`: one cell, measured once, reported at length instead of in a table.

The two differ in how requests are sent (all at once or bounded, against one at a time) and in what is printed; everything else is here.
So is measuring again and again with the engine kept loaded (`follow`), which `gate run --keep-loaded` asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from trtllm_bench import interrupts
from trtllm_bench.measure.place import open_store
from trtllm_bench.measure.prepare import prepare
from trtllm_bench.measure.report import check_report, nvidia_report, print_report, write_json
from trtllm_bench.measure.rows import RowMaker, cell_of, keep
from trtllm_bench.measure.session import Measurement, OnRequests, open_session
from trtllm_bench.measure.workload import notes_of
from trtllm_bench.spec.measurement import EngineSpec, MeasurementSpec
from trtllm_bench.targets.registry import is_own
from trtllm_dashboards.tables import plain_console, sentence
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store


@dataclass(frozen=True)
class Single:
    """One measurement to make: `per_place` requests for each sequence in flight, at least `least`, where it was not said how many."""

    spec: MeasurementSpec
    least: int
    per_place: int
    streaming: bool
    """Whether the JSON report has token timings."""
    report_json: Path | None = None
    out: str | None = None


def run(single: Single) -> Row:
    """Measures, prints, and writes what was asked for. Raises the components' errors."""
    check_report(single.report_json)
    ((_, row),) = _measured(single, [single.report_json], plain_console())
    return row


def follow(single: Single, lines: Iterable[str]) -> None:
    """Measures once for each line, which names the report to write, and answers `measured <line>`; the engine stays loaded between them.

    Standard output carries the answers, so what is for people goes to standard error.
    """
    for path, _ in _measured(single, (Path(line.rstrip("\n")) for line in lines), plain_console(stderr=True)):
        print(f"measured {path}", flush=True)


def _measured(single: Single, reports: Iterable[Path | None], console: Console) -> Iterator[tuple[Path | None, Row]]:
    """One measurement for each of `reports`, all by one session."""
    spec, workload = prepare(single.spec, single.least, single.per_place)
    store = open_store(single.out) if single.out is not None else None  # before anything is measured, for one that cannot be made
    for note in notes_of(spec.workload, workload):
        sentence(console, f"note: {note}", "yellow")
    session = open_session(spec)
    try:
        if is_own(spec.target):
            console.print("making the engine ready", style="dim")
        identity = session.identity()
        cell = cell_of(spec, identity, workload)
        for report in reports:
            measurement = session.measure(workload, spec, _counter(console, len(workload)))
            row = RowMaker.here(spec).measured(spec, cell, 0, measurement)
            contents = None if report is None else _report(single, row, measurement, identity.engine or spec.engine)
            _keep_and_print(row, measurement, store, report, contents, console)
            yield report, row
    finally:
        session.close()


def _keep_and_print(
    row: Row, measurement: Measurement, store: Store | None, report: Path | None, contents: Mapping[str, Any] | None, console: Console
) -> None:
    """Writes what was measured, then prints it: a pipe may be closed by then, or a terminal gone."""
    written: list[str] = []
    with interrupts.keeping(lambda: f"the measurement is kept; {', '.join(written)}" if written else ""):
        if store is not None:
            keep(store, row, measurement)
            written.append(f"results: {store.place}")
        if report is not None and contents is not None:
            write_json(contents, report)
            written.append(f"report: {report}")
        print_report(row, console)
        if measurement.no_telemetry:
            console.print()
            sentence(console, measurement.no_telemetry, "dim")
        for line in ["", *written] if written else []:
            console.print(line, soft_wrap=True)
    if store is not None:
        store.finish()


def _report(single: Single, row: Row, measurement: Measurement, engine: EngineSpec) -> Mapping[str, Any]:
    known = {**asdict(engine), "model_path": engine.model}
    known["engine_dir"] = str(engine.engine_dir) if engine.engine_dir is not None else None
    return nvidia_report(row, measurement.log, known, single.streaming)


def _counter(console: Console, total: int) -> OnRequests:
    """Requests done, on one line that is redrawn; nothing in a log."""
    if not console.is_terminal:
        return lambda done: None

    def show(done: int) -> None:
        console.print(f"{done}/{total} requests", end="\r" if done < total else " " * 20 + "\r", style="dim")

    return show
