"""One of two GPUs' processes in `test_ranks_gpu.py` and `test_hosts_gpu.py`: a reduction again and again in a CUDA graph, of other numbers
each time, through memory or by NCCL.

Every step's partial rows are made on the device from those before it, different on each rank. Every step's results go, as bits, into a
digest by element, `digest = 5 * digest + bits` modulo 2^32: 5 is odd, so one that differs once leaves the digests of the ranks different.
"""

from __future__ import annotations

import argparse
import faulthandler
from pathlib import Path

import torch
import torch.distributed as dist

from trtllm_bench.roofline.link_rank import lowered_reduction
from trtllm_kernels.compile.aot import compile_all
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.launch.nccl import Communicator, group_of, unique_id
from trtllm_kernels.launch.peers import PeerMemory

HIDDEN = 1024
IN_GRAPH = 500


def exchange(data: bytes) -> list[bytes]:
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    return [bytes(part.numpy()) for part in parts]


def run(rank: int, group: torch.Tensor, arena: torch.Tensor, rows: int, steps: int) -> dict[str, torch.Tensor]:
    """Digests of the normalised rows in fp8 (`y`) and of their sums (`total`); `residual`, `x` and `last` (y in fp32) of the last step."""
    count = rows * HIDDEN
    tensors = {
        "x": arena[: 2 * count].view(torch.bfloat16).view(rows, HIDDEN),
        "residual": torch.zeros(rows, HIDDEN, dtype=torch.bfloat16, device="cuda"),
        "weight": torch.ones(HIDDEN, dtype=torch.bfloat16, device="cuda"),
        "out_scale": torch.full((1,), 0.02, device="cuda"),
        "out0": arena[2 * count : 3 * count].view(torch.float8_e4m3fn).view(rows, HIDDEN),
        "out1": torch.zeros(rows, HIDDEN, dtype=torch.bfloat16, device="cuda"),
        "group": group,
    }
    torch.manual_seed(1)
    tensors["residual"].copy_(torch.randn(rows, HIDDEN))
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    lowered = lowered_reduction(tensors, arch)
    tensors |= {name: torch.empty_like(tensors["x"]) for name in lowered.workspaces}
    program = BoundProgram([lowered], tensors.__getitem__, compile_all(lowered.kernels, arch))
    program.set_symbols(T=0, R=0, D=0, S=0, C=0)
    torch.manual_seed(2 + rank)
    state = torch.randint(-(2**15), 2**15, (rows, HIDDEN), dtype=torch.int16).cuda()
    digests = {name: torch.zeros(rows, HIDDEN, dtype=torch.int32, device="cuda") for name in ("y", "total")}
    bits = {"y": tensors["out0"].view(torch.int8), "total": tensors["out1"].view(torch.int16)}

    def step() -> None:
        state.mul_(25173).add_(13849)  # a linear congruential generator, modulo 2^16
        torch.div(state, 8192, out=tensors["x"])
        program.run()
        for name, digest in digests.items():
            torch.add(bits[name], digest, alpha=5, out=digest)

    step()  # loads what is loaded lazily
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(IN_GRAPH):
            step()
    for _ in range(steps // IN_GRAPH):
        graph.replay()
    torch.cuda.synchronize()
    ends = {"residual": tensors["residual"], "x": tensors["x"], "last": tensors["out0"].float() * 0.02}
    return {name: tensor.cpu() for name, tensor in (digests | ends).items()}


def main() -> None:
    faulthandler.enable()
    parser = argparse.ArgumentParser()
    parser.add_argument("rank", type=int)
    parser.add_argument("--meet", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--by", choices=("memory", "nccl"), default="memory")
    options = parser.parse_args()
    faulthandler.dump_traceback_later(options.seconds, exit=True)
    torch.cuda.set_device(options.rank)
    dist.init_process_group("gloo", init_method=f"file://{options.meet}", rank=options.rank, world_size=2)
    needed = 3 * max(options.rows) * HIDDEN
    if options.by == "nccl":
        identity = exchange(unique_id() if options.rank == 0 else bytes(128))[0]
        arena = torch.zeros(needed, dtype=torch.uint8, device="cuda")
        group = group_of(Communicator(options.rank, 2, identity), arena.device)
    else:
        memory = PeerMemory(options.rank, 2, exchange)
        arena, group = memory.allocate(needed), memory.join(2 * HIDDEN, 1)
    torch.save({rows: run(options.rank, group, arena, rows, options.steps) for rows in options.rows}, options.out)
    dist.barrier()


if __name__ == "__main__":
    main()
