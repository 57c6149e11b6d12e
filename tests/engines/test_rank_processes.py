"""Ranks as processes under torchrun, on the CPU: the tokens of one rank; one that dies or hangs ends the requests in time."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from trtllm_engines import LLM, SamplingParams
from trtllm_engines.compiler.plan import ParallelLayout, Profile
from trtllm_engines.engine.build import build
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime import rank_processes
from trtllm_engines.runtime.host_agent import serve
from trtllm_engines.runtime.host_ranks import HostRanks, RankOrder, _lives
from trtllm_engines.runtime.hosts import free_port, hosts_at
from trtllm_engines.runtime.rank_main import Ancestors
from trtllm_engines.runtime.step_ring import FAILED, READY

PROFILE = Profile(max_batch_size=4, max_num_tokens=64, max_seq_len=128)
PROMPTS = [[3, 4, 5], list(range(3, 90)), [7] * 20]
SAMPLING = [
    SamplingParams(max_tokens=12, ignore_eos=True),
    SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.8, seed=1),
    SamplingParams(max_tokens=12, ignore_eos=True, temperature=0.8, top_k=20, seed=2, logprobs=2),  # sampled from all ranks' logits
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tp") / "two.engine"
    return build("tiny-llama", "fp32", out=folder, weights="dummy", profile=PROFILE, layout=ParallelLayout(2))


@pytest.fixture(scope="module")
def started() -> Iterator[list[LLM]]:
    every: list[LLM] = []
    yield every
    for one in every:
        with contextlib.suppress(EngineError):
            one.close()


@pytest.fixture(scope="module")
def temporaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ranks and torchrun put temporary files."""
    return tmp_path_factory.mktemp("temporaries")


@pytest.fixture
def llm(engine: Path, started: list[LLM], temporaries: Path) -> LLM:
    """Two ranks that live: those of the test before, unless it has ended them."""
    if not started or started[-1].loop.broken:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TMPDIR", str(temporaries))
            started.append(LLM(engine, device="cpu", num_pages=40))
    return started[-1]


def rank_pids(llm: LLM) -> list[int]:
    agent = llm._runner._agent.pid  # type: ignore[attr-defined]
    listed = subprocess.run(["ps", "--ppid", str(agent), "-o", "pid="], capture_output=True, text=True, check=True)
    return [int(line) for line in listed.stdout.split()]


def test_ranks_keep_no_logs_of_torchruns(llm: LLM, temporaries: Path) -> None:
    assert llm.generate([PROMPTS[0]], SAMPLING[0])
    assert not list(temporaries.glob("torchelastic_*"))


def test_tokens_and_log_probabilities_are_those_of_one_rank(llm: LLM, tmp_path: Path) -> None:
    one = LLM(build("tiny-llama", "fp32", out=tmp_path / "one.engine", weights="dummy", profile=PROFILE), device="cpu", num_pages=40)
    expected = one.generate(PROMPTS, SAMPLING)
    found = llm.generate(PROMPTS, SAMPLING)
    assert [list(output.token_ids) for output in found] == [list(output.token_ids) for output in expected]
    chosen = [entry.chosen for entry in found[2].logprobs or ()]
    assert chosen == pytest.approx([entry.chosen for entry in expected[2].logprobs or ()], abs=1e-5)
    assert len(chosen) == 12


@pytest.mark.parametrize(
    ("end", "said"),
    [(signal.SIGKILL, "the process of rank 1 ended without a word"), (signal.SIGSTOP, "a rank hangs; rank 0 is in ")],
)
def test_a_rank_that_dies_or_hangs_is_told_in_time(llm: LLM, monkeypatch: pytest.MonkeyPatch, end: signal.Signals, said: str) -> None:
    monkeypatch.setattr(rank_processes, "STEP_S", 3.0)
    llm.generate(PROMPTS[0], SAMPLING[0])
    pids = rank_pids(llm)
    os.kill(pids[1], end)
    began = time.monotonic()
    output = llm.generate([5, 6], SamplingParams(max_tokens=100, ignore_eos=True))
    assert time.monotonic() - began < 15
    assert said in str(output[0].error)
    assert ("rank 1 does not answer" in str(output[0].error)) == (end is signal.SIGSTOP)
    with pytest.raises(EngineError):
        llm.close()
    deadline = time.monotonic() + 5
    while any(_lives(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_lives(pid) for pid in pids)


def test_ranks_end_when_their_controller_was_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their parent, torchrun's agent, outlives the controller."""
    controller = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; exec sleep 60"], stdout=subprocess.PIPE, text=True)
    assert controller.stdout is not None
    agent = int(controller.stdout.readline())
    monkeypatch.setattr(os, "getppid", lambda: agent)
    ancestors, began = Ancestors(controller.pid), time.monotonic()
    assert not ancestors.gone()
    controller.kill()
    controller.wait()
    assert not ancestors.gone(), "it looks once a second"
    monkeypatch.setattr(time, "monotonic", lambda: began + 2)
    assert ancestors.gone()
    os.kill(agent, signal.SIGKILL)
    assert not Ancestors(agent).gone(), "a rank that its controller started"


@pytest.mark.parametrize(
    ("states", "torchrun_ended", "said"),
    [
        (
            [READY, READY, READY, READY],
            [0, 1, 3],
            "^the process of rank 6 ended without a word, .*; they said last: .*-9",
        ),
        ([FAILED, READY, READY, READY], [1, 3], "^the process of rank 6 ended without a word"),  # rank 4 lost its neighbour, and said so
        ([FAILED, READY, READY, READY], [1, 2, 3], "^rank 4 failed: Connection closed by peer"),
        ([READY, READY, READY, READY], [0, 1, 2, 3], r"^the ranks' processes ended \(exit code 1\)"),  # its agent was told to end
    ],
)
def test_ranks_that_torchrun_ended_are_not_those_that_died(states: list[int], torchrun_ended: list[int], said: str) -> None:
    """The check may come late: here all ranks have ended."""
    children = [subprocess.Popen(["true"]) for _ in states]
    pids = [child.pid for child in children if not child.wait()]
    ranks = object.__new__(HostRanks)
    ranks.order = RankOrder("four.engine", "cpu", 4, 4, 64, 64, 0.9, 40, 0, nnodes=2, node_rank=1)
    ranks.ring = SimpleNamespace(states=lambda: states, processes=lambda: pids, reason=lambda _: "Connection closed by peer")  # type: ignore[assignment]
    ranks.agent = SimpleNamespace(poll=lambda: 1)  # type: ignore[assignment]
    with tempfile.TemporaryFile() as ranks._log:
        lines = [f"W1130 16:20:57.1 9 api.py:1028] Sending process {pids[rank]} closing signal SIGTERM\n" for rank in torchrun_ended]
        ranks._log.write("".join([*lines, "E1130 16:20:57.2 9 api.py:1002] error: failed (exitcode: -9)\n"]).encode())
        ranks._log.flush()
        with pytest.raises(EngineError, match=said):
            ranks.check()


def test_ranks_that_cannot_start_say_why(engine: Path) -> None:
    (engine / "constants.safetensors").rename(engine / "away")
    try:
        with pytest.raises(EngineError, match="constants"):
            LLM(engine, device="cpu", num_pages=40)
    finally:
        (engine / "away").rename(engine / "constants.safetensors")


def test_an_engine_of_two_gpus_is_not_one_of_four(engine: Path) -> None:
    with pytest.raises(EngineError, match="was built for --tp 2, not 4"):
        LLM(engine, device="cpu", tp=4)


def test_a_pipeline_of_two_stages_of_two_ranks_on_two_hosts_gives_the_tokens_of_one_rank(tmp_path: Path) -> None:
    """The second host is a thread here, with torchrun's agent and ranks of its own: steps and tokens pass over TCP."""
    folder = build("tiny-llama", "fp32", out=tmp_path / "four.engine", weights="dummy", profile=PROFILE, layout=ParallelLayout(2, 2))
    one = LLM(build("tiny-llama", "fp32", out=tmp_path / "one.engine", weights="dummy", profile=PROFILE), device="cpu", num_pages=40)
    expected = one.generate(PROMPTS, SAMPLING)
    with pytest.raises(EngineError, match="was built for --pp 2, not 1"):
        LLM(folder, device="cpu", pp=1)
    where, said = f"127.0.0.1:{free_port('127.0.0.1')}", list[str]()
    other = threading.Thread(target=serve, args=(where, 2, 1, said.append), daemon=True)
    other.start()
    four = LLM(folder, device="cpu", num_pages=40, nnodes=2, rdzv_endpoint=where)
    found = four.generate(PROMPTS, SAMPLING)
    remote = [pid for pid in four._runner._others[0].processes if pid != os.getpid()]  # type: ignore[attr-defined]
    os.kill(remote[1], signal.SIGKILL)
    began = time.monotonic()
    output = four.generate([5, 6], SamplingParams(max_tokens=100, ignore_eos=True))
    assert time.monotonic() - began < 15
    assert re.match(r"the engine stopped: host 1 \(127.0.0.1\): the process of rank 3 ended", str(output[0].error))
    with pytest.raises(EngineError):
        four.close()
    hosts_at(where, 2).close()
    other.join(10)
    assert said == [f"joined {where} as host 1 of 2", f"2 ranks of {folder}", "host 0 has ended"]
    assert [list(output.token_ids) for output in found] == [list(output.token_ids) for output in expected]
    chosen = [entry.chosen for entry in found[2].logprobs or ()]
    assert chosen == pytest.approx([entry.chosen for entry in expected[2].logprobs or ()], abs=1e-5)
