"""Two hosts of one GPU each, both this one, by NCCL: log-probabilities of one GPU, the same bits, a rank that dies or hangs told in time.

The second host is a process that sees the second GPU alone. Each engine has an endpoint and a second host of its own, so that all of them
start side by side. Tests that end a rank come last. Takes about 60 s, most of it compiling and starting.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from reduced import check_normed_sum, reduced_on_two_ranks
from small_ranks import PAGES, START_S, Key, answers, built, mixed_sampling, prompts, tokens

from trtllm_engines import LLM, SamplingParams
from trtllm_engines.compiler.plan import ParallelLayout
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime import rank_processes
from trtllm_engines.runtime.hosts import free_port, hosts_at
from trtllm_engines.runtime.rank_processes import RankProcesses

pytestmark = [pytest.mark.gpu2, pytest.mark.timeout(40)]
ONE, TWO_RANKS, TWO_STAGES = ParallelLayout(), ParallelLayout(2, 1, 2), ParallelLayout(1, 2, 2)
BUILT = [("bf16", ONE), ("fp8", ONE), ("bf16", TWO_RANKS), ("fp8", TWO_RANKS), ("bf16", TWO_STAGES)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Key, Path]:
    return built(tmp_path_factory.mktemp("model"), BUILT)


@pytest.fixture(scope="module")
def engines(folders: dict[Key, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Key, LLM]]:
    said, second = tmp_path_factory.mktemp("hosts"), os.environ.get("CUDA_VISIBLE_DEVICES", "0,1").split(",")[1]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": second, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    several = {key: f"127.0.0.1:{free_port('127.0.0.1')}" for key in folders if key[1].nnodes > 1}
    command = [sys.executable, "-m", "trtllm_bench", "host", "--nnodes", "2", "--node-rank", "1", "--rdzv-endpoint"]
    hosts = []
    for number, endpoint in enumerate(several.values()):
        with (said / f"{number}.txt").open("w") as out:
            hosts.append(subprocess.Popen([*command, endpoint], env=environment, stdout=out, stderr=out))
    loaded: dict[Key, LLM] = {}
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rank_processes, "START_S", START_S)
            with ThreadPoolExecutor(len(several)) as pool:
                starting = {
                    key: pool.submit(LLM, folders[key], num_pages=PAGES, nnodes=2, rdzv_endpoint=where) for key, where in several.items()
                }
                loaded |= {key: LLM(folder, num_pages=PAGES) for key, folder in folders.items() if key not in several}
                loaded |= {key: start.result() for key, start in starting.items()}
        yield loaded
    finally:
        for llm in loaded.values():
            with contextlib.suppress(EngineError):
                llm.close()
        for endpoint in several.values():
            hosts_at(endpoint, 2).close()
        for host in hosts:
            with contextlib.suppress(subprocess.TimeoutExpired):
                host.wait(5)
            host.kill()
        print(*(file.read_text() for file in sorted(said.iterdir())), file=sys.stderr)


@pytest.mark.timeout(120)  # the first of them builds and starts everything
@pytest.mark.parametrize(
    ("precision", "layout", "bound"), [("bf16", TWO_RANKS, 0.06), ("fp8", TWO_RANKS, 0.35), ("bf16", TWO_STAGES, 0.06)]
)
def test_log_probabilities_are_close_to_those_of_one_rank(
    engines: dict[Key, LLM], precision: str, layout: ParallelLayout, bound: float
) -> None:
    """Of prompts' first tokens, gathered from all columns; sums are rounded elsewhere."""
    sampling = SamplingParams(max_tokens=1, logprobs=5, ignore_eos=True)
    one, two = (
        [(output.logprobs or [])[0].top for output in answers(engines[precision, split], prompts(24), sampling)] for split in (ONE, layout)
    )
    differences = [abs(a[token] - b[token]) for a, b in zip(one, two, strict=True) for token in a.keys() & b.keys()]
    assert len(differences) > 24 * 4
    assert max(differences) < bound


@pytest.mark.parametrize("layout", [TWO_RANKS, TWO_STAGES], ids=["tp2", "pp2"])
def test_tokens_of_graphs_are_the_same_again_and_filters_see_all_columns(engines: dict[Key, LLM], layout: ParallelLayout) -> None:
    two = engines["bf16", layout]
    first = tokens(answers(two, prompts(24), mixed_sampling()))
    assert all(len(output) == 40 for output in first)
    if layout == TWO_RANKS:  # of stages, which sequences share a step depends on when they finish
        assert tokens(answers(two, prompts(24), mixed_sampling())) == first
    greedy = answers(two, prompts(8), SamplingParams(max_tokens=8, ignore_eos=True))
    filtered = answers(two, prompts(8), SamplingParams(max_tokens=8, ignore_eos=True, temperature=1.0, top_k=1, seed=3))
    if layout == TWO_RANKS:
        assert tokens(filtered) == tokens(greedy)


def test_reductions_by_nccl_have_the_same_bits_on_both_ranks(tmp_path: Path) -> None:
    rows = (1, 64, 256)
    on_loopback = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_NVLS_ENABLE": "0", "NCCL_GRAPH_REGISTER": "0"}
    first, second = reduced_on_two_ranks(tmp_path, rows, 10_000, ("--by", "nccl"), on_loopback)
    for count in rows:
        one, two = first[count], second[count]
        assert torch.equal(one["y"], two["y"])
        assert torch.equal(one["total"], two["total"])
        check_normed_sum(one, two)


@pytest.mark.parametrize(
    ("end", "key", "said"),
    [
        (signal.SIGKILL, ("bf16", TWO_STAGES), "host 1 (127.0.0.1): the process of rank 1 ended without a word"),
        (signal.SIGKILL, ("bf16", TWO_RANKS), "host 1 (127.0.0.1): the process of rank 1 ended without a word"),
        (signal.SIGSTOP, ("fp8", TWO_RANKS), "a rank hangs"),
    ],
    ids=["pp2-killed", "tp2-killed", "tp2-stopped"],
)
def test_a_rank_of_the_other_host_that_dies_or_hangs_ends_the_requests_within_15_s(
    engines: dict[Key, LLM], end: signal.Signals, key: Key, said: str
) -> None:
    two = engines[key]
    assert isinstance(two.ranks, RankProcesses)
    (host,) = two.ranks._others
    os.kill(host.processes[0], end)
    began = time.monotonic()
    output = two.generate(prompts(1), SamplingParams(max_tokens=400, ignore_eos=True))
    assert said in str(output[0].error)
    assert time.monotonic() - began < 15
    with pytest.raises(EngineError):
        two.close()
