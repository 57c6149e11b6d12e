"""Workers of one machine (`pytest -n 14`) share its cores: references run on the CPU, and torch would give each worker all of them; and
kernels are compiled by the test that lacks them, without processes beside it, unless most cores are idle."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from trtllm_kernels.compile import workers

CORES, TESTS_AT_ONCE = os.cpu_count() or 1, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
torch.set_num_threads(max(1, CORES // TESTS_AT_ONCE))

sys.path[:0] = [str(Path(__file__).parents[1] / "kernels"), str(Path(__file__).parent)]

from broken_context import pytest_runtest_call, pytest_runtest_logfinish  # noqa: E402

__all__ = ["pytest_runtest_call", "pytest_runtest_logfinish"]


@pytest.fixture(scope="module", autouse=True)
def _compile_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        if TESTS_AT_ONCE > CORES // 2:
            patch.setattr(workers, "LEAST_WORKERS", sys.maxsize)
        yield
