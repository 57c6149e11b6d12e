"""Two ranks on two GPUs of one host: log-probabilities of one rank, the same tokens again and again, a rank that dies is told in time.

All of it within 90 s: the engines' kernels are compiled on all cores at once, and the pairs of processes, one of each engine of two ranks,
start side by side. Tests that end a rank come last. A test that takes too long, or a pair that does not start, tells where every rank is.
"""

from __future__ import annotations

import contextlib
import os
import signal
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
from trtllm_engines.runtime.rank_processes import RankProcesses
from trtllm_kernels.dialect.group import ONE_SHOT_ROWS

pytestmark = [pytest.mark.gpu2, pytest.mark.timeout(40)]
PRECISIONS = ("bf16", "fp16", "fp8")
ONE, TWO_RANKS, TWO_STAGES = ParallelLayout(1, 1), ParallelLayout(2, 1), ParallelLayout(1, 2)

Engines = dict[Key, LLM]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Key, Path]:
    """An engine of each precision and layout."""
    wanted = [(precision, layout) for precision in PRECISIONS for layout in (ONE, TWO_RANKS, TWO_STAGES)]
    return built(tmp_path_factory.mktemp("model"), wanted)


@pytest.fixture(scope="module")
def engines(folders: dict[Key, Path]) -> Iterator[Engines]:
    """All of them loaded, those of two ranks with a pair of processes each."""
    several = [key for key in folders if key[1].ranks > 1]
    loaded: Engines = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_processes, "START_S", START_S)
        with ThreadPoolExecutor(len(several)) as pool:
            starting = {key: pool.submit(LLM, folders[key], num_pages=PAGES) for key in several}
            loaded |= {key: LLM(folder, num_pages=PAGES) for key, folder in folders.items() if key[1].ranks == 1}
            loaded |= {key: start.result() for key, start in starting.items()}
    yield loaded
    with ThreadPoolExecutor(len(loaded)) as pool:
        for llm in loaded.values():
            pool.submit(_close, llm)


def _close(llm: LLM) -> None:
    with contextlib.suppress(EngineError):
        llm.close()


@pytest.mark.timeout(90)  # the first of them builds and starts everything
@pytest.mark.parametrize("layout", [TWO_RANKS, TWO_STAGES], ids=["tp2", "pp2"])
@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.06), ("fp16", 0.02), ("fp8", 0.35)])
def test_log_probabilities_are_close_to_those_of_one_rank(engines: Engines, precision: str, bound: float, layout: ParallelLayout) -> None:
    """Of prompts' first tokens, whose context is the same; sums are rounded elsewhere."""
    sampling = SamplingParams(max_tokens=1, logprobs=5, ignore_eos=True)
    one, several = (
        [(output.logprobs or [])[0].top for output in answers(engines[precision, split], prompts(24), sampling)] for split in (ONE, layout)
    )
    differences = [abs(a[token] - b[token]) for a, b in zip(one, several, strict=True) for token in a.keys() & b.keys()]
    assert len(differences) > 24 * 4  # nearly always the same five
    assert max(differences) < bound


def test_tokens_are_the_same_again_and_whatever_runs_beside(engines: Engines) -> None:
    two = engines["bf16", TWO_RANKS]
    first = tokens(answers(two, prompts(24), mixed_sampling()))
    for _ in range(5):
        assert tokens(answers(two, prompts(24), mixed_sampling())) == first


def test_filters_choose_from_all_ranks_columns(engines: Engines) -> None:
    two = engines["bf16", TWO_RANKS]
    greedy = answers(two, prompts(8), SamplingParams(max_tokens=8, ignore_eos=True))
    filtered = answers(two, prompts(8), SamplingParams(max_tokens=8, ignore_eos=True, temperature=1.0, top_k=1, seed=3))
    assert tokens(filtered) == tokens(greedy)


def test_two_stages_answer_every_request_with_a_step_in_each(engines: Engines) -> None:
    outputs = answers(engines["bf16", TWO_STAGES], prompts(24), mixed_sampling(top_k=20))
    assert all(len(output.token_ids) == 40 for output in outputs)


def test_reductions_have_the_same_bits_on_both_ranks_in_100_000_steps_each(tmp_path: Path) -> None:
    """By one kernel (1 and 64 rows) and by the other (256), in CUDA graphs (`reduce_again.py`)."""
    rows = (1, 64, 256)
    first, second = reduced_on_two_ranks(tmp_path, rows, 100_000)
    for count in rows:
        one, two = first[count], second[count]
        assert torch.equal(one["y"], two["y"])
        assert count > ONE_SHOT_ROWS or torch.equal(one["total"], two["total"])  # else each rank has the sums of its own rows
        check_normed_sum(one, two)


@pytest.mark.parametrize(("end", "precision"), [(signal.SIGKILL, "bf16"), (signal.SIGSTOP, "fp16")])
def test_a_rank_that_dies_or_hangs_ends_the_requests_within_15_s(engines: Engines, end: signal.Signals, precision: str) -> None:
    two = engines[precision, TWO_RANKS]
    assert isinstance(two.ranks, RankProcesses)
    os.kill(two.ranks.ring.processes()[1], end)
    began = time.monotonic()
    output = two.generate(prompts(1), SamplingParams(max_tokens=400, ignore_eos=True))
    assert output[0].error
    assert time.monotonic() - began < 15
    with pytest.raises(EngineError):
        two.close()
