"""A test that breaks the CUDA context, with a fake device: who is blamed, and what happens to the tests after it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FAKE_DEVICE = """
import sys, types

class Cuda:
    launched = broken = False
    def is_initialized(self): return self.launched
    def launch(self, wrong=False):
        self.synchronize()
        self.launched, self.broken = True, wrong
    def synchronize(self):
        if self.broken: raise RuntimeError("CUDA error: an illegal memory access was encountered")

sys.modules["torch"] = types.SimpleNamespace(cuda=Cuda())
from broken_context import *
"""
TESTS = """
import torch

def test_before(): torch.cuda.launch()
def test_that_breaks_it(): torch.cuda.launch(wrong=True)
def test_after(): torch.cuda.launch()
def test_last(): torch.cuda.launch()
"""


def outcome(folder: Path, *options: str) -> str:
    """What pytest prints of `TESTS`."""
    (folder / "conftest.py").write_text(FAKE_DEVICE)
    (folder / "test_kernels.py").write_text(TESTS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "COLUMNS": "200", "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rA", *options, "."]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False).stdout


def test_a_fresh_worker_runs_the_tests_after_it(tmp_path: Path) -> None:
    printed = outcome(tmp_path, "-p", "xdist", "-n", "1")
    reported = [line.split(" - ") for line in printed.splitlines() if line.startswith(("PASSED", "FAILED"))]
    assert {name for name, *_ in reported} == {
        *(f"PASSED test_kernels.py::test_{name}" for name in ("before", "after", "last")),
        "FAILED test_kernels.py::test_that_breaks_it",
    }
    assert "RuntimeError: CUDA error: an illegal memory access was encountered" in printed
    assert "worker 'gw0' crashed while running 'test_kernels.py::test_that_breaks_it'" in printed


def test_without_workers_the_run_stops_and_says_where(tmp_path: Path) -> None:
    printed = outcome(tmp_path)
    assert "Exit: test_kernels.py::test_that_breaks_it broke the CUDA context: CUDA error: an illegal memory access" in printed
    assert "1 failed, 1 passed" in printed
