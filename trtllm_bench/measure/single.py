"""`throughput` and `latency`: one cell, measured once, reported at length instead of in a table.

The two differ in how requests are sent (all at once or bounded, against one at a time) and in what is printed; everything else is here.
So is measuring again and again with the engine kept loaded (`follow`), which `gate run --keep-loaded` asks for.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console

from trtllm_bench.errors import BenchError
from trtllm_bench.measure.report import nvidia_report, print_report, write_json
from trtllm_bench.measure.rows import RowMaker, cell_of, keep
from trtllm_bench.measure.session import Identity, Load, Measurement, OnRequests
from trtllm_bench.measure.spec import (
    EngineWish,
    WorkloadWish,
    check_target,
    longest,
    make_workload,
    mean_lengths,
    open_session,
    rate_of,
    runs_on_gpu,
    vocabulary_of,
)
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store
from trtllm_workloads.request import Workload


@dataclass(frozen=True)
class Single:
    """One measurement to make. `batch` is what the row calls the batch: the bound on requests in flight, 0 for none."""

    target: str
    engine: EngineWish
    workload: WorkloadWish
    load: Load
    streaming: bool
    report_json: Path | None = None
    out: Path | None = None


def run(single: Single) -> Row:
    """Measures, prints, and writes what was asked for. Raises the components' errors."""
    ((_, row),) = _measured(single, [single.report_json], Console(highlight=False))
    return row


def follow(single: Single, lines: Iterable[str]) -> None:
    """Measures once for each line, which names the report to write, and answers `measured <line>`; the engine stays loaded between them.

    Standard output carries the answers, so what is for people goes to standard error.
    """
    for path, _ in _measured(single, (Path(line.rstrip("\n")) for line in lines), Console(highlight=False, stderr=True)):
        print(f"measured {path}", flush=True)


def _measured(single: Single, reports: Iterable[Path | None], console: Console) -> Iterator[tuple[Path | None, Row]]:
    """One measurement for each of `reports`, all by one session."""
    wish = single.engine
    check_target(single.target, wish)
    workload = make_workload(single.workload, vocabulary_of(single.target, wish))
    asked = single.workload.requests or 0
    if len(workload) < asked:
        console.print(
            f"note: {single.workload.dataset} has {len(workload):,} of the {asked:,} requests asked for", style="yellow", soft_wrap=True
        )
    if wish.max_seq_len is None and wish.engine_dir is None:
        wish = replace(wish, max_seq_len=longest(workload))
        single = replace(single, engine=wish)
    session = open_session(single.target, wish)
    try:
        if single.target == "native":
            console.print("making the engine ready", style="dim")
        identity = session.identity()
        for report in reports:
            measurement = session.measure(workload, single.load, _counter(console, len(workload)))
            row = _row(single, identity, workload, measurement)
            print_report(row, console)
            if measurement.no_telemetry:
                console.print(f"\n{measurement.no_telemetry}", style="dim", soft_wrap=True)
            _write(replace(single, report_json=report), row, measurement, identity, console)
            yield report, row
    finally:
        session.close()


def _row(single: Single, identity: Identity, workload: Workload, measurement: Measurement) -> Row:
    wish = single.engine
    isl, osl = mean_lengths(workload)
    cell = cell_of(
        identity.model or wish.model or "",
        identity.precision or wish.precision or "",
        identity,
        workload,
        batch=single.load.concurrency,
        isl=isl,
        osl=osl,
        request_rate=rate_of(single.workload, workload),
        settings={
            "warmup": single.load.warmup,
            "warmup_seconds": single.load.warmup_s or None,
            "open_loop": single.load.open_loop or None,
            "burstiness": single.workload.burstiness if single.workload.burstiness != 1 else None,
            "arrivals": single.workload.arrivals,
            "slo_ms": single.load.slo_ms or None,
        },
    )
    environment = Environment.capture(use_gpu=runs_on_gpu(single.target, wish.device))
    maker = RowMaker(environment, uuid.uuid4().hex[:12], " ".join(["trtllm-bench", *sys.argv[1:]]))
    return maker.measured(cell, 0, measurement)


def _write(single: Single, row: Row, measurement: Measurement, identity: Identity, console: Console) -> None:
    wish = single.engine
    if single.report_json is not None:
        engine = {**asdict(wish), **identity.settings, "model_path": wish.model}
        engine["engine_dir"] = str(wish.engine_dir) if wish.engine_dir is not None else None
        write_json(nvidia_report(row, measurement.log, engine, single.streaming), single.report_json)
        console.print(f"\nreport: {single.report_json}", soft_wrap=True)
    if single.out is not None:
        store = Store(single.out)
        keep(store, row, measurement)
        console.print(f"results: {single.out}", soft_wrap=True)


def _counter(console: Console, total: int) -> OnRequests:
    """Requests done, on one line that is redrawn; nothing in a log."""
    if not console.is_terminal:
        return lambda done: None

    def show(done: int) -> None:
        console.print(f"{done}/{total} requests", end="\r" if done < total else " " * 20 + "\r", style="dim")

    return show


def case_of(isl: int | None, osl: int | None, dataset: str | None) -> tuple[int, int]:
    """Lengths, 128/128 unless given. Raises `BenchError` when a dataset gives them too."""
    if dataset is not None and (isl is not None or osl is not None):
        raise BenchError("--dataset and --isl/--osl are two sources of lengths; give one of them")
    return isl or 128, osl or 128
