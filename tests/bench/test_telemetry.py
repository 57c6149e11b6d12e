"""Telemetry against a scripted NVML, where the energy and the clocks are known."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trtllm_bench.telemetry import COLUMNS, Samples, Telemetry
from trtllm_results.metrics.registry import METRICS
from trtllm_results.record.environment import visible_devices


class FakeNvml:
    """A board at 300 W, 1,500 MHz, its energy counter in step with the clock."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlDeviceGetCount = staticmethod(lambda: 4)

    def __init__(self, refuse: tuple[str, ...] = (), reasons: int = 0) -> None:
        self.refuse, self.reasons = refuse, reasons
        self.opened: list[Any] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "refuse"):
            raise RuntimeError("Not Supported")
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None: ...
    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self.opened.append(index)
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.opened.append(uuid)
        return uuid

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return 300_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> float:
        return time.perf_counter() * 300_000

    def nvmlDeviceGetClockInfo(self, handle: Any, kind: int) -> int:
        return 1500 if kind == 1 else 2619

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        return self.reasons

    def nvmlDeviceGetTemperature(self, handle: Any, kind: int) -> int:
        return 61

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        return SimpleNamespace(gpu=90)

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return SimpleNamespace(used=40 * 2**30)


def sampled(nvml: FakeNvml, gpus: int = 1, seconds: float = 0.25) -> tuple[Samples, float, float]:
    telemetry = Telemetry(gpus, nvml=nvml)
    telemetry.start()
    start = time.perf_counter()
    time.sleep(seconds)
    end = time.perf_counter()
    return telemetry.stop(), start, end


def test_figures_of_a_known_board() -> None:
    samples, start, end = sampled(FakeNvml())
    figures = samples.figures(start, end, output_tokens=1000)
    assert set(figures) <= set(METRICS)
    assert figures["energy_j"] == pytest.approx(300 * (end - start), rel=0.02)
    assert figures["power_mean_w"] == pytest.approx(300, rel=0.02)
    assert figures["energy_per_output_token_j"] == pytest.approx(figures["energy_j"] / 1000)
    assert figures["sm_clock_min_mhz"] == 1500
    assert figures["memory_clock_mean_mhz"] == 2619
    assert figures["memory_peak_gib"] == pytest.approx(40)
    assert figures["gpu_utilization_mean"] == pytest.approx(0.9)
    assert figures["throttled_ratio"] == 0
    assert samples.suspicions(start, end) == []


def test_two_boards_add_their_power_and_not_their_clocks() -> None:
    samples, start, end = sampled(FakeNvml(), gpus=2)
    figures = samples.figures(start, end, 0)
    assert figures["power_mean_w"] == pytest.approx(600, rel=0.02)
    assert figures["power_max_w"] == pytest.approx(600)
    assert figures["sm_clock_mean_mhz"] == pytest.approx(1500)
    assert "energy_per_output_token_j" not in figures


def test_each_of_two_boards_keeps_its_clocks_and_memory_and_the_worst_counts() -> None:
    rows = np.full((4, len(COLUMNS)), np.nan)
    rows[:, 0], rows[:, 1], rows[:, 3] = [0, 0, 2, 2], [0, 1, 0, 1], [0, 50, 600, 850]
    for name, values in {
        "sm_clock_mhz": [1900, 1700, 1900, 1500],
        "throttle_mask": [0, 0, 0, 8],
        "memory_used_gib": [70, 75, 71, 76],
    }.items():
        rows[:, COLUMNS.index(name)] = values
    samples = Samples(rows)
    figures = samples.figures(0, 2, 100)
    assert (figures["energy_j"], figures["power_mean_w"], figures["energy_per_output_token_j"]) == (1400, 700, 14)
    assert (figures["sm_clock_mean_mhz"], figures["sm_clock_min_mhz"], figures["memory_peak_gib"]) == (1750, 1500, 76)
    assert samples.by_gpu(0, 2) == [
        {"energy_j": 600, "sm_clock_mean_mhz": 1900, "sm_clock_min_mhz": 1900, "memory_peak_gib": 71},
        {"energy_j": 800, "sm_clock_mean_mhz": 1600, "sm_clock_min_mhz": 1500, "memory_peak_gib": 76},
    ]
    assert samples.suspicions(0, 2) == [
        "suspect: GPU 1's clocks were held back (hw_slowdown) in 50% of samples; cool it or check its power supply"
    ]
    assert Samples(rows[rows[:, 1] == 0]).by_gpu(0, 2) == []


def test_boards_of_several_hosts_give_no_figures_of_the_whole() -> None:
    """Though this host alone has as many as took part."""
    with Telemetry(2, nvml=FakeNvml(), hosts=2) as telemetry:
        samples = telemetry.stop()
    assert samples.columns() == {}
    assert samples.absent == "GPUs of 2 hosts took part and NVML shows those of one, so there are no power and clock figures"


def test_fewer_boards_than_took_part_give_no_figures_of_the_whole() -> None:
    samples, start, end = sampled(FakeNvml(), gpus=8, seconds=0.05)
    assert samples.figures(start, end, 1) == {}
    assert samples.absent == "8 GPUs took part and NVML shows 4, so there are no power and clock figures"


def test_sampling_is_at_least_ten_times_a_second() -> None:
    samples, _, _ = sampled(FakeNvml(), seconds=0.6)
    gaps = np.diff(samples.columns()["time_s"])
    assert np.median(gaps) < 0.1


def test_without_an_energy_counter_power_is_integrated() -> None:
    samples, start, end = sampled(FakeNvml(refuse=("nvmlDeviceGetTotalEnergyConsumption",)))
    assert samples.figures(start, end, 0)["energy_j"] == pytest.approx(300 * (end - start), rel=0.15)


def test_a_refused_reading_leaves_its_figure_out_and_nothing_else() -> None:
    samples, start, end = sampled(FakeNvml(refuse=("nvmlDeviceGetTemperature", "nvmlDeviceGetMemoryInfo")))
    figures = samples.figures(start, end, 0)
    assert "temperature_max_c" not in figures
    assert "memory_peak_gib" not in figures
    assert "energy_j" in figures


@pytest.mark.parametrize(("reasons", "suspect"), [(0x4, False), (0x1, False), (0x8, True), (0x40, True), (0x24, True)])
def test_slow_downs_make_a_cell_suspect_and_the_power_cap_does_not(reasons: int, suspect: bool) -> None:
    samples, start, end = sampled(FakeNvml(reasons=reasons), seconds=0.1)
    assert bool(samples.suspicions(start, end)) == suspect
    assert samples.figures(start, end, 0)["power_capped_ratio"] == (1.0 if reasons & 0x4 else 0.0)


def test_older_drivers_name_the_reasons_differently() -> None:
    nvml = FakeNvml(refuse=("nvmlDeviceGetCurrentClocksEventReasons",))
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda handle: 0x40  # type: ignore[attr-defined]
    samples, start, end = sampled(nvml, seconds=0.1)
    assert samples.figures(start, end, 0)["throttled_ratio"] == 1.0


def test_without_nvml_there_are_no_columns_and_one_sentence() -> None:
    with Telemetry(1, nvml=FakeNvml(refuse=("nvmlInit",))) as telemetry:
        samples = telemetry.stop()
    assert samples.columns() == {}
    assert samples.figures(0, 1, 10) == {}
    assert samples.absent == "NVML is not available (Not Supported), so there are no power and clock figures"


def test_on_a_cpu_nothing_is_asked() -> None:
    telemetry = Telemetry(0, nvml=FakeNvml())
    telemetry.start()
    assert "no GPU took part" in telemetry.stop().absent


def test_cuda_visible_devices_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_devices(2) == [0, 1]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-abc,1")
    assert visible_devices(4)[:2] == [3, "GPU-abc"]
    nvml = FakeNvml()
    sampled(nvml, gpus=2, seconds=0.01)
    assert nvml.opened == [3, "GPU-abc"]


def test_energy_is_interpolated_between_samples() -> None:
    rows = np.full((3, len(COLUMNS)), np.nan)
    rows[:, 0], rows[:, 1], rows[:, 3] = [0, 1, 2], 0, [0, 100, 300]
    assert Samples(rows).figures(0.5, 1.5, 0)["energy_j"] == pytest.approx(150)
