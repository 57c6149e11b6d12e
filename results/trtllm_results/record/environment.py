"""Where a measurement was taken: GPU, driver, limits, software. Every row carries it.

Read without importing torch (versions come from installed distributions' metadata) and with NVML loaded only on `capture`, so that tables
and help stay quick. `decisive()` names the part that can change a result and so belongs in a cell's key; the momentary readings
(clock, temperature now) are kept beside it as provenance. The code's identity is a hash of the measured packages' sources and not the git
revision: a commit that edits a document must not make finished cells stale, and an uncommitted edit must.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

MEASURED_PACKAGES = ("trtllm_bench", "trtllm_engines", "trtllm_kernels", "trtllm_workloads")


@dataclass(frozen=True)
class Environment:
    """Empty text and zero mean unknown. Without a GPU the `gpu*` fields stay empty and `cpu` is the device."""

    gpu: str = ""
    gpu_count: int = 0
    gpu_uuid: str = ""
    compute_capability: str = ""
    gpu_memory_gib: float = 0.0
    driver: str = ""
    cuda: str = ""
    power_limit_w: float = 0.0
    sm_clock_limit_mhz: int = 0
    memory_clock_limit_mhz: int = 0
    sm_clock_mhz: int = 0
    temperature_c: int = 0
    throttle_reasons: str = ""
    mig: bool = False
    cpu: str = ""
    cpu_count: int = 0
    memory_gib: float = 0.0
    os: str = ""
    host: str = ""
    python: str = ""
    torch: str = ""
    triton: str = ""
    bench: str = ""
    source_hash: str = ""
    git_revision: str = ""
    git_dirty: bool = False

    @property
    def device(self) -> str:
        """What a reader calls the machine: the GPU, or the CPU when there is none."""
        return self.gpu or self.cpu

    def decisive(self) -> dict[str, Any]:
        """The fields that can change a result."""
        return {name: getattr(self, name) for name in DECISIVE}

    @classmethod
    def capture(cls, device: int = 0, use_gpu: bool = True) -> Environment:
        """Reads this machine. `use_gpu=False` leaves the GPU out (a CPU measurement on a GPU machine)."""
        gpu = read_gpu(device) if use_gpu else {}
        return cls(**gpu, **_host(), **_software())


ENVIRONMENT_FIELDS: Mapping[str, str] = {f.name: str(f.type) for f in fields(Environment)}
"""Each field's type, by name."""
MACHINE = ("gpu", "driver", "power_limit_w", "sm_clock_limit_mhz", "memory_clock_limit_mhz", "mig", "cpu", "cpu_count")
"""What of a machine decides how fast it is."""
DECISIVE = (*MACHINE, "compute_capability", "python", "torch", "triton", "bench", "source_hash")
"""What is part of a cell's key."""
assert set(DECISIVE) <= {f.name for f in fields(Environment)}

THROTTLE_BITS: Mapping[int, str] = {
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
}
"""NVML's clock event reasons other than idle (nvml.h, `nvmlClocksEventReason*`)."""


def throttle_names(mask: int) -> list[str]:
    """The names of the reasons whose bits `mask` has."""
    return [name for bit, name in THROTTLE_BITS.items() if mask & bit]


def read_gpu(device: int = 0) -> dict[str, Any]:
    """GPU fields of `Environment` through NVML; empty when there is no NVML or no GPU. A reading the driver refuses is left out."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:
        return {}
    try:
        visible = visible_devices(int(pynvml.nvmlDeviceGetCount()))
        if device >= len(visible):
            return {}
        which = visible[device]
        by_index = isinstance(which, int)
        handle = pynvml.nvmlDeviceGetHandleByIndex(which) if by_index else pynvml.nvmlDeviceGetHandleByUUID(which)

        def ask(function: str, *args: Any) -> Any:
            try:
                return getattr(pynvml, function)(*args)
            except (pynvml.NVMLError, AttributeError):
                return None

        return {"gpu_count": len(visible), **_fields(ask, handle)}
    finally:
        pynvml.nvmlShutdown()


def _fields(ask: Callable[..., Any], handle: object) -> dict[str, Any]:
    """What `ask`, which calls a function of NVML and returns None where that fails, gets to know of a device."""
    fields_read: dict[str, Any] = {
        "gpu": _text(ask("nvmlDeviceGetName", handle)),
        "gpu_uuid": _text(ask("nvmlDeviceGetUUID", handle)),
        "driver": _text(ask("nvmlSystemGetDriverVersion")),
    }
    capability = ask("nvmlDeviceGetCudaComputeCapability", handle)
    if capability:
        fields_read["compute_capability"] = f"{capability[0]}.{capability[1]}"
    cuda = ask("nvmlSystemGetCudaDriverVersion_v2") or ask("nvmlSystemGetCudaDriverVersion")
    if cuda:
        fields_read["cuda"] = f"{cuda // 1000}.{cuda % 1000 // 10}"
    memory = ask("nvmlDeviceGetMemoryInfo", handle)
    if memory is not None:
        fields_read["gpu_memory_gib"] = round(memory.total / 2**30, 2)
    limit = ask("nvmlDeviceGetEnforcedPowerLimit", handle)
    if limit:
        fields_read["power_limit_w"] = limit / 1000
    for name, function, kind in (
        ("sm_clock_limit_mhz", "nvmlDeviceGetMaxClockInfo", 1),
        ("memory_clock_limit_mhz", "nvmlDeviceGetMaxClockInfo", 2),
        ("sm_clock_mhz", "nvmlDeviceGetClockInfo", 1),
        ("temperature_c", "nvmlDeviceGetTemperature", 0),
    ):
        value = ask(function, handle, kind)
        if value is not None:
            fields_read[name] = int(value)
    reasons = ask("nvmlDeviceGetCurrentClocksEventReasons", handle) or ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    if reasons:
        fields_read["throttle_reasons"] = " ".join(throttle_names(int(reasons)))
    mig = ask("nvmlDeviceGetMigMode", handle)
    fields_read["mig"] = bool(mig and mig[0])
    return fields_read


def visible_devices(count: int) -> list[int | str]:
    """NVML's index or UUID of each device CUDA shows this process, in CUDA's order: NVML itself ignores CUDA_VISIBLE_DEVICES."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return list(range(count))
    visible: list[int | str] = []
    for entry in (part.strip() for part in listed.split(",")):
        if entry.isdigit() and int(entry) < count:
            visible.append(int(entry))
        elif entry.startswith(("GPU-", "MIG-")):
            visible.append(entry)
        else:
            break  # as CUDA does: the first invalid entry hides itself and all after it
    return visible


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")


def _host() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "cpu": _cpu_name(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "memory_gib": round(memory / 2**30, 1),
        "os": platform.platform(terse=True),
        "host": platform.node(),
    }


@cache
def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _software() -> dict[str, Any]:
    revision, dirty = _git()
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "triton": _version("triton"),
        "bench": _version("trtllm-bench"),
        "source_hash": source_hash(),
        "git_revision": revision,
        "git_dirty": dirty,
    }


@cache
def source_hash() -> str:
    """Hash (16 hex digits) of the measured packages' sources, CUDA's included, and of the data files in them."""
    digest = hashlib.sha256()
    for package in MEASURED_PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in sorted(spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(root).rglob("*")):
                if path.suffix in {".py", ".json", ".cu", ".cuh", ".toml"} and path.is_file():
                    digest.update(f"{package}/{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@cache
def _git() -> tuple[str, bool]:
    """Revision and whether tracked files differ from it, of the checkout or the archive this package lies in; empty outside one.

    `git archive` writes the revision into `archived_revision.txt`, where a checkout has a placeholder.
    """
    here = Path(__file__).parents[1]
    archived = (here / "archived_revision.txt").read_text().strip()
    if not archived.startswith("$"):
        return archived, False
    try:
        run = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, timeout=10, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"], cwd=here, capture_output=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "", False
    return run.stdout.decode().strip(), bool(status.stdout.strip())
