"""One GPU's process while links are measured (`links.py`); by hand: torchrun --nproc-per-node 2 -m trtllm_bench.roofline.link_rank --out F.

Reductions run as in an engine of fp8: the launches of the op's own lowering, many in a CUDA graph, both ways that ranks exchange data. What
is timed is the mean of a graph's calls, of the slowest rank.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from trtllm_bench.roofline.hardware import LINK_ROW_ELEMENTS
from trtllm_bench.roofline.links import Links
from trtllm_kernels.dialect.specs import spec_of
from trtllm_kernels.dialect.types import Lowered
from trtllm_kernels.lowering import lower

HIDDEN = LINK_ROW_ELEMENTS
ROWS = (1, 4, 16, 32, 64, 128, 256, 512, 2048, 8192)
"""16 KiB to 128 MiB of bf16."""
NCCL_ROWS = ROWS[:-1]
"""To 32 MiB."""
CALLS = 20
"""Reductions in a graph."""
COPY_BYTES = 1 << 28


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trtllm_bench.roofline.link_rank")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("gloo")
    copy = _slowest_copy(size, options.seconds) if rank == 0 else 0.0

    def write(*curves: dict[str, float]) -> None:
        if rank == 0:
            options.out.write_text(json.dumps(asdict(Links(size, copy, *curves))))

    write()  # stays if reductions cannot be measured
    dist.barrier()
    by_memory = _by_memory(rank, size, options.seconds)
    write(by_memory)
    dist.barrier()
    write(by_memory, _by_nccl(rank, size, options.seconds))
    dist.barrier()
    dist.destroy_process_group()


def _slowest_copy(gpus: int, seconds: float) -> float:
    """Bytes/s one way, of the slowest ordered pair of GPUs."""
    slowest = float("inf")
    for source, target in itertools.permutations(range(gpus), 2):
        a = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=f"cuda:{source}")
        b = torch.empty(COPY_BYTES, dtype=torch.uint8, device=f"cuda:{target}")
        with torch.cuda.device(source):

            def copy(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
                b.copy_(a, non_blocking=True)

            each = _seconds(copy, 3)
            each = _seconds(copy, max(3, int(min(seconds, 0.3) / each)))
        slowest = min(slowest, COPY_BYTES / each)
    return slowest


def _seconds(work: Callable[[], Any], calls: int) -> float:
    """Mean of `calls` on the current device, after one more."""
    work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / calls / 1e3


def _exchange(data: bytes) -> list[bytes]:
    """Every rank's bytes, which are as many on each, in rank order."""
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return [bytes(part.numpy()) for part in parts]


def _by_memory(rank: int, size: int, seconds: float) -> dict[str, float]:
    """`_curve` of our kernels. Raises `KernelError` where there are none for this GPU, or no peer access."""
    from trtllm_kernels.launch.peers import PeerMemory

    most = ROWS[-1] * HIDDEN
    memory = PeerMemory(rank, size, _exchange)
    arena = memory.allocate(3 * most)  # x in bf16, then y in fp8: what peers reach
    curve = _curve(ROWS, arena, memory.join(2 * HIDDEN, 1), seconds)
    memory.close()
    return curve


def _by_nccl(rank: int, size: int, seconds: float) -> dict[str, float]:
    """`_curve` of NCCL. Raises `KernelError` where it cannot join these GPUs."""
    from trtllm_kernels.launch.nccl import Communicator, group_of, unique_id

    made = unique_id() if rank == 0 else bytes(128)
    communicator = Communicator(rank, size, _exchange(made)[0])
    arena = torch.empty(3 * NCCL_ROWS[-1] * HIDDEN, dtype=torch.uint8, device="cuda")
    return _curve(NCCL_ROWS, arena, group_of(communicator, arena.device), seconds)


def _curve(counts: Sequence[int], arena: torch.Tensor, group: torch.Tensor, seconds: float) -> dict[str, float]:
    """Microseconds of a reduction by bytes of its rows. `arena`: uint8, room for the most rows in bf16 and in fp8."""
    from trtllm_kernels.compile.aot import compile_all
    from trtllm_kernels.launch.driver import BoundProgram

    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    most = counts[-1]
    tensors = {
        "x": arena[: 2 * most * HIDDEN].view(torch.bfloat16).view(-1, HIDDEN),
        "residual": torch.randn(most, HIDDEN, device="cuda").to(torch.bfloat16),
        "weight": torch.ones(HIDDEN, dtype=torch.bfloat16, device="cuda"),
        "out_scale": torch.full((1,), 0.05, device="cuda"),
        "out0": arena[2 * most * HIDDEN :].view(torch.float8_e4m3fn).view(-1, HIDDEN),
        "out1": torch.empty(most, HIDDEN, dtype=torch.bfloat16, device="cuda"),
        "group": group,
    }
    tensors["x"].copy_(torch.randn(most, HIDDEN, device="cuda"))
    curve = {}
    for rows in counts:
        of_rows = {name: tensor if tensor.dim() < 2 else tensor[:rows] for name, tensor in tensors.items()}
        lowered = lowered_reduction(of_rows, arch)
        of_rows |= {name: torch.empty_like(of_rows["x"]) for name in lowered.workspaces}
        program = BoundProgram([lowered] * CALLS, of_rows.__getitem__, compile_all(lowered.kernels, arch))
        program.set_symbols(T=0, R=0, D=0, S=0, C=0)
        program.run()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            program.run()
        replays = max(3, int(seconds / (CALLS * _slowest(_seconds(graph.replay, 3) / CALLS))))
        curve[str(2 * rows * HIDDEN)] = _slowest(_seconds(graph.replay, min(replays, 1000)) / CALLS) * 1e6
    return curve


def lowered_reduction(tensors: Mapping[str, torch.Tensor], arch: str) -> Lowered:
    """The launches of the fused op on these, by argument name; results are `out0` and `out1`."""
    inputs = [spec_of(tensors[name]) for name in ("x", "residual", "weight", "group", "out_scale")]
    outputs = [spec_of(tensors[name]) for name in ("out0", "out1")]
    return lower("all_reduce_add_rms_norm", inputs, outputs, {"eps": 1e-5}, arch)


def _slowest(seconds: float) -> float:
    """The largest of all ranks': so all agree on it, and hence on how often to repeat."""
    return max(float(struct.unpack("<d", part)[0]) for part in _exchange(struct.pack("<d", seconds)))


if __name__ == "__main__":
    main()
