"""What stages of a pipeline send each other on a GPU: two ends in one process, on two streams of one GPU, whose memory is not exported."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from trtllm_kernels.compile.aot import compile_all
from trtllm_kernels.dialect.group import pipe_spec
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.launch import peers
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.lowering import lower

pytestmark = pytest.mark.gpu
MOST, WIDE = 700, 4096


@pytest.fixture
def ends(exchanges: Callable[[int], list[Callable[[bytes], list[bytes]]]]) -> list[tuple[peers.PipeMemory, torch.Tensor]]:
    def join(rank: int, exchange: Callable[[bytes], list[bytes]]) -> tuple[peers.PipeMemory, torch.Tensor]:
        memory = peers.PipeMemory(rank, 2, 1, exchange)
        return memory, memory.join(2 * WIDE, MOST)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(join, range(2), exchanges(2)))


def program(op: str, tensors: dict[str, torch.Tensor]) -> BoundProgram:
    rows = TensorSpec(("T", WIDE), "bf16")
    arch = "sm_{}{}".format(*torch.cuda.get_device_capability())
    lowered = lower(op, [rows, pipe_spec()], [rows], {}, arch, in_place=op == "send")
    return BoundProgram([lowered], tensors.__getitem__, compile_all(lowered.kernels, arch))


@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 64, MOST])
def test_rows_arrive_whole_and_in_order_whoever_is_ahead(
    ends: list[tuple[peers.PipeMemory, torch.Tensor]], rows: int, graphs: bool
) -> None:
    x, y = (torch.zeros(MOST, WIDE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    sends = program("send", {"x": x, "pipe": ends[0][1], "out0": x})
    receives = program("receive", {"hidden": x, "pipe": ends[1][1], "out0": y})
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    rounds = 60
    sent = torch.randint(-128, 128, (rounds, rows, WIDE), device="cuda").to(torch.bfloat16)
    arrived = torch.zeros_like(sent)
    for one in (sends, receives):
        one.set_symbols(T=rows, R=1, D=0, S=0, C=0)
    torch.cuda.synchronize()

    def step(index: int, turn: int) -> None:
        if index == 0:
            x[:rows].copy_(sent[turn])
            sends.run()
        else:
            receives.run()
            arrived[turn].copy_(y[:rows])

    if not graphs:
        for index in (0, 1):
            with torch.cuda.stream(streams[index]):
                for turn in range(rounds):
                    if index == 0 or turn % 7:
                        torch.cuda._sleep(20_000 * (turn % 5))
                    step(index, turn)
    else:
        captured = []
        for index in (0, 1):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=streams[index]):
                for turn in range(rounds):
                    step(index, turn)
            captured.append(graph)
        for _ in range(3):
            for graph, stream in zip(captured, streams, strict=True):
                with torch.cuda.stream(stream):
                    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(arrived, sent)
    counted = [pipe.cpu().view(torch.int32)[1:3].tolist() for _, pipe in ends]
    assert counted == [[rounds * (3 if graphs else 1), 0], [0, rounds * (3 if graphs else 1)]]
