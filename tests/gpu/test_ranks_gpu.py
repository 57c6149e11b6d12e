"""Two ranks on two GPUs of one host: log-probabilities of one rank, the same tokens again and again, a rank that dies is told in time.

All of it within 90 s: the engines' kernels are compiled on all cores at once, and the pairs of processes, one of each engine of two ranks,
start side by side. Tests that end a rank come last. A test that takes too long, or a pair that does not start, tells where every rank is.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from trtllm_engines import LLM, SamplingParams
from trtllm_engines.checkpoints.checkpoint_precision import plan_for
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.fingerprint import detect_target
from trtllm_engines.compiler.plan import ParallelLayout, Profile
from trtllm_engines.engine.build import build
from trtllm_engines.errors import EngineError
from trtllm_engines.llm import RequestOutput
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.runtime import rank_processes
from trtllm_engines.runtime.rank_processes import RankProcesses
from trtllm_kernels.compile.pool import compile_many
from trtllm_kernels.dialect.group import ONE_SHOT_ROWS

pytestmark = [pytest.mark.gpu2, pytest.mark.timeout(40)]
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "intermediate_size": 2816,
    "vocab_size": 8192,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PROFILE = Profile(max_batch_size=32, max_num_tokens=1024, max_seq_len=1024)
PRECISIONS = ("bf16", "fp16", "fp8")
ONE, TWO_RANKS, TWO_STAGES = ParallelLayout(1, 1), ParallelLayout(2, 1), ParallelLayout(1, 2)
DUMMY = {"kind": "dummy", "seed": 0}
PAGES = 1024
"""Of 32 tokens. Several engines have their caches on a GPU at once."""
START_S = 60.0

Engines = dict[tuple[str, ParallelLayout], LLM]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ParallelLayout], Path]:
    """An engine of each precision and layout."""
    model, arch = tmp_path_factory.mktemp("model"), detect_target().arch
    (model / "config.json").write_text(json.dumps(CONFIG))
    wanted = [(precision, layout) for precision in PRECISIONS for layout in (ONE, TWO_RANKS, TWO_STAGES)]
    config = resolve_model(model).config
    kernels = [
        kernel
        for precision, layout in wanted
        for stage in range(layout.pp)
        for op in compile_model(
            config, plan_for(model, precision), PROFILE, arches=(arch,), weights_source=DUMMY, layout=layout, stage=stage
        ).plan.ops
        for kernel in op.tactics[arch].kernels
    ]
    compile_many(kernels, arch)
    return {
        (precision, layout): build(
            model,
            precision,
            out=model / f"{precision}-{layout.tp}-{layout.pp}.engine",
            weights="dummy",
            profile=PROFILE,
            arches=(arch,),
            layout=layout,
        )
        for precision, layout in wanted
    }


@pytest.fixture(scope="module")
def engines(folders: dict[tuple[str, ParallelLayout], Path]) -> Iterator[Engines]:
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


def prompts(count: int) -> list[list[int]]:
    """Of 1 to 700 tokens: reductions of up to 128 rows, and of more, by the other kernel."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, CONFIG["vocab_size"], int(length)).tolist() for length in rng.integers(1, 700, count)]  # type: ignore[call-overload]


def answers(llm: LLM, asked: Sequence[Sequence[int]], sampling: SamplingParams | list[SamplingParams]) -> list[RequestOutput]:
    """What `generate` gives; where it does not come in time, or comes with an error, the stacks of all ranks are printed."""
    outputs: list[RequestOutput] = []
    try:
        outputs = llm.generate(asked, sampling)
    finally:
        if not outputs or any(output.error for output in outputs):
            _print_stacks(llm)
    assert not any(output.error for output in outputs)
    return outputs


def _print_stacks(llm: LLM) -> None:
    if isinstance(llm.ranks, RankProcesses):
        for rank, stack in enumerate(llm.ranks.stacks()):
            print(f"rank {rank}:\n{stack or 'does not answer'}", file=sys.stderr)


def tokens(outputs: Sequence[RequestOutput]) -> list[list[int]]:
    return [list(output.token_ids) for output in outputs]


def mixed_sampling(top_k: int = 0) -> list[SamplingParams]:
    return [SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.7 if i % 2 else 0.0, seed=i, top_k=top_k) for i in range(24)]


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
    command = [sys.executable, str(Path(__file__).with_name("reduce_again.py")), "--meet", str(tmp_path / "meet"), "--seconds", "35"]
    command += ["--steps", "100000", "--rows", *map(str, rows)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([*command, "--out", str(tmp_path / f"{rank}.pt"), str(rank)], env=environment, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [rank.communicate()[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for count in rows:
        one, two = first[count], second[count]
        assert torch.equal(one["y"], two["y"])
        assert count > ONE_SHOT_ROWS or torch.equal(one["total"], two["total"])  # else each rank has the sums of its own rows
        total = one["residual"].float() + one["x"].float() + two["x"].float()
        expected = total * torch.rsqrt(total.square().mean(1, keepdim=True) + 1e-5)
        torch.testing.assert_close(one["last"], expected, atol=0.02, rtol=0.08)
        assert not torch.equal(one["x"], two["x"])


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
