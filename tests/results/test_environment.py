"""What a machine tells of itself, through a scripted NVML, and what of it belongs in a cell's key."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from trtllm_results.record import environment
from trtllm_results.record.environment import DECISIVE, Environment, read_gpu, throttle_names, visible_devices


class NVMLError(Exception):
    pass


def nvml(count: int = 2, **answers: object) -> types.ModuleType:
    """A pynvml whose devices answer as given and refuse everything else."""

    def refuse(*_: object) -> None:
        raise NVMLError

    module = types.ModuleType("pynvml")
    known: dict[str, object] = {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetCount": lambda: count,
        "nvmlDeviceGetHandleByIndex": lambda index: f"device {index}",
        "nvmlDeviceGetHandleByUUID": lambda uuid: f"device {uuid}",
        "nvmlDeviceGetName": lambda handle: f"NVIDIA H100 ({handle})".encode(),
        "nvmlSystemGetDriverVersion": lambda: "580.65.06",
        "nvmlDeviceGetCudaComputeCapability": lambda _: (9, 0),
        "nvmlSystemGetCudaDriverVersion_v2": lambda: 13000,
        "nvmlDeviceGetMemoryInfo": lambda _: types.SimpleNamespace(total=80 * 2**30),
        "nvmlDeviceGetEnforcedPowerLimit": lambda _: 700_000,
        "nvmlDeviceGetMaxClockInfo": lambda _, kind: {1: 1980, 2: 2619}[kind],
        "nvmlDeviceGetClockInfo": lambda *_: 345,
        "nvmlDeviceGetTemperature": refuse,
        "nvmlDeviceGetUUID": refuse,
        "nvmlDeviceGetCurrentClocksEventReasons": lambda _: 0x1 | 0x4 | 0x40,
        "nvmlDeviceGetMigMode": lambda _: [0, 0],
    }
    for name, value in {**known, **answers, "NVMLError": NVMLError}.items():
        setattr(module, name, value)
    return module


@pytest.fixture(autouse=True)
def _no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_gpu_is_read_and_refused_readings_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    found = read_gpu()
    assert found["gpu"] == "NVIDIA H100 (device 0)"
    assert (found["gpu_count"], found["compute_capability"], found["driver"], found["cuda"]) == (2, "9.0", "580.65.06", "13.0")
    assert (found["power_limit_w"], found["sm_clock_limit_mhz"], found["memory_clock_limit_mhz"]) == (700.0, 1980, 2619)
    assert found["throttle_reasons"] == "sw_power_cap hw_thermal_slowdown"
    assert "temperature_c" not in found
    assert found["gpu_uuid"] == ""


def test_cuda_visible_devices_decides_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert (read_gpu()["gpu"], read_gpu()["gpu_count"]) == ("NVIDIA H100 (device 1)", 1)
    assert read_gpu(1) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-abc,0,9,1")
    assert visible_devices(2) == ["GPU-abc", 0]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert read_gpu() == {}


def test_no_nvml_and_no_gpu_leave_the_fields_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise NVMLError

    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=absent))
    assert read_gpu() == {}
    monkeypatch.setitem(sys.modules, "pynvml", nvml(count=0))
    assert read_gpu() == {}
    here = Environment.capture()
    assert here.gpu == ""
    assert here.device == here.cpu != ""
    assert here.python
    assert here.source_hash


def test_throttle_bits_have_names_and_idle_is_none() -> None:
    assert throttle_names(0x1) == []
    assert throttle_names(0x20 | 0x80) == ["sw_thermal_slowdown", "hw_power_brake_slowdown"]


def test_the_source_hash_follows_the_sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in environment.MEASURED_PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    spec = lambda name: types.SimpleNamespace(submodule_search_locations=[str(tmp_path / name)])  # noqa: E731
    monkeypatch.setattr(environment.importlib.util, "find_spec", spec)
    hashes = []
    for text in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "trtllm_engines" / "x.py").write_text(text)
        environment.source_hash.cache_clear()
        hashes.append(environment.source_hash())
    (tmp_path / "trtllm_engines" / "notes.md").write_text("documents do not count")
    environment.source_hash.cache_clear()
    hashes.append(environment.source_hash())
    (tmp_path / "trtllm_kernels" / "tiles.cuh").write_text("// headers of CUDA kernels do")
    environment.source_hash.cache_clear()
    hashes.append(environment.source_hash())
    environment.source_hash.cache_clear()
    assert hashes[0] == hashes[2] == hashes[3] != hashes[1]
    assert hashes[4] != hashes[3]


def test_the_key_holds_limits_and_not_readings() -> None:
    assert {"gpu", "driver", "power_limit_w", "source_hash", "torch"} <= set(DECISIVE)
    assert not {"sm_clock_mhz", "temperature_c", "throttle_reasons", "git_revision", "host"} & set(DECISIVE)


def test_an_archive_knows_the_revision_it_was_made_of(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout.strip()
    archive = subprocess.run(["git", "archive", "HEAD", "results"], cwd=root, capture_output=True, check=True).stdout
    subprocess.run(["tar", "x", "-C", tmp_path], input=archive, check=True)
    code = "from trtllm_results.record.environment import Environment; print(Environment.capture(use_gpu=False).git_revision)"
    printed = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path / "results")}, capture_output=True, text=True
    )
    assert printed.stdout.strip() == head, printed.stderr
