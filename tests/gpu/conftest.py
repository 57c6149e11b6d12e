"""Workers of one machine (`pytest -n 8`) share its cores: references run on the CPU, and torch would give each worker all of them."""

import os
import sys
from pathlib import Path

import torch

torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))

sys.path[:0] = [str(Path(__file__).parents[1] / "kernels"), str(Path(__file__).parent)]

from broken_context import pytest_runtest_call, pytest_runtest_logfinish  # noqa: E402

__all__ = ["pytest_runtest_call", "pytest_runtest_logfinish"]
