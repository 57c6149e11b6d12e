"""python tests/bench/kill_trials.py --kills 20 --terms 20 --doubles 5 --fulls 50: a sweep of the fake target is killed (SIGKILL, SIGTERM)
at random moments, started twice at once, and met by a full disk at each file in turn; then it is resumed to its end. No finished cell may
be lost or measured twice, and no file left that nothing mentions. Prints the figures; exits 1 if any of that happened.

Not collected by pytest: it takes minutes. `test_sweep_interrupted.py` holds one case of each.
"""

from __future__ import annotations

import argparse
import collections
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

GRID = ["--target", "fake", "--osl", "8", "--batch-size", "1,2", "--isl", "8,16", "--num-requests", "6", "--warmup", "0", "--repeats", "3"]
GRID += ["--max-lag-ms", "100000"]
CELLS = 12
START = [sys.executable, "-m", "trtllm_bench", "sweep"]
Figures = collections.Counter[str]


def sweep(folder: Path) -> subprocess.Popen[str]:
    """A sweep into `folder`, resumed where there is one."""
    arguments = ["--resume"] if (folder / "sweep.json").exists() else GRID
    return subprocess.Popen(
        [*START, *arguments, "--out", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def finished(folder: Path) -> dict[tuple[str, int], str]:
    """Row id of every measured (cell, repeat), read as anyone would; a cell that is there twice is an error."""
    if not (folder / "results.parquet").exists():
        return {}
    frame = pd.read_parquet(folder / "results.parquet")
    good = frame[frame.status == "ok"]
    keys = list(zip(good.cell_key, good.repeat, strict=True))
    assert len(set(keys)) == len(keys), f"{folder}: a cell is there twice"
    return dict(zip(keys, good.row_id, strict=True))


def check(folder: Path, before: dict[tuple[str, int], str], figures: Figures) -> dict[tuple[str, int], str]:
    """Counts what went wrong since `before`; returns what is there now."""
    now = finished(folder)
    figures["lost"] += sum(now.get(key) != row_id for key, row_id in before.items())
    if (folder / "results.json").exists():
        json.loads((folder / "results.json").read_text())
    for (key, repeat), row_id in now.items():
        try:
            pd.read_parquet(folder / "requests" / f"{key}-r{repeat}-{row_id[:8]}.parquet")
        except OSError:
            figures["side tables missing"] += 1
    return now


def complete(folder: Path, before: dict[tuple[str, int], str], figures: Figures) -> None:
    """Resumes to the end, and looks whether all is there once."""
    process = sweep(folder)
    _, err = process.communicate(timeout=120)
    if process.returncode:
        figures["could not be resumed"] += 1
        print(f"{folder}: {err}")
    now = check(folder, before, figures)
    figures["cells missing"] += CELLS - len(now)
    figures["left over"] += len(list(folder.rglob("*.tmp"))) + abs(len(list((folder / "requests").iterdir())) - len(now))


def stopped_at_random(folder: Path, number: int, times: int, chance: random.Random, figures: Figures) -> None:
    """Stops a sweep `times` times, at moments from the first import to the last row, and resumes it each time."""
    before: dict[tuple[str, int], str] = {}
    generation, stops = 0, 0
    while stops < times:
        here = folder / str(generation)
        process = sweep(here)
        rows = len(before) + chance.randrange(CELLS)
        time.sleep(0.15)  # before, it is Python's own start that is met
        if chance.random() < 0.4:
            time.sleep(chance.uniform(0, 3.0))
        else:
            while process.poll() is None and len(finished(here)) < rows:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.15))
        ended = process.poll() is not None
        if not ended:
            os.kill(process.pid, number)
            stops += 1
        _, err = process.communicate(timeout=60)
        figures["stopped"] += not ended
        if not ended and number == signal.SIGTERM and process.returncode not in (0, 143):
            figures["wrong exit code"] += 1
            print(f"{here}: exit code {process.returncode}: {err}")
        if "Traceback" in err or (not ended and number == signal.SIGTERM and process.returncode and len(err.splitlines()) != 1):
            figures["not one sentence"] += 1
            print(f"{here}: {err}")
        before = check(here, before, figures)
        if ended or len(before) == CELLS:
            complete(here, before, figures)
            generation, before = generation + 1, {}
    complete(folder / str(generation), before, figures)


def twice_at_once(folder: Path, figures: Figures) -> None:
    """One of two sweeps measures, the other refuses in one sentence."""
    both = [sweep(folder), sweep(folder)]
    codes = sorted((process.communicate(timeout=120)[1], process.returncode)[1] for process in both)
    figures["both measured"] += codes != [0, 3]
    complete(folder, finished(folder), figures)


class FullDisk(io.FileIO):
    """A file on a disk that is full from the n-th file on: at once, or after what that file's first write brought, in turn."""

    files = 0
    turn = 0

    def __init__(self, path: Path, mode: str) -> None:
        super().__init__(path, mode)
        FullDisk.files -= 1
        self.writes = 0

    def write(self, data: Any) -> int:
        self.writes += 1
        if FullDisk.files < 0 and (self.writes > 1 or (FullDisk.files + FullDisk.turn) % 2):
            super().write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def full_at(folder: Path, file: int, turn: int, figures: Figures) -> bool:
    """A sweep whose disk is full from the n-th file on; whether it ended for that. Runs in a child, whose `open` is replaced."""
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from kill_trials import FullDisk
from trtllm_results.store import files
FullDisk.files, FullDisk.turn = {file}, {turn}
files.open = lambda path, mode: FullDisk(path, mode)
sys.argv = {["trtllm-bench", "sweep", *GRID, "--out", str(folder)]!r}
from trtllm_bench.__main__ import main
sys.exit(main())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if run.returncode == 0:
        return False
    figures["full disks"] += 1
    if run.returncode != 1 or len(run.stderr.splitlines()) != 1 or "No space left" not in run.stderr:
        figures["not one sentence"] += 1
        print(f"file {file}: exit code {run.returncode}: {run.stderr}")
    before = finished(folder) if folder.exists() else {}
    figures["kept at full disks"] += len(before)
    complete(folder, before, figures)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("kills", 20), ("terms", 20), ("doubles", 5), ("fulls", 50), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as root:
        for title, number, times in (("SIGKILL", signal.SIGKILL, given.kills), ("SIGTERM", signal.SIGTERM, given.terms)):
            figures: Figures = collections.Counter()
            if times:
                stopped_at_random(Path(root) / title, number, times, random.Random(given.seed), figures)
            bad += report(title, figures)
        figures = collections.Counter()
        for one in range(given.doubles):
            twice_at_once(Path(root) / f"double{one}", figures)
        bad += report(f"{given.doubles} double sweeps", figures)
        figures = collections.Counter()
        file = turn = 0
        for number in range(given.fulls):
            if not full_at(Path(root) / f"full{number}", file, turn, figures):
                file, turn = 0, turn + 1  # past the last file: once more from the first, the other way about
                continue
            file += 1
        bad += report("full disk at each file", figures)
    return 1 if bad else 0


def report(title: str, figures: Figures) -> int:
    """Prints; returns how many things went wrong."""
    wrong = {name: count for name, count in figures.items() if name not in ("stopped", "full disks", "kept at full disks") and count}
    done = ", ".join(f"{name} {figures[name]}" for name in ("stopped", "full disks", "kept at full disks") if figures[name])
    print(f"{title}: {done}; {wrong or 'nothing lost, doubled or left over'}", flush=True)
    return sum(wrong.values())


if __name__ == "__main__":
    sys.exit(main())
