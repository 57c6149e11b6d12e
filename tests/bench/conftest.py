"""Helpers beside the tests are imported by name; engines that tests build are kept apart from the user's."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
