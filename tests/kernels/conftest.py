"""Helper modules beside the tests are imported by name."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_cublaslt import FakeCublasLt
from scripts import Scripts

from trtllm_kernels.compile import nvrtc
from trtllm_kernels.dialect.types import KernelSpec
from trtllm_kernels.launch import cublaslt
from trtllm_kernels.launch import gemm as products


@pytest.fixture
def lt(monkeypatch: pytest.MonkeyPatch) -> FakeCublasLt:
    """cuBLASLt for tensors in host memory, in place of the library torch loads."""
    fake = FakeCublasLt()
    wrapped = cublaslt.Library(fake)
    monkeypatch.setattr(cublaslt, "library", lambda: wrapped)
    monkeypatch.setattr(cublaslt, "_algorithms", {})
    monkeypatch.setattr(products, "_scratch", {})
    return fake


@pytest.fixture(scope="session", autouse=True)
def _sources_compile_once() -> Iterator[None]:
    """Of a kernel in CUDA C++ one test wants the machine code and the next the assembler's log."""
    compiled: dict[tuple[str, str], tuple[bytes, str, str]] = {}
    compile_source = nvrtc.compile_source

    def once(spec: KernelSpec, arch: str) -> tuple[bytes, str, str]:
        nvrtc._bindings()  # or says what is missing
        key = (spec.key, arch)
        if key not in compiled:
            compiled[key] = compile_source(spec, arch)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "compile_source", once)
        yield


@pytest.fixture(scope="session", autouse=True)
def interpreted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripts]:
    """The interpreter's long scripts, each one thread of Python: they run beside this folder's other tests from the first on. Not where
    tests run in several processes, of which each would start them: there whose tests need one starts it."""
    scripts = Scripts(tmp_path_factory.mktemp("interpreted"))
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    if alone and any(item.path.name == "test_interpreted.py" for item in request.session.items):
        scripts.start("interpreted.py", "interpreted_engine.py")
    yield scripts
    scripts.end()
