"""The sweep against a scripted session: what is measured, what is skipped, what a failure does, and that nothing finished is lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from trtllm_bench.measure.accuracy import Accuracy
from trtllm_bench.measure.rows import reason_of
from trtllm_bench.measure.session import Measurement, OnRequests, Session
from trtllm_bench.measure.workload import make_workload
from trtllm_bench.spec.measurement import MeasurementSpec
from trtllm_bench.sweep.runner import Sweep
from trtllm_bench.sweep.settle import settled
from trtllm_bench.sweep.spec import GridPoint, SweepSpec
from trtllm_bench.targets import native
from trtllm_bench.targets.registry import Identity
from trtllm_results.metrics.requests import RequestLog, figures
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row
from trtllm_results.store.table import Store
from trtllm_workloads.request import Workload

HERE = Environment(cpu="test")


class OutOfMemoryError(RuntimeError):
    """Named as torch names its own."""


def log_of(requests: int, osl: int) -> RequestLog:
    start = np.arange(requests, dtype=float)
    tokens = np.full(requests, osl)
    return RequestLog(start, start, start + 0.1, start + 0.1 * osl, tokens, tokens, np.ones(requests, dtype=bool))


@dataclass
class Scripted:
    """Measures at once; fails where told to. `calls` holds every (workload name, concurrency)."""

    fingerprint: str = "f0"
    failures: dict[tuple[int, int], BaseException] = field(default_factory=dict)
    void: str = ""
    calls: list[tuple[int, int, int]] = field(default_factory=list)
    arrivals: list[tuple[float, ...]] = field(default_factory=list)
    recovered: int = 0
    readied: int = 0
    closed: int = 0

    def identity(self) -> Identity:
        return Identity(target="scripted", engine_fingerprint=self.fingerprint, settings={"policy": "x"})

    def ready(self) -> None:
        self.readied += 1

    def measure(self, workload: Workload, spec: MeasurementSpec, on_requests: OnRequests) -> Measurement:
        osl = int(workload.output_tokens[0])
        self.calls.append((spec.load.concurrency, osl, len(workload)))
        self.arrivals.append(tuple(workload.arrival_s))
        failure = self.failures.get((spec.load.concurrency, osl))
        if failure is not None:
            raise failure
        on_requests(len(workload))
        log = log_of(len(workload), osl)
        return Measurement(figures(log), log, void=self.void)

    def recover(self) -> None:
        self.recovered += 1

    def close(self) -> None:
        self.closed += 1


@dataclass
class Watching:
    events: list[str] = field(default_factory=list)

    def preparing(self, engine: str) -> None:
        self.events.append(f"prepare {engine}")

    def started(self, point: GridPoint, repeat: int, requests: int) -> None:
        self.events.append(f"start {point.label} {repeat}")

    def requests_done(self, done: int) -> None:
        pass

    def finished(self, point: GridPoint, row: Row, seconds: float) -> None:
        self.events.append(f"{row.status} {point.label} {row.repeat}")

    def skipped(self, point: GridPoint, repeat: int) -> None:
        self.events.append(f"skip {point.label} {repeat}")


def spec_of(**grid: object) -> SweepSpec:
    return SweepSpec.of(**{"model": "m", "precision": "fp32", "batch_size": "1,2", "isl": 4, "osl": "2,3", **grid})


def workload_of(spec: MeasurementSpec) -> Workload:
    return make_workload(spec.workload, vocabulary=100)


def sweep_of(spec: SweepSpec, folder: Path, open_session: Callable[[MeasurementSpec], Scripted], watching: Watching) -> Sweep:
    return Sweep(list(spec.engines()), spec.repeats, Store(folder), open_session, workload_of, watching, lambda _: HERE)


def sweep(folder: Path, session: Scripted, **grid: object) -> tuple[Sweep, Watching]:
    spec, watching = spec_of(**grid), Watching()
    return sweep_of(spec, folder, lambda _: session, watching), watching


def test_every_cell_and_repeat_is_measured_and_stored(tmp_path: Path) -> None:
    session = Scripted()
    run, _ = sweep(tmp_path, session, repeats=2, precision="fp32,bf16")
    rows = run.run()
    assert len(rows) == 16
    assert {(r.cell.precision, r.cell.batch, r.cell.osl, r.repeat) for r in Store(tmp_path).rows()} == {
        (p, b, o, n) for p in ("fp32", "bf16") for b in (1, 2) for o in (2, 3) for n in (0, 1)
    }
    assert session.closed == 2
    assert session.calls[0] == (1, 2, 8)
    assert session.calls[1] == (2, 2, 8)


def test_a_duration_gives_every_rate_equally_long(tmp_path: Path) -> None:
    session = Scripted()
    runner, _ = sweep(tmp_path, session, batch_size=4, osl=2, request_rate="5,20", duration=10, goodput="e2e:1000")
    rows = runner.run()
    assert [requests for _, _, requests in session.calls] == [50, 200]
    assert [row.cell.settings["slo_ms"] for row in rows] == [{"e2e": 1000.0}] * 2, "other limits are another cell"
    with pytest.raises(ValueError, match="give one of them"):
        spec_of(request_rate=5, duration=10, num_requests=3)
    with pytest.raises(ValueError, match="needs a request rate"):
        spec_of(duration=10)
    assert {point.spec.workload.num_requests for point in spec_of(request_rate="1,5", duration=1.0).points} == {1, 5}
    with pytest.raises(ValueError, match=r"--duration 1 at 0\.01 requests/s is less than one request; give a longer one"):
        spec_of(request_rate=0.01, duration=1)


def test_a_cell_of_a_dataset_is_named_for_it() -> None:
    (case,) = SweepSpec.of(model="m", precision="fp8", batch_size=4, dataset="specs/chat.toml", request_rate=2).points
    assert case.label == "fp8 b4 chat 2/s"


def test_repeats_are_spread_over_the_cells(tmp_path: Path) -> None:
    run, watching = sweep(tmp_path, Scripted(), repeats=2, osl=2)
    run.run()
    starts = [event for event in watching.events if event.startswith("start")]
    assert starts == ["start fp32 b1 4/2 0", "start fp32 b2 4/2 0", "start fp32 b1 4/2 1", "start fp32 b2 4/2 1"]


def test_repeats_of_an_open_loop_have_arrivals_of_their_own_and_one_key(tmp_path: Path) -> None:
    first, again = Scripted(), Scripted()
    rows = sweep(tmp_path / "a", first, batch_size=4, osl=2, repeats=3, request_rate=5)[0].run()
    sweep(tmp_path / "b", again, batch_size=4, osl=2, repeats=3, request_rate=5)[0].run()
    assert len(set(first.arrivals)) == 3, "or their spread would leave out what the luck of arrivals adds"
    assert first.arrivals == again.arrivals, "two sweeps of one seed meet the same load"
    assert len({row.key for row in rows}) == 1
    single = Scripted()
    sweep(tmp_path / "c", single, batch_size=4, osl=2, request_rate=5)[0].run()
    assert single.arrivals == first.arrivals[:1]


def test_a_row_is_on_disk_before_the_next_cell_starts(tmp_path: Path) -> None:
    seen: list[int] = []

    class Counting(Scripted):
        def measure(self, workload: Workload, spec: MeasurementSpec, on_requests: OnRequests) -> Measurement:
            seen.append(len(Store(tmp_path).rows()))
            return super().measure(workload, spec, on_requests)

    sweep(tmp_path, Counting())[0].run()
    assert seen == [0, 1, 2, 3]


def test_out_of_memory_and_errors_are_rows_and_the_sweep_goes_on(tmp_path: Path) -> None:
    session = Scripted(failures={(2, 2): OutOfMemoryError("CUDA out of memory. Tried to allocate 3 GiB"), (1, 3): RuntimeError("broken")})
    rows = sweep(tmp_path, session)[0].run()
    assert [(r.cell.batch, r.cell.osl, r.status) for r in rows] == [(1, 2, "ok"), (2, 2, "oom"), (1, 3, "failed"), (2, 3, "ok")]
    assert rows[1].reason == "OutOfMemoryError: CUDA out of memory. Tried to allocate 3 GiB"
    assert rows[2].reason == "RuntimeError: broken"
    assert session.recovered == 2


def test_a_precision_whose_engine_cannot_be_made_fails_alone(tmp_path: Path) -> None:
    spec = spec_of(precision="bad,good", batch_size=1, osl=2, repeats=2)

    def open_session(asked: MeasurementSpec) -> Scripted:
        if asked.engine.precision == "bad":
            raise ValueError("cannot build")
        return Scripted()

    rows = sweep_of(spec, tmp_path, open_session, Watching()).run()
    assert [(r.cell.precision, r.status) for r in rows] == [("bad", "failed")] * 2 + [("good", "ok")] * 2
    assert len(Store(tmp_path).rows()) == 4


def test_resume_measures_only_what_is_missing(tmp_path: Path) -> None:
    first = Scripted(failures={(2, 3): KeyboardInterrupt()})
    run, _ = sweep(tmp_path, first)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert len(Store(tmp_path).rows()) == 3
    assert first.closed == 1

    second = Scripted()
    run, watching = sweep(tmp_path, second)
    rows = run.run()
    assert second.calls == [(2, 3, 8)]
    assert second.readied == 1
    assert [event.split()[0] for event in watching.events] == ["prepare", "skip", "skip", "skip", "start", "ok"]
    assert len(rows) == len(Store(tmp_path).rows()) == 4


def test_resume_tries_failed_cells_again_and_replaces_their_rows(tmp_path: Path) -> None:
    sweep(tmp_path, Scripted(failures={(1, 2): RuntimeError("once")}))[0].run()
    second = Scripted()
    sweep(tmp_path, second)[0].run()
    assert second.calls == [(1, 2, 8)]
    assert [row.status for row in Store(tmp_path).rows()] == ["ok"] * 4


@pytest.mark.parametrize(
    ("change", "grid"),
    [("fingerprint", {}), ("", {"warmup": 5}), ("", {"num_requests": 9})],
    ids=["another engine", "other settings", "other workload"],
)
def test_what_can_change_a_result_makes_finished_cells_stale(tmp_path: Path, change: str, grid: dict[str, object]) -> None:
    sweep(tmp_path, Scripted())[0].run()
    again = Scripted(fingerprint="f1" if change else "f0")
    sweep(tmp_path, again, **grid)[0].run()
    assert len(again.calls) == 4


def test_another_machine_makes_finished_cells_stale(tmp_path: Path) -> None:
    sweep(tmp_path, Scripted())[0].run()
    again = Scripted()
    run, _ = sweep(tmp_path, again)
    run.environment = lambda _: Environment(cpu="test", gpu="H100")
    run.run()
    assert len(again.calls) == 4


def test_layouts_follow_each_other_and_one_that_needs_more_gpus_than_there_are_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "gpus", lambda: [{"compute_capability": "9.0"}] * 2)
    session = Scripted()
    run, watching = sweep(tmp_path, session, model="tiny-llama", tp="1,4,2", osl=2)
    run.engines = settled(spec_of(model="tiny-llama", tp="1,4,2", osl=2))
    rows = run.run()
    assert [(row.cell.tp, row.cell.gpus, row.status) for row in rows] == [
        *[(1, 1, "ok")] * 2,
        *[(4, 4, "failed")] * 2,
        *[(2, 2, "ok")] * 2,
    ]
    assert rows[2].reason == "the engine takes 4 GPUs and this machine has 2; ask for a smaller --tp"
    assert [event for event in watching.events if event.startswith("prepare")] == ["prepare tp=1", "prepare tp=2"]
    assert session.closed == 2


def test_a_void_measurement_is_kept_but_measured_again(tmp_path: Path) -> None:
    rows = sweep(tmp_path, Scripted(void="the driver was late"), osl=2, batch_size=1)[0].run()
    assert (rows[0].status, rows[0].reason) == ("void", "the driver was late")
    again = Scripted()
    sweep(tmp_path, again, osl=2, batch_size=1)[0].run()
    assert len(again.calls) == 1


def test_requests_of_each_cell_are_kept_beside_the_rows(tmp_path: Path) -> None:
    rows = sweep(tmp_path, Scripted())[0].run()
    table = Store(tmp_path).read_side("requests", rows[0])
    assert table is not None
    assert table.num_rows == 8
    assert table.column("output_tokens").to_pylist() == [2] * 8


def test_reasons_name_foreign_errors_by_type_and_ours_by_their_sentence() -> None:
    from trtllm_bench.errors import BenchError

    assert reason_of(BenchError("too long")) == "too long"
    assert reason_of(KeyError("x")) == "KeyError: 'x'"
    assert len(reason_of(RuntimeError("a" * 1000))) < 350


def test_a_cell_too_long_for_the_model_is_a_row_and_the_others_run(tmp_path: Path) -> None:
    """llama-2-7b has 4,096 positions: its engine is sized for the cells that it can serve."""
    spec, session, watching = (
        SweepSpec.of(model="llama-2-7b", precision="fp32", batch_size="1,2", isl="8,5000", osl=4),
        Scripted(),
        Watching(),
    )
    engines = settled(spec)
    rows = Sweep(engines, 1, Store(tmp_path), lambda _: session, workload_of, watching, lambda _: HERE).run()
    assert [(row.cell.batch, row.cell.isl, row.status) for row in rows] == [
        (1, 5000, "failed"),
        (2, 5000, "failed"),
        (1, 8, "ok"),
        (2, 8, "ok"),
    ]
    assert (
        rows[0].reason
        == "the longest sequence has 5,004 tokens (prompt and output) but llama-2-7b takes 4,096; ask for shorter --isl or --osl"
    )
    assert {point.spec.engine.max_seq_len for points in engines for point in points} == {12}
    assert watching.events[0].startswith("failed"), "it is told before anything is built"


def test_nothing_is_built_where_every_cell_is_too_long(tmp_path: Path) -> None:
    def no_session(_: MeasurementSpec) -> Scripted:
        raise AssertionError

    spec = SweepSpec.of(model="llama-2-7b", precision="fp32", batch_size=1, isl="4096,5000", osl=4)
    rows = Sweep(settled(spec), 2, Store(tmp_path), no_session, workload_of, Watching(), lambda _: HERE).run()
    assert [(row.cell.isl, row.repeat, row.status) for row in rows] == [(isl, n, "failed") for isl in (4096, 5000) for n in (0, 1)]


def test_a_maximum_that_was_asked_for_bounds_the_cells_too() -> None:
    (points,) = settled(SweepSpec.of(model="tiny-llama", precision="fp32", batch_size=1, isl="8,60", osl=4, max_seq_len=32))
    assert [bool(point.refused) for point in points] == [False, True]
    assert points[0].spec.engine.max_seq_len == 32


# --- accuracy beside speed ---


def scored(
    folder: Path, session: Callable[[MeasurementSpec], Scripted], answers: list[Accuracy], **grid: object
) -> tuple[list[Row], list[int]]:
    """A sweep whose engines score `answers` in turn; also after how many measured cells each was asked."""
    run = sweep_of(spec_of(**grid), folder, session, Watching())
    asked: list[int] = []

    def measure(_: Session) -> Accuracy:
        asked.append(len(Store(folder).rows()))
        return answers.pop(0)

    run.accuracy, run.accuracy_asked = measure, {"text": "t.txt"}
    return run.run(), asked


def test_accuracy_is_measured_once_an_engine_and_stands_in_every_row(tmp_path: Path) -> None:
    answers = [Accuracy({"perplexity": value}, {"text": "t.txt", "against": "x"}) for value in (10.0, 11.0)]
    rows, asked = scored(
        tmp_path, lambda spec: Scripted(fingerprint=str(spec.engine.precision)), list(answers), precision="fp32,bf16", repeats=2
    )
    assert asked == [0, 8], "before the first cell of each engine"
    assert {(row.cell.precision, row.figures["perplexity"]) for row in rows} == {("fp32", 10.0), ("bf16", 11.0)}
    assert all(row.extra["accuracy"] == {"text": "t.txt", "against": "x"} for row in Store(tmp_path).rows())
    assert all(row.figures["output_tokens_per_s"] > 0 for row in rows)


def test_a_resumed_sweep_takes_accuracy_from_the_rows_there_are(tmp_path: Path) -> None:
    session = Scripted(failures={(2, 3): KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        scored(tmp_path, lambda _: session, [Accuracy({"perplexity": 10.0}, {"text": "t.txt"})])
    rows, asked = scored(tmp_path, lambda _: Scripted(), [])
    assert asked == []
    assert [row.figures["perplexity"] for row in rows] == [10.0] * 4
    rows, asked = scored(tmp_path / "other", lambda _: Scripted(fingerprint="f1"), [Accuracy({"perplexity": 12.0}, {"text": "t.txt"})])
    assert asked == [0]


def test_an_engine_that_cannot_be_scored_is_timed_all_the_same(tmp_path: Path) -> None:
    details = {"text": "t.txt", "failed": "a window has 9 tokens and the engine takes 6"}
    rows, asked = scored(tmp_path, lambda _: Scripted(), [Accuracy({}, details)])
    assert asked == [0]
    assert {row.status for row in rows} == {"ok"}
    assert all(row.extra["accuracy"]["failed"].startswith("a window has 9 tokens") and not row.warnings for row in rows)
