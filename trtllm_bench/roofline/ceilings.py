"""What this device can do at best, measured: GEMM rate of each number format, and memory bandwidth. The denominators of MFU and MBU.

Measured and not taken from a data sheet, because data sheets give rates at clocks that a board cannot hold: a long FP8 GEMM on an H100 is
limited by power and not by its tensor cores. So each figure is the mean over a second of continuous work on random data (zeros draw less
power and run faster), after warm-up, the best of a few large shapes. Kept in the cache folder under the device, its driver and its power
limit; a change of any of them measures anew. Where there are several GPUs, what their links do is measured beside (`links.py`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtllm_bench.errors import BenchError
from trtllm_results.errors import ResultsError
from trtllm_results.record.environment import MACHINE, Environment
from trtllm_results.store.document import as_kind, read_document
from trtllm_results.store.files import write_text

if TYPE_CHECKING:
    import torch

GPU_SHAPES = ((8192, 8192, 8192), (4096, 28672, 4096))
CPU_SHAPES = ((1024, 1024, 1024),)
"""(M, N, K)"""
GPU_BUFFER_BYTES, CPU_BUFFER_BYTES = 1 << 30, 1 << 27


@dataclass(frozen=True)
class Ceilings:
    """`flops_per_s` by number format; formats the device lacks are left out. `read` and `copy` in bytes/s (copy counts both ways)."""

    device: str
    flops_per_s: Mapping[str, float]
    copy_bytes_per_s: float
    read_bytes_per_s: float
    measured_s: float
    """How long each figure was measured."""
    key: str
    link_gpus: int = 0
    """GPUs between which links were measured (`roofline/links.py`); 0 where there is one, or they were not."""
    peer_copy_bytes_per_s: float = 0.0
    """From one GPU to another, one way, of the slowest pair."""
    all_reduce_us: Mapping[str, float] = field(default_factory=dict)
    """Microseconds of a reduction over them, by bytes of the rows in bf16 as text."""
    nccl_all_reduce_us: Mapping[str, float] = field(default_factory=dict)
    """The same by NCCL."""

    def peak(self, number_format: str) -> float:
        """FLOP/s, 0 for a format without one. That of int8 is no less than fp8's: tensor cores have one rate for both, and the library
        whose GEMM is measured reaches two thirds of it in int8."""
        rate = self.flops_per_s.get(number_format, 0.0)
        return max(rate, self.flops_per_s.get("fp8", 0.0)) if number_format == "int8" else rate

    @property
    def bytes_per_s(self) -> float:
        return max(self.copy_bytes_per_s, self.read_bytes_per_s)


def key_of(environment: Environment) -> str:
    """What the ceilings depend on, hashed."""
    parts = {name: getattr(environment, name) for name in (*MACHINE, "torch") if environment.gpu or name in ("cpu", "cpu_count", "torch")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def cache_file(environment: Environment) -> Path:
    from trtllm_kernels.files import cache_folder

    return cache_folder() / "ceilings" / f"{key_of(environment)}.json"


def cached(environment: Environment) -> Ceilings | None:
    """The ceilings measured here before, or None. An unreadable file counts as none."""
    try:
        return as_kind(Ceilings, read_document(cache_file(environment)), "")
    except (OSError, ResultsError):
        return None


def load(path: Path) -> Ceilings:
    """Ceilings kept in a file, such as another machine's. Raises `BenchError`."""
    try:
        return as_kind(Ceilings, read_document(path), path)
    except (OSError, ResultsError) as error:
        raise BenchError(f"{path} does not hold ceilings as trtllm-bench ceilings keeps them ({error})") from None


def keep(ceilings: Ceilings, environment: Environment) -> Path:
    path = cache_file(environment)
    write_text(path, json.dumps(asdict(ceilings), indent=1, sort_keys=True) + "\n")
    return path


def measure(environment: Environment, seconds: float = 1.0, tell: Callable[[str], None] | None = None) -> Ceilings:
    """Measures the device of `environment`: the GPU, or the CPU where there is none. `tell` hears of each figure."""
    import torch

    device = torch.device("cuda" if environment.gpu else "cpu")
    heard = tell or (lambda line: None)
    shapes = GPU_SHAPES if device.type == "cuda" else CPU_SHAPES
    flops: dict[str, float] = {}
    for name, make in _gemms(device).items():
        best = 0.0
        for shape in shapes:
            try:
                seconds_each = _seconds_each(make(*shape), device, seconds)
            except (RuntimeError, NotImplementedError, TypeError) as error:
                heard(f"{name}: not here ({str(error).splitlines()[0][:80]})")
                break
            best = max(best, 2.0 * shape[0] * shape[1] * shape[2] / seconds_each)
        if best:
            flops[name] = best
            heard(f"{name}: {rate_text(best)}")
    copy, read = _bandwidth(device, seconds)
    heard(f"memory: copy {copy / 1e9:,.1f} GB/s, read {read / 1e9:,.1f} GB/s")
    return Ceilings(environment.device, flops, copy, read, seconds, key_of(environment))


def with_links(ceilings: Ceilings, gpus: int, seconds: float = 1.0, tell: Callable[[str], None] | None = None) -> Ceilings:
    """With what the links between the first `gpus` GPUs do; as they are on fewer than two. Raises `BenchError`."""
    from trtllm_bench.roofline.links import measure_links

    if gpus < 2:
        return ceilings
    links = measure_links(gpus, seconds, tell or (lambda line: None))
    return replace(
        ceilings,
        link_gpus=links.gpus,
        peer_copy_bytes_per_s=links.copy_bytes_per_s,
        all_reduce_us=dict(links.all_reduce_us),
        nccl_all_reduce_us=dict(links.nccl_all_reduce_us),
    )


def rate_text(flops_per_s: float) -> str:
    return f"{flops_per_s / 1e12:,.1f} TFLOP/s" if flops_per_s >= 1e12 else f"{flops_per_s / 1e9:,.1f} GFLOP/s"


def _gemms(device: torch.device) -> dict[str, Callable[[int, int, int], Callable[[], Any]]]:
    """For each number format, a maker of a GEMM of (M, N, K) as the engine runs it."""
    import torch

    def draw(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(rows, columns, device=device, dtype=torch.float32).to(dtype)

    def floats(dtype: torch.dtype) -> Callable[[int, int, int], Callable[[], Any]]:
        def make(m: int, n: int, k: int) -> Callable[[], Any]:
            a, b, out = draw(m, k, dtype), draw(n, k, dtype), torch.empty(m, n, device=device, dtype=dtype)
            return lambda: torch.mm(a, b.t(), out=out)

        return make

    def fp8(m: int, n: int, k: int) -> Callable[[], Any]:
        a, b = draw(m, k, torch.float8_e4m3fn), draw(n, k, torch.float8_e4m3fn)
        one = torch.ones((), device=device)
        return lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)

    def int8(m: int, n: int, k: int) -> Callable[[], Any]:
        a, b = (torch.randint(-127, 128, (rows, k), device=device, dtype=torch.int8) for rows in (m, n))
        return lambda: torch._int_mm(a, b.t())

    if device.type == "cpu":
        return {"fp32": floats(torch.float32), "bf16": floats(torch.bfloat16)}
    return {"bf16": floats(torch.bfloat16), "fp16": floats(torch.float16), "fp8": fp8, "int8": int8, "fp32": floats(torch.float32)}


def _seconds_each(work: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Mean time of one call over about `seconds` of continuous calls."""

    def run(calls: int) -> float:
        _wait(device)
        began = time.perf_counter()
        for _ in range(calls):
            work()
        _wait(device)
        return time.perf_counter() - began

    run(2)
    calls = max(1, int(0.1 * seconds / max(run(3) / 3, 1e-9)))
    each = run(calls) / calls
    calls = max(3, int(seconds / each))
    return run(calls) / calls


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _bandwidth(device: torch.device, seconds: float) -> tuple[float, float]:
    """(copy, read) in bytes/s; a copy moves its bytes twice."""
    import torch

    count = (GPU_BUFFER_BYTES if device.type == "cuda" else CPU_BUFFER_BYTES) // 4
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    copy = 2 * 4 * count / _seconds_each(lambda: target.copy_(source), device, seconds)
    read = 4 * count / _seconds_each(lambda: torch.sum(source), device, seconds)
    return copy, read
