"""Copies of an engine behind one queue: every request is answered once, steps are pooled, and one that dies ends the run."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import refused, run
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_bench.errors import LayoutError
from trtllm_bench.load.driver import Drive, run_load
from trtllm_bench.load.target import RequestOutcome
from trtllm_bench.measure.prepare import sized
from trtllm_bench.spec.measurement import EngineSpec, LoadSpec, MeasurementSpec
from trtllm_bench.sweep.settle import settled
from trtllm_bench.sweep.spec import SweepSpec
from trtllm_bench.targets import native, native_engine
from trtllm_bench.targets.native_engine import OpenEngine, pooled_figures, pooled_steps
from trtllm_bench.targets.native_target import NativeTarget
from trtllm_engines import memory
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.batch import StepBatch, StepOutput
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.scheduler import SchedulerConfig
from trtllm_engines.runtime.step_log import STEP_DTYPE
from trtllm_results.store.table import Store
from trtllm_workloads.request import RequestSpec

PLACES = 4


@dataclass(frozen=True)
class Done:
    output: StepOutput

    def done(self) -> bool:
        return True

    def result(self) -> StepOutput:
        return self.output


class Runner:
    """Samples token 1; fails at step `dies_at`."""

    def __init__(self, dies_at: int = -1) -> None:
        self.dies_at, self.steps, self.sequences = dies_at, 0, 0

    def launch(self, batch: StepBatch) -> Done:
        if self.steps == self.dies_at:
            raise EngineError("the process of rank 0 ended without a word")
        self.steps += 1
        self.sequences = max(self.sequences, batch.num_seqs)
        return Done(StepOutput(np.ones(int(batch.sampled.sum()), np.int32)))


def loops_of(runners: list[Runner]) -> list[EngineLoop]:
    config = SchedulerConfig(PLACES, 256, 64, 16, 64)
    return [EngineLoop(runner, config, vocab_size=10, overlap=False) for runner in runners]


def requests_of(lengths: list[tuple[int, int]]) -> list[RequestSpec]:
    return [RequestSpec(number, np.ones(prompt, np.int32), None, prompt, output, 0.0) for number, (prompt, output) in enumerate(lengths)]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.lists(st.tuples(st.integers(1, 30), st.integers(1, 20)), min_size=1, max_size=60))
def test_every_request_is_answered_once_and_none_waits_while_another_replica_has_a_place(
    replicas: int, lengths: list[tuple[int, int]]
) -> None:
    runners = [Runner() for _ in range(replicas)]
    loops = loops_of(runners)
    target = NativeTarget(loops)
    result = run_load(requests_of(lengths), target, Drive(concurrency=replicas * PLACES))
    assert result.log.ok.all()
    assert result.log.output_tokens.tolist() == [output for _, output in lengths]
    assert all((loop.log.rows()["waiting"] == 0).all() for loop in loops)
    assert target._dispatcher.requests == target._dispatcher.tokens == [0] * replicas


def test_a_replica_that_dies_ends_the_run_with_its_reason() -> None:
    runners = [Runner(), Runner(dies_at=3)]
    target, delivered = NativeTarget(loops_of(runners)), list[RequestOutcome]()
    done = threading.Semaphore(0)

    def deliver(outcome: RequestOutcome) -> None:
        delivered.append(outcome)
        done.release()

    target.start(deliver)
    requests = requests_of([(3, 30)] * 40)
    for request in requests:
        target.submit(request, time.perf_counter())
    for _ in requests:
        assert done.acquire(timeout=20)
    with pytest.raises(EngineError, match=r"^replica 2 of 2: .*the process of rank 0 ended without a word"):
        target.stop()
    assert sorted(outcome.id for outcome in delivered) == list(range(40))
    assert sum("without a word" in outcome.error for outcome in delivered) > 0
    assert all(outcome.error in ("", "another replica stopped") or "without a word" in outcome.error for outcome in delivered)


def test_figures_of_steps_are_those_of_all_replicas() -> None:
    one, other = np.zeros(2, STEP_DTYPE), np.zeros(1, STEP_DTYPE)
    one["launched_s"], one["done_s"], one["decode_tokens"], one["preemptions"] = (0.0, 1.0), (1.0, 2.0), (2, 4), (1, 3)
    other["launched_s"], other["done_s"], other["decode_tokens"], other["kv_pages_used"] = 0.5, 1.5, 6, 5
    figures = pooled_figures([one, other], pages=10)
    assert figures["steps"] == 3
    assert figures["step_mean_ms"] == pytest.approx(1000)
    assert figures["decode_tokens_per_step_mean"] == 4
    assert figures["kv_used_peak_ratio"] == 0.5
    assert figures["preemptions"] == 2
    pooled = pooled_steps([one, other])
    assert pooled["replica"].tolist() == [0, 1, 0]
    assert pooled["done_s"].tolist() == [1.0, 1.5, 2.0]
    assert "replica" not in (pooled_steps([one]).dtype.names or ())


def test_replicas_share_the_sequences() -> None:
    assert sized(EngineSpec(replicas=2), 65, 128).max_batch_size == 33
    assert MeasurementSpec(engine=EngineSpec(replicas=2, max_batch_size=8)).places == 16
    assert MeasurementSpec(engine=EngineSpec(replicas=2, max_batch_size=8), load=LoadSpec(concurrency=5)).places == 5


@pytest.mark.usefixtures("own_cache")
def test_two_replicas_on_the_cpu_make_a_row_and_a_killed_one_its_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    serve = OpenEngine.serve

    def kill_one(self: OpenEngine, workload: object) -> NativeTarget:
        if (tmp_path / "results.parquet").exists():  # the first cell has ended
            os.kill(self.replicas[1]._runner.ring.processes()[0], signal.SIGKILL)  # type: ignore[attr-defined]
        return serve(self, workload)  # type: ignore[arg-type]

    monkeypatch.setattr(OpenEngine, "serve", kill_one)
    shape = ["--isl", 16, "--osl", 8, "--num-requests", 12, "--warmup", 2, "--device", "cpu", "--max-lag-ms", 1000]
    grid = ["--model", "tiny-llama", "--precision", "fp32", *shape, "--concurrency", "6,4", "--replicas", 2]
    run(capsys, "sweep", *grid, "--out", tmp_path)
    row, killed = Store(tmp_path).rows()
    assert row.status == "ok", row.reason
    assert (row.cell.replicas, row.cell.gpus, row.cell.batch) == (2, 2, 6)
    assert row.cell.settings["max_batch_size"] == 3
    assert row.figures["output_tokens"] == 12 * 8
    steps = Store(tmp_path).read_side("steps", row)
    assert steps is not None
    assert sum(steps.column("context_tokens").to_pylist()) == 12 * 16
    assert set(steps.column("replica").to_pylist()) == {0, 1}
    assert steps.num_rows == row.figures["steps"]
    assert (killed.status, killed.cell.batch) == ("failed", 4)
    assert "replica 2 of 2: " in killed.reason
    assert "ended without a word" in killed.reason


def test_more_gpus_than_there_are_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "gpus", lambda: [{"compute_capability": "9.0"}] * 2)
    monkeypatch.setattr(native_engine, "device_of", native.device_of)
    asked = ["throughput", "--model", "tiny-llama", "--precision", "bf16", "--concurrency", 4]
    assert "2 replicas of 2 GPUs each take 4 GPUs and this machine has 2" in refused(capsys, *asked, "--replicas", 2, "--tp", 2)
    assert "the engine takes 3 GPUs and this machine has 2; ask for a smaller --replicas" in refused(capsys, *asked, "--replicas", 3)
    assert "the engine takes 4 GPUs and this machine has 2; ask for a smaller --tp" in refused(capsys, *asked, "--tp", 4)


def test_more_processes_than_memory_holds_are_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "host_free_bytes", lambda: int(4e9))
    asked = ["throughput", "--model", "tiny-llama", "--precision", "fp32", "--device", "cpu", "--concurrency", 4]
    said = refused(capsys, *asked, "--replicas", 1000)
    assert "the engine takes 1000 processes of at least 350 MB each (350 GB) and this machine has 4 GB free" in said
    assert "ask for a smaller --replicas" in said
    with pytest.raises(LayoutError, match="ask for a smaller --tp or --pp"):
        native.check(MeasurementSpec(engine=EngineSpec(model="tiny-llama", precision="fp32", device="cpu", tp=8, pp=4)))


@pytest.mark.usefixtures("own_cache")
def test_an_engine_of_another_layout_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "one.engine"
    ranges = ["--max-batch-size", "4", "--max-num-tokens", "64", "--max-seq-len", "64"]
    run(capsys, "build", "--model", "tiny-llama", "--precision", "fp32", "--arch", "cpu", *ranges, "--out", folder)
    said = refused(capsys, "throughput", "--engine-dir", folder, "--device", "cpu", "--tp", 2, "--concurrency", 2)
    assert "was built for --tp 1, not 2" in said


@pytest.mark.usefixtures("own_cache")
def test_a_pipeline_on_the_cpu_makes_a_row(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shape = ["--isl", 16, "--osl", 8, "--num-requests", 8, "--warmup", 2, "--device", "cpu", "--max-lag-ms", 1000]
    arguments = ["--model", "tiny-llama", "--precision", "fp32", *shape, "--concurrency", 4, "--pp", 2, "--out", tmp_path]
    code, _, err = run(capsys, "throughput", *arguments)
    assert code == 0, err
    row = Store(tmp_path).rows()[0]
    assert (row.cell.pp, row.cell.gpus) == (2, 2)
    assert row.figures["output_tokens"] == 8 * 8


def test_a_pipeline_of_more_gpus_than_there_are_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(native, "gpus", lambda: [{"compute_capability": "9.0"}] * 2)
    asked = ["throughput", "--model", "tiny-llama", "--precision", "bf16", "--concurrency", 4, "--pp", 2]
    assert "the engine takes 4 GPUs and this machine has 2; ask for a smaller --tp or --pp" in refused(capsys, *asked, "--tp", 2)
    hosts = ["--nnodes", 2, "--rdzv-endpoint", "127.0.0.1:29400"]
    assert "the engine takes 4 GPUs and this machine has 2" in refused(capsys, *asked, "--tp", 4, *hosts)
    folder = tmp_path / "one.engine"
    ranges = ["--max-batch-size", "4", "--max-num-tokens", "64", "--max-seq-len", "64"]
    run(capsys, "build", "--model", "tiny-llama", "--precision", "fp32", "--arch", "cpu", *ranges, "--pp", 2, "--out", folder)
    named = ["throughput", "--engine-dir", folder, "--concurrency", 4, *hosts]
    assert f"{folder} was built for --nnodes 1, not 2; give --nnodes 1, or build another engine" in refused(capsys, *named)


class Closable:
    """An engine as far as closing it goes; one of two cannot be."""

    def __init__(self, dead: bool) -> None:
        self.dead, self.itself = dead, self  # only the collector frees it

    def close(self) -> None:
        if self.dead:
            raise EngineError("its ranks have died")


def test_the_gpu_is_emptied_once_nothing_refers_to_the_closed_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that is freed later stays with the process, and the next layout's ranks find it taken."""
    target = OpenEngine(EngineSpec(model="tiny-llama", device="cpu"))
    target.gpus = 2
    target._replicas = [Closable(False), Closable(True)]  # type: ignore[list-item]
    seen = [weakref.ref(one) for one in target._replicas]
    left: list[list[object]] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: left.append([ref() for ref in seen]))
    target.close()
    assert left == [[None, None]]


def test_a_sweep_leaves_out_the_layouts_that_this_machine_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "gpus", lambda: [{"compute_capability": "9.0"}])
    grid = SweepSpec.of(model="tiny-llama", precision="bf16", tp="1,2", isl=8, osl=4, concurrency=2)
    alone, pair = settled(grid)
    assert alone[0].refused == ""
    assert pair[0].refused == "the engine takes 2 GPUs and this machine has 1; ask for a smaller --tp"
    with pytest.raises(LayoutError, match="this machine has 1"):
        settled(SweepSpec.of(model="tiny-llama", precision="bf16", tp="2,4", isl=8, osl=4, concurrency=2))
