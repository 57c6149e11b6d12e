"""Helper modules beside the tests are imported by name."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_cublaslt import FakeCublasLt

from trtllm_kernels import cublaslt, products


@pytest.fixture
def lt(monkeypatch: pytest.MonkeyPatch) -> FakeCublasLt:
    """cuBLASLt for tensors in host memory, in place of the library torch loads."""
    fake = FakeCublasLt()
    wrapped = cublaslt.Library(fake)
    monkeypatch.setattr(cublaslt, "library", lambda: wrapped)
    monkeypatch.setattr(cublaslt, "_algorithms", {})
    monkeypatch.setattr(products, "_scratch", {})
    return fake
