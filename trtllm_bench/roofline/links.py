"""What the links between this machine's GPUs do: copies from GPU to GPU, and the time of a reduction over all of them by its size.

Each GPU needs a process of its own, as an engine's ranks have, so this starts `link_rank` under torchrun and reads what it wrote.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trtllm_bench.errors import BenchError

TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Links:
    gpus: int
    copy_bytes_per_s: float
    """From one GPU to another, one way, of the slowest pair."""
    all_reduce_us: Mapping[str, float] = field(default_factory=dict)
    """By bytes of the rows (bf16) as text: our kernel, fused with residual, RMS norm and fp8, in a CUDA graph."""
    nccl_all_reduce_us: Mapping[str, float] = field(default_factory=dict)
    """The same by NCCL and a kernel after it, as between hosts; here over these GPUs' links."""


def measure_links(gpus: int, seconds: float, tell: Callable[[str], None]) -> Links:
    """Over the first `gpus` GPUs, about `seconds` a figure. Raises `BenchError` when nothing could be measured."""
    from trtllm_engines.runtime.host_ranks import rank_environment

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "links.json"
        try:
            ended = subprocess.run(
                command(gpus, seconds, out), env=rank_environment(), capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S
            )
            said = "" if ended.returncode == 0 else _last_words(ended.stdout + ended.stderr)
        except subprocess.TimeoutExpired:
            said = f"not done after {TIMEOUT_S:g} s"
        if not out.exists():
            raise BenchError(f"the links between {gpus} GPUs could not be measured: {said or 'the processes wrote nothing'}")
        links = Links(**json.loads(out.read_text()))
    tell(f"links: copy {links.copy_bytes_per_s / 1e9:,.1f} GB/s one way ({gpus} GPUs, slowest pair)")
    for size, us in links.all_reduce_us.items():
        tell(reduction_text(int(size), us, links.nccl_all_reduce_us.get(size)))
    if said:
        tell(f"all-reduce{' by NCCL' if links.all_reduce_us else ''}: not here ({said[:160]})")
    return links


def command(gpus: int, seconds: float, out: Path) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(gpus)]
    return [*torchrun, "-m", "trtllm_bench.roofline.link_rank", "--seconds", str(seconds), "--out", str(out)]


def reduction_text(size: int, us: float, by_nccl_us: float | None = None) -> str:
    shown = f"{size / 2**20:g} MiB" if size >= 2**20 else f"{size / 2**10:g} KiB"
    return f"all-reduce: {shown} {us:,.1f} us" + ("" if by_nccl_us is None else f", by NCCL {by_nccl_us:,.1f} us")


def _last_words(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return (errors or lines or ["they said nothing"])[-1]
