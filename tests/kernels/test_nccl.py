"""What ranks exchange by NCCL, by a library of the same functions among threads (`fake_nccl.c`); tests/gpu has NCCL itself."""

from __future__ import annotations

import ctypes
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trtllm_engines.runtime import nccl_watch
from trtllm_engines.runtime.nccl_watch import NcclWatch
from trtllm_kernels.dialect.group import group_spec, pipe_spec, ranks_of, way_of
from trtllm_kernels.dialect.types import Arg, Launch, Lowered, TensorSpec
from trtllm_kernels.errors import KernelError
from trtllm_kernels.launch import nccl
from trtllm_kernels.launch.driver import BoundProgram
from trtllm_kernels.launch.nccl import Communicator, group_of, pipe_of, unique_id
from trtllm_kernels.lowering import lower

MOST, WIDE = 7, 16
load_library = nccl.library
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def entry(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    built = tmp_path_factory.mktemp("nccl") / "libnccl.so.2"
    source = Path(__file__).with_name("fake_nccl.c")
    subprocess.run(["gcc", "-O0", "-shared", "-fPIC", str(source), "-o", str(built), "-lpthread"], check=True)
    return ctypes.CDLL(str(built))


@pytest.fixture(autouse=True)
def library(entry: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> ctypes.CDLL:
    loaded = nccl.Library(entry)
    monkeypatch.setattr(nccl, "library", lambda: loaded)
    monkeypatch.setattr(nccl, "_COMMUNICATORS", {})
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=77))
    return entry


def on_ranks(size: int, work: Callable[[Communicator], Any], apart: int = 0) -> list[Any]:
    """What `work` gives on each of so many ranks, which are threads."""
    identity = unique_id()
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(lambda rank: work(Communicator(rank, size, identity, apart, CPU)), range(size)))


def program(lowered: Lowered, tensors: dict[str, torch.Tensor], tokens: int) -> BoundProgram:
    bound = BoundProgram([Lowered(tuple(launch for launch in lowered.launches if launch.library))], tensors.__getitem__, {})
    bound.set_symbols(T=tokens, R=1, D=0, S=tokens, C=0)
    return bound


@pytest.mark.parametrize(("dtype", "ranks"), [("bf16", 2), ("fp32", 3)])
def test_sums_are_of_a_step_s_rows_and_the_same_on_every_rank(dtype: str, ranks: int) -> None:
    rows = TensorSpec(("T", WIDE), dtype)
    lowered = lower("all_reduce", [rows, group_spec(ranks, "nccl")], [rows], {}, "sm_90")
    kind = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    parts = [torch.randn(MOST, WIDE).to(kind) for _ in range(ranks)]

    def reduce(communicator: Communicator) -> torch.Tensor:
        y = torch.full((MOST, WIDE), -1.0, dtype=kind)
        tensors = {"x": parts[communicator.rank], "group": group_of(communicator, CPU), "out0": y}
        bound = program(lowered, tensors, MOST)
        for tokens in (5, 3):  # a later step is smaller
            bound.set_symbols(T=tokens, R=1, D=0, S=0, C=0)
            y.fill_(-1.0)
            bound.run()
        return y

    results = on_ranks(ranks, reduce)
    expected = torch.stack([part[:3].float() for part in parts]).sum(0)
    torch.testing.assert_close(results[0][:3], expected.to(kind))
    assert all(torch.equal(result, results[0]) for result in results)
    assert bool((results[0][3:] == -1.0).all())


def test_the_largest_word_of_all_ranks_is_every_rank_s() -> None:
    call = Lowered((Launch(library="nccl_largest", grid=("S", 1, 1), args=(Arg("tensor", "words"), Arg("tensor", "group"))),))
    words = torch.tensor([[5, -(1 << 63), 1 << 40, 9], [7, -3, 1 << 41, 9], [-1, -4, 0, 9]])

    def largest(communicator: Communicator) -> torch.Tensor:
        own = words[communicator.rank].clone()
        program(call, {"words": own, "group": group_of(communicator, CPU)}, 3).run()
        return own

    for own in on_ranks(3, largest):
        assert own.tolist() == [7, -3, 1 << 41, 9]


def test_rows_pass_from_stage_to_stage_between_the_same_ranks() -> None:
    """Three stages of two ranks. Each adds one to what it receives."""
    rows = TensorSpec(("T", WIDE), "bf16")
    sends = lower("send", [rows, pipe_spec("nccl")], [rows], {}, "sm_90", in_place=True)
    receives = lower("receive", [rows, pipe_spec("nccl")], [rows], {}, "sm_90")
    assert not sends.kernels

    def stage(communicator: Communicator) -> torch.Tensor:
        x = torch.full((MOST, WIDE), 10.0 * communicator.rank, dtype=torch.bfloat16)
        tensors = {"x": x, "hidden": x, "out0": x, "pipe": pipe_of(communicator, 2, CPU)}
        for _ in range(3):
            if communicator.rank >= 2:
                program(receives, tensors, 4).run()
                x += 1
            if communicator.rank < 4:
                program(sends, tensors, 4).run()
        return x

    ends = on_ranks(6, stage, apart=2)
    assert [float(end[3, 0]) for end in ends] == [0.0, 10.0, 1.0, 11.0, 2.0, 12.0]
    assert [float(end[4, 0]) for end in ends[4:]] == [43.0, 53.0]


def test_logits_are_gathered_in_rank_order() -> None:
    gathered = on_ranks(3, lambda communicator: communicator.all_gather(torch.full((2, 4), float(communicator.rank))))
    assert all(one.shape == (3, 2, 4) and one[:, 0, 0].tolist() == [0.0, 1.0, 2.0] for one in gathered)


def test_what_nccl_refuses_is_told_with_its_own_words() -> None:
    with pytest.raises(KernelError, match=r"^NCCL refused ncclCommInitRank: ncclInvalidArgument \(invalid rank 3\)$"):
        Communicator(3, 2, unique_id(), device=CPU)
    nccl._COMMUNICATORS.clear()
    (alone,) = on_ranks(1, lambda communicator: communicator)
    call = Launch(library="nccl_send", grid=("T", WIDE, 1), args=(Arg("tensor", "x"), Arg("tensor", "pipe")))
    tensors = {"x": torch.zeros(MOST, WIDE), "pipe": pipe_of(alone, 1, CPU)}
    with pytest.raises(KernelError, match=r"^NCCL refused ncclSend: ncclInvalidArgument \(invalid peer 1\)$"):
        program(Lowered((call,)), tensors, 1).run()


def test_the_library_is_the_one_that_is_loaded_and_its_absence_one_sentence(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    assert nccl._candidates()[0] == library._name
    monkeypatch.setattr(nccl, "_candidates", lambda: ["/nowhere/libnccl.so.2"])
    with pytest.raises(KernelError, match=r"^ranks of several hosts need NCCL \(libnccl.so.2\), which is not here; install a CUDA build"):
        load_library()


def watched(monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """What a watch says, and the code with which it ends the process."""
    monkeypatch.setattr(nccl_watch, "EVERY_S", 0.01)
    said: list[str] = []
    ended, code = threading.Event(), list[int]()
    watch = NcclWatch(said.append, lambda status: (code.append(status), ended.set()))
    assert ended.wait(5)
    watch.stop()
    return said[0], code[0]


def test_a_peer_that_is_gone_ends_the_process_with_a_sentence(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = on_ranks(2, lambda communicator: communicator)
    assert [one.trouble() for one in pair] == ["", ""]
    library.fake_lose_peer(pair[1].handle)
    assert watched(monkeypatch) == ("NCCL cannot go on: ncclRemoteError (a peer has closed its connection)", 1)


def test_ranks_that_do_not_join_end_the_process_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl, "JOIN_S", 0.05)
    identity = unique_id()
    joining = threading.Thread(target=Communicator, args=(0, 2, identity, 0, CPU))
    joining.start()
    said = "NCCL did not connect the ranks within 0.05 s; see whether hosts reach each other on every port"
    assert watched(monkeypatch) == (said, 1)
    Communicator(1, 2, identity, device=CPU)
    joining.join()
    assert [one.trouble() for one in nccl.communicators()] == ["", ""]


def test_a_watch_that_is_stopped_ends_nothing(library: ctypes.CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nccl_watch, "EVERY_S", 0.01)
    said: list[str] = []
    watch = NcclWatch(said.append, lambda status: said.append("ended"))
    watch.stop()
    (alone,) = on_ranks(1, lambda communicator: communicator)
    library.fake_lose_peer(alone.handle)
    assert not threading.Event().wait(0.05)
    assert said == []


def test_the_dtype_of_a_group_says_the_way() -> None:
    for ranks in (2, 4, 8):
        assert (way_of(group_spec(ranks)), ranks_of(group_spec(ranks))) == ("memory", ranks)
        assert (way_of(group_spec(ranks, "nccl")), ranks_of(group_spec(ranks, "nccl"))) == ("nccl", ranks)
    assert [way_of(pipe_spec(way)) for way in ("memory", "nccl")] == ["memory", "nccl"]


def test_sampling_of_a_split_vocabulary_is_ours_around_one_call_of_nccl() -> None:
    words = [TensorSpec(("S", 4), "int32"), TensorSpec(("S",), "int32"), TensorSpec((1,), "int32"), TensorSpec((8,), "int64")]
    state = [*words, TensorSpec((9,), "int32"), TensorSpec((4, 8), "int32"), group_spec(2, "nccl")]
    inputs = [TensorSpec(("S", 256), "bf16"), TensorSpec((512, 256), "bf16"), None, *state]
    lowered = lower("sharded_linear_sample", inputs, [TensorSpec(("S", 512), "bf16"), TensorSpec(("S",), "int32")], {}, "sm_90")
    *_, candidates, largest, publish = lowered.launches
    assert [launch.kernel.rpartition("-")[0] for launch in (candidates, publish)] == ["rank_candidates", "publish"]
    assert (largest.library, largest.grid, [arg.value for arg in largest.args]) == (
        "nccl_largest",
        ("S", 1, 1),
        ["argmax_scratch", "group"],
    )
    (kernel,) = (kernel for kernel in lowered.kernels if kernel.function == "rank_candidates")
    assert kernel.signature["Group"] == "*i32"
