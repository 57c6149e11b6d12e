"""What this machine is and what of the bench will work on it, found without importing torch where that can be avoided.

`doctor` prints the checks; commands ask `has_gpu()` to choose their defaults. A check is data: what was looked at, what was found, whether
that is fine, limits something, or stops the main job, and what mends it.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

from trtllm_kernels.dialect.dtypes import FP8_CAPABILITY, OLDEST_CAPABILITY
from trtllm_results.record.environment import read_gpu

State = Literal["ok", "limit", "stop"]
MIN_FREE_GIB = 5
"""The largest default engine keeps no weights on disk; this covers wheels' caches, engines of small models and results."""


@dataclass(frozen=True)
class Check:
    what: str
    state: State
    found: str
    fix: str = ""


def gpus() -> list[dict[str, Any]]:
    """The NVIDIA GPUs visible to this process, as `read_gpu` describes them; empty without a driver or a GPU."""
    first = read_gpu(0)
    return [first, *map(read_gpu, range(1, int(first["gpu_count"])))] if first else []


def has_gpu() -> bool:
    return bool(gpus())


def arch_of(gpu: Mapping[str, Any]) -> str:
    """`sm_90` for compute capability 9.0."""
    return f"sm_{_capability_of(gpu)}"


def _capability_of(gpu: Mapping[str, Any]) -> int:
    """90 for compute capability 9.0."""
    return int(str(gpu["compute_capability"]).replace(".", ""))


def checks(folder: Path) -> Iterator[Check]:
    """Every check of `doctor`, in the order to read them. `folder`: where results would be written."""
    yield _python()
    yield from _packages()
    devices = gpus()
    yield from _gpu_checks(devices)
    yield _compiler()
    yield from _precisions(devices)
    yield _disk(folder)
    yield _memory()
    yield from _profilers()


def _python() -> Check:
    python = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 12):
        return Check("Python", "stop", python, "use Python 3.11 or 3.12")
    if platform.system() != "Linux":
        return Check("Python", "limit", python, "kernels compile and run on Linux only; CPU engines work here")
    return Check("Python", "ok", python)


def _packages() -> Iterator[Check]:
    from packaging.requirements import Requirement

    try:
        declared = [Requirement(line) for line in requires("trtllm-bench") or []]
    except PackageNotFoundError:
        yield Check("packages", "stop", "trtllm-bench itself is not installed", "python3 -m pip install -e . in the repository")
        return
    wrong, shown = [], []
    for requirement in declared:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            have = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(have, prereleases=True):
            wrong.append(f"{requirement.name} {have} is not {requirement.specifier}")
        if requirement.name in ("torch", "triton"):
            shown.append(f"{requirement.name} {have}")
    if wrong:
        yield Check("packages", "stop", "; ".join(wrong), "python3 -m pip install -U trtllm-bench (or -e . in the repository)")
    else:
        yield Check("packages", "ok", f"{len(declared)} dependencies in range, " + ", ".join(shown))


def _gpu_checks(devices: list[dict[str, Any]]) -> Iterator[Check]:
    from trtllm_engines.compiler.fingerprint import MIN_DRIVER, is_older

    if not devices:
        yield Check("GPU", "limit", _why_no_gpu(), "engines run on the CPU; engines for GPUs can still be built with build --arch")
        return
    for index, gpu in enumerate(devices):
        power = f", {gpu['power_limit_w']:.0f} W" if gpu.get("power_limit_w") else ""
        yield Check(f"GPU {index}", "ok", f"{gpu['gpu']}, {arch_of(gpu)}, {gpu.get('gpu_memory_gib', 0):.0f} GiB{power}")
    driver = f"{devices[0]['driver']} (CUDA {devices[0].get('cuda', 'unknown')})"
    oldest = MIN_DRIVER[min(MIN_DRIVER)]
    if is_older(devices[0]["driver"], oldest):
        yield Check("driver", "stop", driver, f"install driver {oldest} or newer")
    else:
        yield Check("driver", "ok", driver)
    if _capability_of(devices[0]) < OLDEST_CAPABILITY:
        yield Check("architecture", "stop", arch_of(devices[0]), f"engines need sm_{OLDEST_CAPABILITY} (A100) or newer; use --device cpu")
    yield _torch_cuda(devices[0]["driver"])


def _why_no_gpu() -> str:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "unset").strip() in ("", "-1"):
        return "hidden by CUDA_VISIBLE_DEVICES"
    return "none found (no NVIDIA driver answers)"


def _torch_cuda(driver: str) -> Check:
    import torch

    from trtllm_engines.compiler.fingerprint import is_older, oldest_driver

    if torch.version.cuda is None:
        return Check(
            "torch",
            "stop",
            f"{torch.__version__} has no CUDA",
            "python3 -m pip install --force-reinstall torch from PyPI (not a +cpu wheel)",
        )
    needed = oldest_driver(int(torch.version.cuda.split(".")[0]))
    if is_older(driver, needed):
        return Check("torch", "stop", f"{torch.__version__} needs driver {needed} or newer", f"install driver {needed} or newer")
    if not torch.cuda.is_available():
        return Check("torch", "stop", f"{torch.__version__} cannot open the GPU", "check nvidia-smi, permissions of /dev/nvidia*, MIG mode")
    return Check("torch", "ok", f"{torch.__version__} opens the GPU (CUDA {torch.version.cuda})")


def _compiler() -> Check:
    try:
        from importlib.util import find_spec

        location = find_spec("triton")
    except ImportError:
        location = None
    if location is None or location.origin is None:
        return Check("kernel compiler", "limit", "Triton is missing", "python3 -m pip install triton; built engines run without it")
    ptxas = Path(location.origin).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not ptxas.exists():
        return Check("kernel compiler", "limit", "Triton has no ptxas", "reinstall triton from PyPI; built engines run without it")
    from trtllm_kernels.compile import nvrtc
    from trtllm_kernels.errors import KernelError

    try:
        cuda = nvrtc.version()
    except KernelError as error:
        reason, _, cure = str(error).partition("; ")
        return Check("kernel compiler", "limit", reason, f"{cure}; built engines run without it")
    return Check("kernel compiler", "ok", f"Triton {version('triton')} and NVRTC {cuda}: build engines for any GPU here")


def _precisions(devices: list[dict[str, Any]]) -> Iterator[Check]:
    if not devices:
        yield Check("precisions", "ok", "fp32, fp16, bf16, fp8 on the CPU (reference speed: figures say nothing of a GPU)")
        return
    arch = arch_of(devices[0])
    if _capability_of(devices[0]) < FP8_CAPABILITY:
        lacks, needs = f"fp32, fp16, bf16 on {arch}, which has no fp8", f"fp8 engines need sm_{FP8_CAPABILITY} (Ada) or newer"
        yield Check("precisions", "limit", lacks, needs)
    else:
        yield Check("precisions", "ok", f"fp32, fp16, bf16, fp8 on {arch}")


def _disk(folder: Path) -> Check:
    existing = next(path for path in (folder, *Path(os.path.realpath(folder)).parents) if path.exists())
    if not existing.is_dir():
        return Check("disk", "stop", f"{existing} is a file, and results go into a folder", "give another --out")
    if not os.access(existing, os.W_OK):
        return Check("disk", "stop", f"{existing} is not writable", "run elsewhere, or give --out")
    free = shutil.disk_usage(existing).free / 2**30
    if free < MIN_FREE_GIB:
        return Check("disk", "limit", f"{free:.1f} GiB free at {existing}", f"free at least {MIN_FREE_GIB} GiB, or give --out elsewhere")
    return Check("disk", "ok", f"{free:.0f} GiB free at {existing}")


def _memory() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        return Check("CPU", "ok", f"{cores} cores")
    size = f"{cores} cores, {total:.0f} GiB memory"
    return Check("CPU", "ok", size) if total >= 4 else Check("CPU", "limit", size, "tiny-llama fits; larger models on the CPU will not")


def _profilers() -> Iterator[Check]:
    for tool, name in (("nsys", "Nsight Systems"), ("ncu", "Nsight Compute")):
        path = shutil.which(tool)
        if path:
            yield Check(name, "ok", path)
        else:
            yield Check(name, "limit", "not installed", f"optional: install {name} to profile with {tool}")


def as_rows(checks: list[Check]) -> list[dict[str, str]]:
    return [asdict(check) for check in checks]
