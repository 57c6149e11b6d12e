"""A real sweep in a process of its own, killed and interrupted: what was finished stays, and resuming measures only the rest."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from trtllm_results.store.table import Store, read_rows

GRID = ["--batch-size", "1,2,4", "--isl", "8,16", "--num-requests", "8", "--warmup", "0", "--max-lag-ms", "1000"]
FAKE = ["--target", "fake", "--osl", "16"]
NATIVE = ["--model", "tiny-llama", "--precision", "fp32", "--device", "cpu", "--osl", "8"]
CELLS = 6


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trtllm_bench", "sweep", "--out", str(folder), *more]
    environment = {**os.environ, "COLUMNS": "80", "TRTLLM_BENCH_CACHE": str(folder / "cache")}
    # a shell's background jobs ignore Ctrl-C and hand that down; what is tested is a sweep in the foreground
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=listen)


def wait_for_rows(folder: Path, wanted: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (folder / "results.parquet").exists() and len(Store(folder).rows()) >= wanted:
            return
        time.sleep(0.02)
    raise AssertionError(f"no {wanted} rows within 60 s")


def resume_and_check(folder: Path, kept: int) -> None:
    before = {row.row_id for row in Store(folder).rows()}
    assert kept <= len(before) < CELLS
    resumed = start(folder, "--resume")
    out, err = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, err
    assert out.count("measured before") == len(before)
    rows = Store(folder).rows()
    assert len(rows) == CELLS
    assert before <= {row.row_id for row in rows}
    assert len({row.key for row in rows}) == CELLS


def test_kill_9_of_our_engine_loses_no_finished_cell(tmp_path: Path) -> None:
    process = start(tmp_path, *GRID, *NATIVE)
    wait_for_rows(tmp_path, 2)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert all(row.status == "ok" for row in read_rows(tmp_path / "results.json"))
    resume_and_check(tmp_path, 2)


def test_ctrl_c_keeps_finished_cells_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = start(tmp_path, *GRID, *FAKE)
    wait_for_rows(tmp_path, 1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert f"trtllm-bench sweep --resume --out {tmp_path}" in err
    resume_and_check(tmp_path, 1)
