"""Which machines an engine runs on, and what made it.

Machine code decides: an architecture we compiled for (code for 8.0 also runs on 8.6 and 8.9; code for 9.0 uses features of that chip
alone), a driver of the CUDA generation whose assemblers made it (ptxas; NVRTC for kernels in CUDA C++), and the same launch ABI and folder
format. Versions of Triton, the assemblers and torch are provenance: they are shown, never compared, since running an engine uses none.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trtllm_engines.compiler.plan import FORMAT_VERSION, KERNEL_ABI, Fingerprint
from trtllm_engines.documents import shown
from trtllm_engines.errors import EngineError
from trtllm_kernels import tactics

CPU = "cpu"
TACTICS = "tactics/"
"""Of an architecture, in a fingerprint's provenance: the GPU whose recorded tactics were taken."""
KNOWN_ARCHES = ("sm_80", "sm_86", "sm_89", "sm_90")
MIN_DRIVER: Mapping[int, str] = {12: "525.60.13", 13: "580.65.06"}
"""Oldest Linux driver for a CUDA major version (CUDA release notes, minor version compatibility)."""


@dataclass(frozen=True)
class DetectedDevice:
    """The GPU and driver an engine is about to run on."""

    arch: str
    driver: str
    name: str = ""


def parse_arches(arches: Sequence[str]) -> tuple[str, ...]:
    """Validated, without repeats; `cpu` means no machine code."""
    for arch in arches:
        if arch != CPU and arch not in KNOWN_ARCHES:
            raise EngineError(f"unknown architecture {arch!r}; supported are {CPU}, {', '.join(KNOWN_ARCHES)}")
    if not arches:
        raise EngineError(f"no architecture given; name at least one of {CPU}, {', '.join(KNOWN_ARCHES)}")
    return tuple(dict.fromkeys(arches))


def make_fingerprint(arches: Sequence[str], cuda_kernels: bool = False, gpu: str = "") -> Fingerprint:
    """Of an engine built here and now for `arches`. `cuda_kernels`: some of its kernels are in CUDA C++. `gpu`: whose recorded tactics it
    took, where there were such."""
    provenance = {"trtllm-bench": _version("trtllm-bench"), "torch": _version("torch")}
    min_driver = ""
    if any(arch != CPU for arch in arches):
        from trtllm_kernels.compile import nvrtc
        from trtllm_kernels.compile.aot import source_hashes

        provenance |= {f"{TACTICS}{arch}": name for arch in arches if arch != CPU and (name := tactics.in_use(arch, gpu))}
        assemblers = {"ptxas": ptxas_version()}
        if cuda_kernels:
            assemblers["nvrtc"] = nvrtc.version()
        newest = max(int(number.split(".")[0]) for number in assemblers.values())
        min_driver = oldest_driver(newest)
        provenance |= {"triton": _version("triton"), **assemblers}
        provenance |= {f"kernels/{name}": digest[:16] for name, digest in source_hashes().items()}
    return Fingerprint(tuple(arches), min_driver, KERNEL_ABI, FORMAT_VERSION, provenance)


@lru_cache(maxsize=1)
def ptxas_version() -> str:
    """Of the assembler in Triton's wheel, such as 12.8."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    text = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    return text.rsplit("release ", 1)[1].split(",")[0]


def detect_target(index: int = 0) -> DetectedDevice:
    """The GPU in this machine. Raises `EngineError` when there is none."""
    import torch

    if not torch.cuda.is_available():
        raise EngineError(
            "no usable NVIDIA GPU here (torch.cuda.is_available() is false); run with --device cpu, or see trtllm-bench doctor"
        )
    major, minor = torch.cuda.get_device_capability(index)
    return DetectedDevice(f"sm_{major}{minor}", _driver_version(), torch.cuda.get_device_name(index))


def _driver_version() -> str:
    import pynvml

    pynvml.nvmlInit()
    try:
        text: str | bytes = pynvml.nvmlSystemGetDriverVersion()
    finally:
        pynvml.nvmlShutdown()
    return text.decode() if isinstance(text, bytes) else text


def compatible_arch(arches: Sequence[str], device: str) -> str | None:
    """Which of `arches` runs on `device`: itself, or the newest older one of its major version (not on 9.x and later)."""
    if device in arches:
        return device
    number = int(device.removeprefix("sm_"))
    older = [int(a.removeprefix("sm_")) for a in arches if a != CPU and int(a.removeprefix("sm_")) // 10 == number // 10]
    runnable = [n for n in older if n <= number and n // 10 < 9]
    return f"sm_{max(runnable)}" if runnable else None


def check_target(fingerprint: Fingerprint, target: DetectedDevice, where: str, rebuild: str) -> str:
    """The architecture to run on `target`. Raises `EngineError` with the difference and the command that rebuilds."""
    arch = compatible_arch(fingerprint.arches, target.arch)
    if arch is None:
        raise EngineError(
            f"engine {where} was built for {', '.join(fingerprint.arches)} but this GPU{f' ({target.name})' if target.name else ''} "
            f"is {target.arch}; rebuild with: {rebuild}"
        )
    if is_older(target.driver, fingerprint.min_driver):
        raise EngineError(
            f"engine {where} needs NVIDIA driver {fingerprint.min_driver} or later but this machine has {target.driver}; "
            f"update the driver, or rebuild here with: {rebuild}"
        )
    return arch


def check_versions(format_version: object, kernel_abi: object, where: str, rebuild: str) -> None:
    """Raises `EngineError` when this release cannot run what that one wrote."""
    for what, theirs, ours in (("folder format", format_version, FORMAT_VERSION), ("kernel ABI", kernel_abi, KERNEL_ABI)):
        if theirs != ours:
            raise EngineError(
                f"engine {where} has {what} version {shown(theirs)} but this release runs version {ours}; rebuild with: {rebuild}"
            )


def oldest_driver(cuda_major: int) -> str:
    """The oldest driver that runs what a CUDA major version has compiled; for a version that is not known here, that of the nearest."""
    return MIN_DRIVER[max((major for major in MIN_DRIVER if major <= cuda_major), default=min(MIN_DRIVER))]


def is_older(driver: str, than: str) -> bool:
    """Compares two driver versions, such as 580.65.06, number by number."""
    return _numbers(driver) < _numbers(than)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
