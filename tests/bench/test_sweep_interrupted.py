"""A real sweep in a process of its own, killed and interrupted: what was finished stays, and resuming measures only the rest."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, run

from trtllm_results.store import files
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


def resume_and_check(folder: Path, kept: int, resume: Callable[[], tuple[int, str, str]]) -> None:
    before = {row.row_id for row in Store(folder).rows()}
    assert kept <= len(before) < CELLS
    code, out, err = resume()
    assert code == 0, err
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

    def in_a_process() -> tuple[int, str, str]:
        resumed = start(tmp_path, "--resume")
        out, err = resumed.communicate(timeout=120)
        return resumed.returncode, out, err

    resume_and_check(tmp_path, 2, in_a_process)


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM"), (signal.SIGHUP, 129, "SIGHUP")]
)
def test_a_signal_keeps_finished_cells_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals, code: int, name: str
) -> None:
    process = start(tmp_path, *GRID, *FAKE)
    wait_for_rows(tmp_path, 1)
    process.send_signal(number)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    kept = len(Store(tmp_path).rows())
    said = f"{kept} finished measurement{' is' if kept == 1 else 's are'} kept; go on with: trtllm-bench sweep --resume --out {tmp_path}"
    assert err.splitlines() == [f"trtllm-bench: stopped by {name}; {said}"]
    resume_and_check(tmp_path, 1, lambda: run(capsys, "sweep", "--resume", "--out", tmp_path))


def test_a_signal_that_the_process_was_started_to_ignore_stays_ignored(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trtllm_bench", "sweep", "--out", str(tmp_path), *GRID, *FAKE]
    process = subprocess.Popen(command, preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_IGN), stdout=subprocess.DEVNULL)
    wait_for_rows(tmp_path, 1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=120) == 0
    assert len(Store(tmp_path).rows()) == CELLS


STAGES = {
    "importing": """
import trtllm_bench.app
stop()
""",
    "swallowed": """
import time
class Deaf:
    def __del__(self): stop()
deaf = Deaf()
del deaf
time.sleep(30)
""",
    "made into an error": """
try: stop()
except BaseException: raise ImportError("numpy could not be imported")
""",
    "in an event loop": """
import asyncio
async def go():
    stop()
    await asyncio.sleep(30)
asyncio.run(go())
""",
    "in a finally": """
try: stop()
finally: print("cleaned up", flush=True)
""",
    "child": """
import subprocess
child = subprocess.Popen(["sleep", "300"], start_new_session=True)
print(child.pid, flush=True)
stop()
child.wait()
""",
    "stubborn child": """
import subprocess
script = 'trap "" TERM; echo; while :; do sleep 1; done'
child = subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
stop()
child.wait()
""",
    "forked child": """
import os, time
if os.fork() == 0: time.sleep(300)
stop()
os.wait()
""",
    "child that has just been forked": """
import os, signal, time
ours, (ready, told) = signal.getsignal(signal.SIGTERM), os.pipe()
if os.fork() == 0:
    signal.signal(signal.SIGTERM, ours)
    os.write(told, b"!")
    time.sleep(300)
os.read(ready, 1)
stop()
os.wait()
""",
    "pool": """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
    tasks = [pool.submit(time.sleep, 300) for _ in range(4)]
    time.sleep(0.3)
    stop()
    tasks[0].result()
""",
}
"""What a process may be doing when a signal comes; `stop()` sends one to it."""


def ended(pid: int) -> bool:
    """A process that was killed is there until someone takes note of its end: init, of an orphan."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.parametrize("stage", STAGES)
def test_one_way_out_whatever_the_process_is_doing(stage: str) -> None:
    """The stage runs in place of the command; a child that is left over would hold the pipe open, and `communicate` would not return."""
    code = f"""
import os, signal, sys
import trtllm_bench.app
from trtllm_bench.__main__ import main
def stop(): os.kill(os.getpid(), signal.SIGTERM)
trtllm_bench.app.app = lambda *_, **__: exec({STAGES[stage]!r}, {{"stop": stop}})
sys.exit(main())
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.communicate(timeout=60)
    assert err == "trtllm-bench: stopped by SIGTERM; nothing new is kept; run the command again\n"
    assert process.returncode == 143
    if stage == "in a finally":
        assert out == "cleaned up\n"
    if "child" in stage and out:
        assert ended(int(out))


def test_two_sweeps_on_one_folder_measure_each_cell_once(tmp_path: Path) -> None:
    both = [start(tmp_path, *GRID, *FAKE) for _ in range(2)]
    ended = sorted((process.communicate(timeout=120)[1], process.returncode) for process in both)
    assert sorted(code for _, code in ended) == [0, 3]
    refused = next(err for err, code in ended if code == 3)
    assert "is being measured into by process" in refused or "already holds a sweep" in refused
    assert len(refused.splitlines()) == 1
    rows = Store(tmp_path).rows()
    assert len(rows) == len({(row.key, row.repeat) for row in rows}) == CELLS


SMALL = (
    "--target",
    "fake",
    "--batch-size",
    "1,2",
    "--isl",
    "8",
    "--osl",
    "4",
    "--num-requests",
    "2",
    "--warmup",
    "0",
    "--max-lag-ms",
    "1000",
)


def test_a_disk_that_is_full_from_any_file_on_leaves_a_folder_to_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = 0

    class FullDisk(io.FileIO):
        def __init__(self, path: Path, mode: str) -> None:
            nonlocal left
            super().__init__(path, mode)
            left -= 1

        def write(self, data: Any) -> int:
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    for file in range(20):
        folder = tmp_path / str(file)
        left = file
        with monkeypatch.context() as patch:
            patch.setattr(files, "open", FullDisk, raising=False)
            code, _, err = run(capsys, "sweep", "--out", folder, *SMALL)
        if code == 0:
            break
        kept = Store(folder).rows()
        count = "1 finished measurement is" if len(kept) == 1 else f"{len(kept)} finished measurements are"
        said = f"{count} kept; go on with: trtllm-bench sweep --resume --out {folder}"
        said = said if (folder / "sweep.json").exists() else "nothing was measured yet; run the command again"
        assert code == 1
        assert "No space left on device; free some space, then go on" in err
        assert err.endswith(f"; {said}\n")
        assert len(err.splitlines()) == 1
        assert not list(folder.rglob("*.tmp"))
        again = ("--resume",) if (folder / "sweep.json").exists() else SMALL
        assert run(capsys, "sweep", *again, "--out", folder)[0] == 0
        assert {row.row_id for row in kept} <= {row.row_id for row in Store(folder).rows()}
        assert len(Store(folder).rows()) == 2
    assert 5 < file < 19


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "holds no sweep.json; give the flags of the sweep again"),
        ("{", "sweep.json contains invalid JSON"),
        ("[1]", "sweep.json must hold one object of flags"),
        ('{"isl": -4}', "sweep.json: isl must be at least 1, not -4"),
        ('{"isl": [[1]]}', "sweep.json: isl takes whole numbers"),
        ('{"isl": NaN}', "sweep.json: isl takes whole numbers"),
        ('{"target": []}', "unknown target ''"),
        ('{"model": 7}', "sweep.json: model takes text"),
        ('{"color": 1}', "sweep.json: unknown field color"),
    ],
)
def test_a_bad_sweep_json_is_refused_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, says: str) -> None:
    (tmp_path / "sweep.json").write_text(content)
    assert says in refused(capsys, "sweep", "--resume", "--out", tmp_path)


def test_an_empty_sweep_json_is_no_dead_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What earlier versions left on a full disk."""
    (tmp_path / "sweep.json").write_text("")
    assert run(capsys, "sweep", "--out", tmp_path, *SMALL)[0] == 0


def test_what_a_killed_sweep_left_goes_when_it_is_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "sweep", "--out", tmp_path, *SMALL)[0] == 0
    left = [
        tmp_path / ".sweep.json.1-0123abcd.tmp",
        tmp_path / "requests" / ".x.1-0123abcd.tmp",
        tmp_path / "requests" / "ab-r0-01234567.parquet",
    ]
    for path in left:
        path.write_text("x")
    assert run(capsys, "sweep", "--resume", "--out", tmp_path)[0] == 0
    assert not any(path.exists() for path in left)
