"""A sweep over tensor parallelism with ranks as processes: a rank that dies takes its cell with it, and the next one has fresh ranks."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from trtllm_bench.__main__ import main
from trtllm_engines.runtime.batch import StepBatch
from trtllm_engines.runtime.rank_processes import RankProcesses, RemoteHandle
from trtllm_results.store.table import Store


@pytest.mark.usefixtures("own_cache")
def test_a_rank_that_dies_ends_its_cell_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    launch, started = RankProcesses.launch, []

    def killing(ranks: RankProcesses, batch: StepBatch) -> RemoteHandle:
        if not started:
            os.kill(ranks.ring.processes()[1], signal.SIGKILL)
        if ranks not in started:
            started.append(ranks)
        return launch(ranks, batch)

    monkeypatch.setattr(RankProcesses, "launch", killing)
    grid = ["--model", "tiny-llama", "--precision", "fp32", "--device", "cpu", "--tp", "1,2", "--concurrency", "1,2"]
    assert main(["sweep", *grid, "--isl", "8", "--osl", "4", "--max-lag-ms", "10000", "--out", str(tmp_path / "store")]) == 1
    rows = Store(tmp_path / "store").rows()
    assert [(row.cell.tp, row.cell.batch, row.status) for row in rows] == [(1, 1, "ok"), (1, 2, "ok"), (2, 1, "failed"), (2, 2, "ok")]
    assert "rank 1" in rows[2].reason
    assert "ended without a word" in rows[2].reason
    assert len(started) == 2
    assert rows[3].figures["completed_requests"] == rows[1].figures["completed_requests"]
    shown = capsys.readouterr().out
    assert "the same load on more GPUs" in shown
    assert "tp2" in shown
