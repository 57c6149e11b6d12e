"""Two ranks on two GPUs of one host: log-probabilities of one rank, the same tokens again and again, a rank that dies is told in time."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trtllm_engines import LLM, SamplingParams
from trtllm_engines.compiler.plan import ParallelLayout, Profile
from trtllm_engines.engine.build import build
from trtllm_engines.engine.fingerprint import detect_target
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.rank_processes import RankProcesses

pytestmark = pytest.mark.gpu2
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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def loaded(model: Path, precision: str, tp: int, pp: int = 1) -> LLM:
    folder = model / f"{precision}-{tp}-{pp}.engine"
    if not folder.exists():
        build(model, precision, out=folder, weights="dummy", profile=PROFILE, arches=(detect_target().arch,), layout=ParallelLayout(tp, pp))
    return LLM(folder)


def prompts(count: int) -> list[list[int]]:
    """Of 1 to 700 tokens: reductions of up to 128 rows, and of more, by the other kernel."""
    rng = np.random.default_rng(0)
    return [rng.integers(3, CONFIG["vocab_size"], int(length)).tolist() for length in rng.integers(1, 700, count)]  # type: ignore[call-overload]


@pytest.fixture
def two(model: Path) -> Iterator[LLM]:
    llm = loaded(model, "bf16", 2)
    yield llm
    llm.close()


@pytest.mark.parametrize(("tp", "pp"), [(2, 1), (1, 2)])
@pytest.mark.parametrize(("precision", "bound"), [("bf16", 0.06), ("fp16", 0.02), ("fp8", 0.35)])
def test_log_probabilities_are_close_to_those_of_one_rank(model: Path, precision: str, bound: float, tp: int, pp: int) -> None:
    """Of prompts' first tokens, whose context is the same; sums are rounded elsewhere."""
    sampling = SamplingParams(max_tokens=1, logprobs=5, ignore_eos=True)
    found = []
    for layout in ((1, 1), (tp, pp)):
        llm = loaded(model, precision, *layout)
        outputs = llm.generate(prompts(24), sampling)
        assert not any(output.error for output in outputs)
        found.append([(output.logprobs or [])[0].top for output in outputs])
        llm.close()
    differences = [abs(one[token] - two[token]) for one, two in zip(*found, strict=True) for token in one.keys() & two.keys()]
    assert len(differences) > 24 * 4  # nearly always the same five
    assert max(differences) < bound


def test_tokens_are_the_same_again_and_whatever_runs_beside(two: LLM) -> None:
    sampling = [SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.7 if i % 2 else 0.0, seed=i) for i in range(24)]
    first = [list(output.token_ids) for output in two.generate(prompts(24), sampling)]
    for _ in range(5):
        assert [list(output.token_ids) for output in two.generate(prompts(24), sampling)] == first


def test_filters_choose_from_all_ranks_columns(two: LLM) -> None:
    greedy = two.generate(prompts(8), SamplingParams(max_tokens=8, ignore_eos=True))
    filtered = two.generate(prompts(8), SamplingParams(max_tokens=8, ignore_eos=True, temperature=1.0, top_k=1, seed=3))
    assert [list(output.token_ids) for output in filtered] == [list(output.token_ids) for output in greedy]


def test_two_stages_answer_every_request_with_a_step_in_each(model: Path) -> None:
    llm = loaded(model, "bf16", 1, 2)
    sampling = [SamplingParams(max_tokens=40, ignore_eos=True, temperature=0.7 if i % 2 else 0.0, seed=i, top_k=20) for i in range(24)]
    outputs = llm.generate(prompts(24), sampling)
    assert not any(output.error for output in outputs)
    assert all(len(output.token_ids) == 40 for output in outputs)
    llm.close()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_dies_or_hangs_ends_the_requests_within_15_s(two: LLM, end: signal.Signals) -> None:
    assert isinstance(two._runner, RankProcesses)
    os.kill(two._runner.ring.processes()[1], end)
    began = time.monotonic()
    output = two.generate(prompts(1), SamplingParams(max_tokens=400, ignore_eos=True))
    assert output[0].error
    assert time.monotonic() - began < 15
    with pytest.raises(EngineError):
        two.close()
