"""Helpers beside the tests are imported by name; engines that tests build are kept apart from the user's."""

import sys
from pathlib import Path

import pytest

from trtllm_bench.load.clock import FakeClock
from trtllm_bench.targets.scripted import Script, VirtualTarget

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTLLM_BENCH_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def virtual_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands with `--target fake` drive the same script on a virtual clock: exact, and without waiting."""
    clocks: list[FakeClock] = []

    def scripted(script: Script) -> VirtualTarget:
        clocks.append(FakeClock())
        return VirtualTarget(clocks[-1], script)

    monkeypatch.setattr("trtllm_bench.targets.scripted.ScriptedTarget", scripted)
    monkeypatch.setattr("trtllm_bench.load.driver.RealClock", lambda: clocks[-1])
