"""GPU telemetry beside a run: a thread asks NVML twenty times a second for power, energy, clocks, heat and why clocks are held back.

Energy comes from the board's own counter and not from summing power samples, because NVML's power reading is an average over about a
second on recent boards and misses short loads; the counter misses nothing. Mean power is energy over time. A reading the driver
refuses stays NaN, and without NVML there are no samples and one sentence saying why.

The clock is `time.perf_counter`, the driver's and the engine's, so samples, requests and steps line up.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_results.record.environment import THROTTLE_BITS, visible_devices

FloatArray = npt.NDArray[np.float64]
RATE_HZ = 20.0
COLUMNS = (
    "time_s",
    "device",
    "power_w",
    "energy_j",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "throttle_mask",
    "temperature_c",
    "utilization",
    "memory_used_gib",
)
POWER_CAP = 0x4
SLOW_DOWN = 0x8 | 0x20 | 0x40 | 0x80
"""NVML's reasons that mean trouble: hardware slow-down, software and hardware thermal slow-down, external power brake."""


@dataclass(frozen=True)
class Samples:
    """Rows of `COLUMNS`, one per device and moment. `absent` says in one sentence why there are none."""

    rows: FloatArray
    absent: str = ""

    def columns(self) -> dict[str, FloatArray]:
        """For the side table "samples" of `Store.record`; empty without samples."""
        return {name: self.rows[:, place] for place, name in enumerate(COLUMNS)} if len(self.rows) else {}

    def figures(self, start_s: float, end_s: float, output_tokens: float) -> dict[str, float]:
        """Figures of `metrics.registry` over [start_s, end_s]; summed over devices where that has a meaning, else the worst one."""
        if not len(self.rows) or end_s <= start_s:
            return {}
        per_device = [self._of(device, start_s, end_s) for device in np.unique(self.rows[:, 1])]
        combined: dict[str, float] = {}
        for name, combine in _COMBINE.items():
            values = [figures[name] for figures in per_device if name in figures and np.isfinite(figures[name])]
            if len(values) == len(per_device):
                combined[name] = float(combine(values))
        if "energy_j" in combined:
            combined["power_mean_w"] = combined["energy_j"] / (end_s - start_s)
            if output_tokens > 0:
                combined["energy_per_output_token_j"] = combined["energy_j"] / output_tokens
        return combined

    def by_gpu(self, start_s: float, end_s: float) -> list[dict[str, float]]:
        """Of each GPU over [start_s, end_s] what `figures` sums, averages or takes the worst of; nothing for one GPU alone."""
        devices = np.unique(self.rows[:, 1]) if len(self.rows) and end_s > start_s else np.zeros(0)
        if len(devices) < 2:
            return []
        names = ("energy_j", "sm_clock_mean_mhz", "sm_clock_min_mhz", "memory_clock_mean_mhz", "temperature_max_c", "memory_peak_gib")
        figures = [self._of(device, start_s, end_s) for device in devices]
        return [{name: round(one[name], 3) for name in names if np.isfinite(one.get(name, np.nan))} for one in figures]

    def _of(self, device: float, start_s: float, end_s: float) -> dict[str, float]:
        mine = self.rows[self.rows[:, 1] == device]
        column = {name: mine[:, place] for place, name in enumerate(COLUMNS)}
        inside = (column["time_s"] >= start_s) & (column["time_s"] <= end_s)
        if not inside.any():
            return {}
        mask = column["throttle_mask"][inside]
        known = np.asarray(mask[np.isfinite(mask)], dtype=np.int64)
        return {
            "energy_j": _energy(column["time_s"], column["energy_j"], column["power_w"], start_s, end_s),
            "power_max_w": _reduce(np.nanmax, column["power_w"][inside]),
            "sm_clock_mean_mhz": _reduce(np.nanmean, column["sm_clock_mhz"][inside]),
            "sm_clock_min_mhz": _reduce(np.nanmin, column["sm_clock_mhz"][inside]),
            "memory_clock_mean_mhz": _reduce(np.nanmean, column["memory_clock_mhz"][inside]),
            "temperature_max_c": _reduce(np.nanmax, column["temperature_c"][inside]),
            "throttled_ratio": float(((known & SLOW_DOWN) != 0).mean()) if len(known) else float("nan"),
            "power_capped_ratio": float(((known & POWER_CAP) != 0).mean()) if len(known) else float("nan"),
            "gpu_utilization_mean": _reduce(np.nanmean, column["utilization"][inside]),
            "memory_peak_gib": _reduce(np.nanmax, column["memory_used_gib"][inside]),
        }

    def suspicions(self, start_s: float, end_s: float) -> list[str]:
        """Why the clocks make a cell suspect, a sentence each; empty when they do not."""
        if not len(self.rows):
            return []
        inside = self.rows[(self.rows[:, 0] >= start_s) & (self.rows[:, 0] <= end_s)]
        devices = np.unique(inside[:, 1])
        sentences = []
        for device in devices:
            masks = inside[inside[:, 1] == device, COLUMNS.index("throttle_mask")]
            known = np.asarray(masks[np.isfinite(masks)], dtype=np.int64)
            whose = f"GPU {device:.0f}'s" if len(devices) > 1 else "the GPU's"
            for bit, name in THROTTLE_BITS.items():
                share = float(((known & bit) != 0).mean()) if len(known) else 0.0
                if bit & SLOW_DOWN and share > 0:
                    sentences.append(
                        f"suspect: {whose} clocks were held back ({name}) in {share:.0%} of samples; cool it or check its power supply"
                    )
        return sentences


_COMBINE: Mapping[str, Callable[[Sequence[float]], float]] = {
    "energy_j": sum,
    "power_max_w": sum,
    "sm_clock_mean_mhz": np.mean,
    "sm_clock_min_mhz": min,
    "memory_clock_mean_mhz": np.mean,
    "temperature_max_c": max,
    "throttled_ratio": max,
    "power_capped_ratio": max,
    "gpu_utilization_mean": np.mean,
    "memory_peak_gib": max,
}


def _reduce(function: Callable[[FloatArray], Any], values: FloatArray) -> float:
    return float(function(values)) if np.isfinite(values).any() else float("nan")


def _energy(times: FloatArray, counter: FloatArray, power: FloatArray, start_s: float, end_s: float) -> float:
    """Joules in [start_s, end_s]: the counter, interpolated at both ends; the integral of power where there is no counter."""
    for values, is_power in ((counter, False), (power, True)):
        known = np.isfinite(values)
        if known.sum() < 2:
            continue
        t, v = times[known], values[known]
        if is_power:
            v = np.concatenate([[0.0], np.cumsum((v[1:] + v[:-1]) / 2 * np.diff(t))])
        return float(np.interp(end_s, t, v) - np.interp(start_s, t, v))
    return float("nan")


class Telemetry:
    """Samples GPUs on a thread from `start` (or entering a `with`) to `stop`. `nvml` is `pynvml`, or something like it in tests."""

    def __init__(self, gpus: int = 1, nvml: Any = None, hosts: int = 1) -> None:
        """`hosts`: on how many the GPUs are; those of others are not seen from here, and a part would pass for the whole."""
        self._gpus, self._hosts = gpus, hosts
        self._nvml = nvml
        self._rows: list[tuple[float, ...]] = []
        self._handles: list[Any] = []
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._absent = ""

    def __enter__(self) -> Telemetry:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        self._absent = self._open()
        if self._absent:
            return
        self._thread = threading.Thread(target=self._sample, name="telemetry", daemon=True)
        self._thread.start()

    def _open(self) -> str:
        """Takes hold of the devices; a sentence when that is not possible."""
        if self._gpus < 1:
            return "no GPU took part, so there are no power and clock figures"
        if self._hosts > 1:
            return f"GPUs of {self._hosts} hosts took part and NVML shows those of one, so there are no power and clock figures"
        try:
            if self._nvml is None:
                import pynvml

                self._nvml = pynvml
            self._nvml.nvmlInit()
            for device in visible_devices(int(self._nvml.nvmlDeviceGetCount()))[: self._gpus]:
                by = self._nvml.nvmlDeviceGetHandleByIndex if isinstance(device, int) else self._nvml.nvmlDeviceGetHandleByUUID
                self._handles.append(by(device))
            if len(self._handles) < self._gpus:
                return f"{self._gpus} GPUs took part and NVML shows {len(self._handles)}, so there are no power and clock figures"
        except Exception as error:
            return f"NVML is not available ({error}), so there are no power and clock figures"
        return ""

    def stop(self) -> Samples:
        """Ends sampling. May be called again for the same samples."""
        if self._thread is not None:
            self._done.set()
            self._thread.join()
            self._thread = None
        rows = np.asarray(self._rows, dtype=np.float64).reshape(-1, len(COLUMNS))
        return Samples(rows, self._absent)

    def _sample(self) -> None:
        due = time.perf_counter()
        while True:
            for number, handle in enumerate(self._handles):
                self._rows.append((time.perf_counter(), float(number), *self._read(handle)))
            due = max(due + 1 / RATE_HZ, time.perf_counter())
            if self._done.wait(due - time.perf_counter()):
                # A last sample, so that the counter covers the end of the run.
                for number, handle in enumerate(self._handles):
                    self._rows.append((time.perf_counter(), float(number), *self._read(handle)))
                return

    def _read(self, handle: Any) -> tuple[float, ...]:
        nvml = self._nvml

        def ask(name: str, *args: Any) -> Any:
            try:
                return getattr(nvml, name)(handle, *args)
            except Exception:
                return None

        reasons = ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:
            reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        use, memory = ask("nvmlDeviceGetUtilizationRates"), ask("nvmlDeviceGetMemoryInfo")
        return (
            _scaled(ask("nvmlDeviceGetPowerUsage"), 1e-3),
            _scaled(ask("nvmlDeviceGetTotalEnergyConsumption"), 1e-3),
            _scaled(ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_SM), 1.0),
            _scaled(ask("nvmlDeviceGetClockInfo", nvml.NVML_CLOCK_MEM), 1.0),
            _scaled(reasons, 1.0),
            _scaled(ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU), 1.0),
            _scaled(None if use is None else use.gpu, 1e-2),
            _scaled(None if memory is None else memory.used, 2.0**-30),
        )


def _scaled(value: Any, factor: float) -> float:
    return float("nan") if value is None else float(value) * factor
