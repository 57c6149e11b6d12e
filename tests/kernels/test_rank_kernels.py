"""Kernels in which 4 and 8 ranks exchange data, on the host (`emulation/ranks.cpp`), in a random order of ranks and threads."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from trtllm_kernels.compile import nvrtc
from trtllm_kernels.dialect.group import group_spec
from trtllm_kernels.dialect.types import TensorSpec
from trtllm_kernels.launch import peers
from trtllm_kernels.lowering import lower

HIDDEN = 512
ROUNDS = 12
STACK = 32768
EMULATION = Path(__file__).parent / "emulation"
REDUCE = "KERNEL((char*)p[0], (char*)p[1], (char*)p[2], (float*)p[3], (Group*)p[4], (char*)p[5], (char*)p[6], 1e-5f, of.rows)"
EXCHANGE = "KERNEL((long long*)p[0], (Group*)p[1], (int*)p[2], (int*)p[3], (int*)p[4], (int*)p[5], (int*)p[6], of.rows, MOST_ROWS)"
EMPTY = -(1 << 63)


class Launch(ctypes.Structure):
    _fields_ = (
        ("arguments", ctypes.c_void_p * 8),
        ("rows", ctypes.c_int),
        ("grid", ctypes.c_int),
        ("input", ctypes.c_void_p),
        ("output", ctypes.c_void_p),
        ("input_bytes", ctypes.c_long),
        ("output_bytes", ctypes.c_long),
    )


@dataclass(frozen=True)
class Turn:
    """A launch on one rank. `given` is written into the first argument before, and `taken` gets what the result has after it."""

    arguments: list[torch.Tensor]
    rows: int
    blocks: int
    given: torch.Tensor
    taken: torch.Tensor


def compiled(kernel: str, call: str, result: int, constants: Mapping[str, int], folder: Path) -> ctypes.CDLL:
    """`result`: number of the argument that the kernel fills."""
    for source in (f"{kernel}.cu", "all_reduce.cuh", "group.cuh"):
        text = (nvrtc.SOURCES / source).read_text()
        (folder / source).write_text(text.replace("__shared__ float sums[THREADS / 32];", "float* sums = (float*)memory;"))
    for header in ("hopper.cuh", "peer_memory.cuh"):
        (folder / header).write_text((EMULATION / header).read_text())
    named = {**constants, "FP8": 0, "STACK": STACK, "KERNEL": kernel, "CALL": call, "RESULT": result}
    macros = [f"-D{name}={value}" for name, value in named.items()]
    command = ["g++", "-std=c++17", "-O1", "-w", "-shared", "-fPIC", f"-I{folder}", *macros, f'-DKERNEL_SOURCE="{kernel}.cu"']
    done = subprocess.run(
        [*command, str(EMULATION / "ranks.cpp"), "-o", str(folder / "ranks.so")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[:3000]
    return ctypes.CDLL(str(folder / "ranks.so"))


def run(code: ctypes.CDLL, turns: list[list[Turn]], threads: int) -> None:
    """Of each rank, one launch after another."""
    flat = [turn for rank in turns for turn in rank]
    array = (Launch * len(flat))()
    for place, turn in zip(array, flat, strict=True):
        place.rows, place.grid = turn.rows, turn.blocks
        for index, tensor in enumerate(turn.arguments):
            place.arguments[index] = tensor.data_ptr()
        place.input, place.input_bytes = turn.given.data_ptr(), turn.given.nbytes
        place.output, place.output_bytes = turn.taken.data_ptr(), turn.taken.nbytes
    most = max(turn.blocks for turn in flat)
    assert code.emulate(array, len(turns), len(turns[0]), most, threads, 1, ctypes.c_long(30_000_000)) == 0, "ranks wait for ever"


@pytest.fixture
def joined(
    exchanges: Callable[[int], list[Callable[[bytes], list[bytes]]]], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, int, int], tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """(arenas, groups) of so many ranks, of so many bytes and sampled rows, in this process's memory."""
    monkeypatch.setattr(peers, "_allocated", lambda nbytes: torch.zeros(nbytes, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    kept = []

    def join(ranks: int, nbytes: int, most_rows: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        def of(rank: int, exchange: Callable[[bytes], list[bytes]]) -> tuple[torch.Tensor, torch.Tensor]:
            memory = peers.PeerMemory(rank, ranks, exchange)
            kept.append(memory)
            return memory.allocate(nbytes), memory.join(2 * HIDDEN, most_rows)

        with ThreadPoolExecutor(ranks) as pool:
            both = list(pool.map(of, range(ranks), exchanges(ranks)))
        return [arena for arena, _ in both], [group for _, group in both]

    return join


@pytest.mark.parametrize(("kernel", "ranks"), [("all_reduce_one_shot", 8), ("all_reduce_two_shot", 4)])
def test_reductions_give_every_rank_the_same_bits_whoever_is_ahead(
    kernel: str, ranks: int, joined: Callable[[int, int, int], tuple[list[torch.Tensor], list[torch.Tensor]]], tmp_path: Path
) -> None:
    rows = TensorSpec(("T", HIDDEN), "bf16")
    inputs = [rows, rows, TensorSpec((HIDDEN,), "bf16"), group_spec(ranks), TensorSpec((1,), "fp32")]
    lowered = lower("all_reduce_add_rms_norm", inputs, [TensorSpec(("T", HIDDEN), "fp8"), rows], {"eps": 1e-5}, "sm_90")
    spec = next(spec for spec in lowered.kernels if spec.function == kernel)
    code = compiled(kernel, REDUCE, 5, spec.constexprs, tmp_path)
    most = 3
    arenas, groups = joined(ranks, 3 * most * HIDDEN, 1)
    torch.manual_seed(0)
    sizes = torch.randint(1, most + 1, (ROUNDS,)).tolist()
    x = torch.randn(ranks, ROUNDS, most, HIDDEN).bfloat16()
    x[torch.rand(x.shape) < 0.1] = -0.0  # above +0 it is the word that stands for absence
    x[torch.rand(x.shape) < 0.1] = 0.0
    y = torch.zeros(ranks, ROUNDS, most, HIDDEN, dtype=torch.uint8)
    residual, weight, scale = torch.randn(ROUNDS, most, HIDDEN).bfloat16(), torch.randn(HIDDEN).bfloat16(), torch.full((1,), 0.05)
    total = torch.zeros(ranks, ROUNDS, most, HIDDEN, dtype=torch.bfloat16)
    turns = [
        [
            Turn(
                [arena, residual[turn], weight, scale, groups[rank], arena[2 * most * HIDDEN :], total[rank, turn]],
                size,
                size if kernel == "all_reduce_one_shot" else 3,
                x[rank, turn, :size],
                y[rank, turn, :size],
            )
            for turn, size in enumerate(sizes)
        ]
        for rank, arena in enumerate(arenas)
    ]
    run(code, turns, 32 * spec.num_warps)
    for turn, size in enumerate(sizes):
        summed = torch.zeros(size, HIDDEN)
        for part in x:
            summed += part[turn, :size].float()
        expected = (summed.bfloat16().float() + residual[turn, :size].float()).bfloat16()
        share = -(-size // ranks) if kernel == "all_reduce_two_shot" else size
        for rank in range(ranks):
            own = slice(rank * share, min(size, (rank + 1) * share)) if kernel == "all_reduce_two_shot" else slice(0, size)
            assert torch.equal(total[rank, turn, own], expected[own])
            assert torch.equal(y[rank, turn, :size], y[0, turn, :size])
        wide = expected.float()
        normed = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + 1e-5) * weight.float()
        found = y[0, turn, :size].view(torch.float8_e4m3fn).float() * scale
        torch.testing.assert_close(found, normed, atol=0.01, rtol=0.07)


def test_every_rank_has_the_token_of_the_largest_word_of_all(
    joined: Callable[[int, int, int], tuple[list[torch.Tensor], list[torch.Tensor]]], tmp_path: Path
) -> None:
    ranks, most, threads = 4, 80, 32
    constants = {"WORLD": ranks, "THREADS": threads, "MOST_ROWS": most, "HALF": 0, "OUT_HALF": 0}
    code = compiled("exchange_words", EXCHANGE, 4, constants, tmp_path)
    _, groups = joined(ranks, 1, most)
    torch.manual_seed(0)
    sizes = torch.randint(1, most + 1, (ROUNDS,)).tolist()
    columns = torch.randint(0, 1 << 17, (ranks, ROUNDS, most))
    words = (torch.randint(-0x7F000000, 0x7F000000, (ranks, ROUNDS, most)) << 32) | (0x7FFFFFFF - columns)
    expected = 0x7FFFFFFF - (words.amax(0) & 0xFFFFFFFF)
    scratch, slots = torch.zeros(ranks, most, dtype=torch.int64), torch.stack([torch.randperm(most) for _ in range(ROUNDS)]).int()
    zero, tokens = torch.zeros(1, dtype=torch.int32), torch.zeros(ranks, most, dtype=torch.int32)
    taken, last, ring = (torch.zeros(ranks, ROUNDS, most, dtype=torch.int32) for _ in range(3))
    turns = [
        [
            Turn(
                [scratch[rank], groups[rank], slots[turn], zero, tokens[rank], last[rank, turn], ring[rank, turn]],
                size,
                -(-size // threads),
                words[rank, turn, :size],
                taken[rank, turn, :size],
            )
            for turn, size in enumerate(sizes)
        ]
        for rank in range(ranks)
    ]
    run(code, turns, threads)
    assert (scratch[:, : sizes[-1]] == EMPTY).all()
    for turn, size in enumerate(sizes):
        for rank in range(ranks):
            for found in (taken[rank, turn, :size], ring[rank, turn, :size], last[rank, turn, slots[turn, :size].long()]):
                assert torch.equal(found.long(), expected[turn, :size])
