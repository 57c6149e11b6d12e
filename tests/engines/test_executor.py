"""The CPU executor: a plan run through batcher, cache and sampler gives what the model as written gives, whatever shares the batch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from compiler_models import checkpoint

from trtllm_engines.compiler.graph import evaluate, trace
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.engine.build import build
from trtllm_engines.engine.folder import Engine, load_engine
from trtllm_engines.runtime.cpu import CpuRunner
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.request import Request
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import POLICIES, SchedulerConfig

PROFILE = Profile(max_batch_size=8, max_num_tokens=48, max_seq_len=192, page_size=16)
MakeLoop = Callable[..., EngineLoop]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load_engine(build("tiny-llama", "fp32", out=tmp_path_factory.mktemp("engines") / "tiny", profile=PROFILE))


@pytest.fixture(scope="module")
def make_loop(engine: Engine) -> MakeLoop:
    tensors = engine.tensors("cpu")

    def make(policy: str = "guaranteed_no_evict", pages: int = 97, overlap: bool = True) -> EngineLoop:
        runner = CpuRunner(engine.plan, tensors, pages)
        config = SchedulerConfig(8, 48, 192, 16, pages, policy)  # type: ignore[arg-type]
        return EngineLoop(runner, config, vocab_size=512, eos_ids=engine.plan.config.eos_token_ids, overlap=overlap)

    return make


def workload(count: int) -> list[tuple[np.ndarray, SamplingParams]]:
    """Prompts from 1 token to several chunks, greedy and every kind of sampling."""
    rng = np.random.default_rng(7)
    kinds = [
        SamplingParams(),
        SamplingParams(temperature=0.9, seed=1),
        SamplingParams(temperature=1.0, top_k=20, top_p=0.95, seed=2),
        SamplingParams(repetition_penalty=1.2, frequency_penalty=0.2),
        SamplingParams(temperature=0.8, min_p=0.05, presence_penalty=0.4, min_tokens=5, seed=3),
    ]
    requests = []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        length = int(rng.choice([1, 2, 15, 16, 17, 40, 70, 130]))
        tokens = int(rng.integers(max(1, kind.min_tokens), 60))
        prompt = rng.integers(0, 512, length)
        requests.append((prompt, SamplingParams(**{**vars(kind), "max_tokens": tokens, "ignore_eos": index % 3 == 0})))
    return requests


def generate(loop: EngineLoop, requests: list[tuple[np.ndarray, SamplingParams]]) -> list[Request]:
    added = [loop.add_request(prompt, params) for prompt, params in requests]
    loop.run()
    return added


def test_greedy_tokens_are_the_dense_models(engine: Engine, make_loop: MakeLoop) -> None:
    """Each generated token has the highest logit the unpaged, unfused graph gives for that history."""
    prompt = np.random.default_rng(0).integers(0, 512, 61)
    loop = make_loop()
    request = loop.add_request(prompt, SamplingParams(max_tokens=30, ignore_eos=True))
    loop.run()
    history = torch.tensor([*prompt.tolist(), *request.output.tolist()], dtype=torch.int32)
    graph = trace(engine.plan.config, "fp32", PROFILE)
    rows = torch.arange(len(history), dtype=torch.int32)
    inputs = {
        "token_ids": history,
        "positions": rows,
        "query_start": torch.tensor([0, len(history)], dtype=torch.int32),
        "logit_rows": rows,
    }
    logits = evaluate(graph, checkpoint(graph), inputs)[0]
    chosen = logits[60:-1].gather(1, history[61:, None].long())[:, 0]
    torch.testing.assert_close(chosen, logits[60:-1].amax(dim=1), atol=1e-4, rtol=0)
    runner = loop._runner
    assert isinstance(runner, CpuRunner)
    torch.testing.assert_close(runner.outputs["logits"][0], logits[-2], atol=1e-4, rtol=1e-4)


def test_32_requests_in_flight_equal_each_alone(make_loop: MakeLoop) -> None:
    """Mixed lengths, prompts of several chunks, preemption by a small cache, one cancelled on the way."""
    requests = workload(32)
    alone = [generate(make_loop(), [request])[0].output.tolist() for request in requests]
    loop = make_loop("max_utilization", pages=20)
    added = [loop.add_request(prompt, params) for prompt, params in requests]
    victim = next(i for i, (_, params) in enumerate(requests) if params.max_tokens > 20)
    while len(added[victim].output) == 0 and loop.scheduler.slots.received[added[victim].slot] < 5:
        loop.step()
    loop.cancel(added[victim])
    loop.run()
    assert added[victim].finish_reason == "cancelled"
    kept = added[victim].output.tolist()
    assert 5 <= len(kept) < requests[victim][1].max_tokens
    assert alone[victim][: len(kept)] == kept
    assert sum(request.preemptions for request in added) > 0
    rows = loop.log.rows()
    assert ((rows["decode_tokens"] > 0) & (rows["context_tokens"] > 0)).any()
    assert rows["decode_tokens"].max() > 4
    for index, request in enumerate(added):
        if index != victim:
            assert request.output.tolist() == alone[index], index


@pytest.fixture(scope="module")
def of_ten(make_loop: MakeLoop) -> list[list[int]]:
    return [request.output.tolist() for request in generate(make_loop(), workload(10))]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("overlap", [True, False])
def test_policy_and_overlap_change_no_token(make_loop: MakeLoop, of_ten: list[list[int]], policy: str, overlap: bool) -> None:
    assert [request.output.tolist() for request in generate(make_loop(policy, 40, overlap), workload(10))] == of_ten


def test_logprobs_come_with_every_token_and_name_the_chosen_one(make_loop: MakeLoop) -> None:
    loop = make_loop()
    greedy = loop.add_request([1, 2, 3], SamplingParams(max_tokens=6, logprobs=3, ignore_eos=True))
    plain = loop.add_request([1, 2, 3], SamplingParams(max_tokens=6, ignore_eos=True))
    loop.run()
    assert plain.output.tolist() == greedy.output.tolist()
    assert plain.logprobs == []
    assert len(greedy.logprobs) == 6
    for token, entry in zip(greedy.output.tolist(), greedy.logprobs, strict=True):
        assert next(iter(entry.top)) == token
        assert entry.chosen == entry.top[token] < 0
        assert len(entry.top) == 3


def test_min_tokens_forbids_stop_tokens_until_reached(make_loop: MakeLoop) -> None:
    free = generate(make_loop(), [(np.array([4, 5]), SamplingParams(max_tokens=12, ignore_eos=True))])[0].output.tolist()
    stops = (free[0], free[2])
    held = generate(make_loop(), [(np.array([4, 5]), SamplingParams(max_tokens=12, min_tokens=6, ignore_eos=True, stop_token_ids=stops))])[
        0
    ]
    assert not set(held.output[:5].tolist()) & set(stops)
    assert len(held.output) >= 6


def first_layers(model: Path, layers: int, tmp_path: Path) -> Path:
    """The model without the layers behind them."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).symlink_to(path)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": layers}))
    return folder


@pytest.mark.model
def test_smollm2_requests_in_flight_equal_each_alone(smollm2: Path, tmp_path: Path) -> None:
    """By its first eight layers."""
    profile = Profile(max_batch_size=8, max_num_tokens=64, max_seq_len=160, page_size=16)
    engine = load_engine(build(first_layers(smollm2, 8, tmp_path), "fp32", out=tmp_path / "engine", profile=profile))
    tensors = engine.tensors("cpu")
    tokenizer = engine.tokenizer
    assert tokenizer is not None
    text = "The tea trade of the Netherlands began when ships of the East India Company brought leaves from Java. " * 3
    ids = tokenizer.encode(text)
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, 20, 12), [14, 44, 1, 15, 16, 8, 30, 3, 40, 1, 16, 8]
    prompts = [np.array(ids[start : start + n]) for start, n in zip(starts, lengths, strict=True)]
    requests = [(prompt, SamplingParams(max_tokens=8 if i < 4 else 2, ignore_eos=True)) for i, prompt in enumerate(prompts)]

    def make(pages: int, policy: str) -> EngineLoop:
        config = SchedulerConfig(8, 64, 160, 16, pages, policy)  # type: ignore[arg-type]
        return EngineLoop(CpuRunner(engine.plan, tensors, pages), config, vocab_size=engine.plan.config.vocab_size)

    alone = [generate(make(9, "guaranteed_no_evict"), [request])[0].output.tolist() for request in requests]
    loop = make(6, "max_utilization")
    added = [loop.add_request(prompt, params) for prompt, params in requests]
    while loop.scheduler.slots.received[added[2].slot] < 3:
        loop.step()
    loop.cancel(added[2])
    loop.run()
    assert added[2].finish_reason == "cancelled"
    assert sum(request.preemptions for request in added) > 0
    assert [r.output.tolist() for i, r in enumerate(added) if i != 2] == [tokens for i, tokens in enumerate(alone) if i != 2]
    assert added[2].output.tolist() == alone[2][: len(added[2].output)]
