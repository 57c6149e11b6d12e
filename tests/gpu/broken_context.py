"""A kernel that breaks the CUDA context fails its own test, and no other.

After an illegal memory access every CUDA call of the process fails, so all later tests of that worker would. Errors of kernels are
asynchronous too: a test that does not wait for its kernels passes, and the next one is blamed. So each test waits for the device before it
has passed. A process whose context is broken ends once the test is reported: pytest-xdist names the test that its worker crashed in,
starts a fresh worker and goes on with the next test. Without xdist there is no fresh process, and the run stops there.

Rejected: a process for each test (pytest-forked): each would import torch and make a context, 5 s, for 900 tests.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest
import torch


def wait_for_device() -> None:
    """Raises `RuntimeError` (torch's `AcceleratorError`) if a kernel of this process has failed."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    result = yield
    wait_for_device()
    return result


@pytest.hookimpl(trylast=True)
def pytest_runtest_logfinish(nodeid: str) -> None:
    try:
        wait_for_device()
    except RuntimeError as error:
        if "PYTEST_XDIST_WORKER" in os.environ:
            os._exit(1)  # an ordinary end would free memory by the broken context
        pytest.exit(f"{nodeid} broke the CUDA context: {str(error).splitlines()[0]}", returncode=1)
