"""Tensor-parallel engines give the tokens of one rank, have its weights in parts, and refuse what cannot be split."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from thread_ranks import ThreadRanks

from trtllm_engines.checkpoints import drawn_sums
from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.compile import Compiled, compile_model
from trtllm_engines.compiler.plan import ParallelLayout, Profile
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig
from trtllm_engines.models.presets import preset_config
from trtllm_engines.runtime.batch import StepRunner
from trtllm_engines.runtime.cpu import CpuRunner
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import SchedulerConfig

PROFILE = Profile(max_batch_size=8, max_num_tokens=64, max_seq_len=256)
PAGES = 120
FEW_PAGES = 18
SOURCE = {"kind": "dummy", "seed": 0}

TINY = preset_config("tiny-llama")
GPTJ = preset_config("gptj-6b")
MODELS: Mapping[str, ModelConfig] = {
    "llama": TINY,
    "grouped": replace(TINY, num_heads=8, num_kv_heads=4, hidden_size=128, head_dim=32, intermediate_size=384, num_layers=4),
    "one-kv-head": replace(TINY, num_heads=4, num_kv_heads=1),
    "biased": replace(TINY, qkv_bias=True, output_bias=True, mlp_bias=True),
    "tied": replace(TINY, tie_embeddings=True),
    "qk-norm": replace(TINY, qk_norm=True),
    "gptj": replace(
        GPTJ,
        hidden_size=128,
        num_layers=4,
        num_heads=8,
        num_kv_heads=8,
        head_dim=16,
        intermediate_size=512,
        vocab_size=512,
        rope=replace(GPTJ.rope, rotary_dim=8),
        eos_token_ids=(2,),
        bos_token_id=1,
    ),
}


@cache
def compiled(config: ModelConfig, precision: str, tp: int) -> Compiled:
    return compile_model(config, precision, PROFILE, weights_source=SOURCE, layout=ParallelLayout(tp))


def tensors_of(model: Compiled, rank: int) -> dict[str, torch.Tensor]:
    cpu = torch.device("cpu")
    return {**model.constants, **{name: assemble(model.plan, name, DummyWeights(0), cpu, rank) for name in model.plan.weights}}


def tokens(runner: StepRunner, config: ModelConfig, stages: int = 1) -> list[Any]:
    """What 12 requests get: prompts of 1 to 150 tokens in steps of 64, greedy or at a temperature."""
    rng = np.random.default_rng(0)
    settings = SchedulerConfig(
        PROFILE.max_batch_size, PROFILE.max_num_tokens, PROFILE.max_seq_len, PROFILE.page_size, PAGES, "guaranteed_no_evict", stages
    )
    loop = EngineLoop(runner, settings, vocab_size=config.vocab_size, eos_ids=config.eos_token_ids, overlap=False)
    requests = []
    for index in range(12):
        prompt = rng.integers(3, config.vocab_size, int(rng.integers(1, 150))).astype(np.int32)
        temperature = 0.9 if index % 2 else 0.0
        sampling = SamplingParams(max_tokens=int(rng.integers(4, 24)), ignore_eos=index % 3 > 0, temperature=temperature, seed=index)
        requests.append(loop.add_request(prompt, sampling))
    loop.run()
    return [(request.output.tolist(), request.finish_reason, request.error) for request in requests]


_OF_ONE_RANK: dict[tuple[str, str], list[Any]] = {}


def of_one_rank(config: ModelConfig, precision: str = "fp32") -> list[Any]:
    """Made once for all layouts of a model."""
    key = (repr(config), precision)
    if key not in _OF_ONE_RANK:
        model = compiled(config, precision, 1)
        _OF_ONE_RANK[key] = tokens(CpuRunner(model.plan, tensors_of(model, 0), PAGES), config)
    return _OF_ONE_RANK[key]


def of_ranks(config: ModelConfig, tp: int, precision: str = "fp32") -> list[Any]:
    model = compiled(config, precision, tp)
    runner = ThreadRanks(model.plan, lambda rank: tensors_of(model, rank), PAGES)
    try:
        return tokens(runner, config)
    finally:
        runner.close()


@pytest.mark.parametrize(
    ("name", "tp"),
    [
        ("llama", 2),
        ("grouped", 4),
        ("one-kv-head", 2),
        ("one-kv-head", 4),
        ("biased", 2),
        ("tied", 2),
        ("qk-norm", 2),
        ("gptj", 2),
        ("gptj", 4),
    ],
)
def test_tokens_are_those_of_one_rank(name: str, tp: int) -> None:
    assert of_ranks(MODELS[name], tp) == of_one_rank(MODELS[name])


def test_tokens_are_those_of_one_rank_when_sequences_are_preempted() -> None:
    model, one = compiled(TINY, "fp32", 2), compiled(TINY, "fp32", 1)
    ranks = ThreadRanks(model.plan, lambda rank: tensors_of(model, rank), FEW_PAGES)
    try:
        found, preempted = outputs_in_few_pages(ranks)
    finally:
        ranks.close()
    assert found == outputs_in_few_pages(CpuRunner(one.plan, tensors_of(one, 0), FEW_PAGES))[0]
    assert preempted > 0


def outputs_in_few_pages(runner: StepRunner, stages: int = 1) -> tuple[list[list[int]], int]:
    """What 8 requests get that are admitted with a page each and grow to three; and how often one lost its pages."""
    settings = SchedulerConfig(8, 64, 256, PROFILE.page_size, FEW_PAGES, "max_utilization", stages)
    loop = EngineLoop(runner, settings, vocab_size=TINY.vocab_size, overlap=False)
    sampling = [SamplingParams(max_tokens=70, ignore_eos=True, temperature=0.9 * (seed % 2), seed=seed) for seed in range(8)]
    requests = [loop.add_request([3 + seed] * 20, one) for seed, one in enumerate(sampling)]
    loop.run()
    return [request.output.tolist() for request in requests], loop.scheduler.preemptions


@pytest.mark.parametrize(("name", "reductions"), [("llama", 2), ("gptj", 1)])
def test_a_layer_is_reduced_as_often_as_its_sums_stop_being_linear(name: str, reductions: int) -> None:
    config = MODELS[name]
    ops = [op.op for op in compiled(config, "fp32", 2).plan.ops]
    assert sum(op.startswith("all_reduce") for op in ops) == reductions * config.num_layers
    assert ops[-1] == "sharded_linear_sample"


@pytest.mark.parametrize("precision", ["fp32", "fp8", "fp8_rowwise"])
@pytest.mark.parametrize("name", ["grouped", "one-kv-head", "biased", "tied", "gptj"])
def test_ranks_have_the_parts_of_the_weights_that_one_rank_has(name: str, precision: str) -> None:
    """Put together again, the parts are the whole weight bit for bit, codes and scales too."""
    config, tp = MODELS[name], 2
    one, many = compiled(config, precision, 1), compiled(config, precision, tp)
    whole, parts = tensors_of(one, 0), [tensors_of(many, rank) for rank in range(tp)]
    for weight, recipe in many.plan.weight_recipes.items():
        tensors = [bits(part[weight]) for part in parts]
        if weight not in whole:
            assert weight == "lm_head.weight"  # the embedding's, which one rank reads twice
        expected = bits(whole[weight if weight in whole else "model.embed_tokens.weight"])
        again = reassembled(tensors, recipe.shards, recipe.interleave, expected, config)
        assert again is None or torch.equal(again, expected), weight


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_a_rank_draws_no_more_of_a_matrix_than_its_part(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = compiled(MODELS["grouped"], precision, 2).plan
    drawn: list[int] = []
    sums = drawn_sums._byte_sums
    monkeypatch.setattr(drawn_sums, "_byte_sums", lambda x, *keys: (drawn.append(len(x)), sums(x, *keys))[1])
    matrices = {name: spec for name, spec in plan.weights.items() if len(spec.shape) == 2}
    for name, spec in matrices.items():
        part = assemble(plan, name, DummyWeights(), torch.device("cpu"), 1)
        assert sum(drawn) == part.numel() == math.prod(map(int, spec.shape)), name
        drawn.clear()
    assert any(plan.weight_recipes[name].shards for name in matrices)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """fp8 codes as integers, which torch compares."""
    return tensor.view(torch.uint8) if tensor.element_size() == 1 else tensor


def reassembled(parts: list[torch.Tensor], shards: Any, interleave: bool, whole: torch.Tensor, config: ModelConfig) -> torch.Tensor | None:
    if any(shard is not None and shard.dim is None for shard in shards):
        assert not parts[1].any()
        return parts[0]
    if not shards or parts[0].shape == whole.shape:
        assert all(torch.equal(part, parts[0]) for part in parts)
        return parts[0]
    if shards[0] is not None and shards[0].dim == 1:
        return torch.cat(parts, dim=1)
    if len(shards) == 1 or interleave:
        return torch.cat(parts)
    if len(shards) == 2:  # gate, then up
        halves = [part.chunk(2) for part in parts]
        return torch.cat([half[index] for index in range(2) for half in halves])
    q, kv = config.q_size // 2, max(config.kv_size // 2, config.head_dim)
    pieces = [part.split([q, kv, kv]) for part in parts]
    keys = pieces if config.num_kv_heads >= 2 else pieces[:1]
    return torch.cat([piece[0] for piece in pieces] + [piece[index] for index in (1, 2) for piece in keys])


def logits_of(runner: StepRunner, parts: Callable[[], list[torch.Tensor]], config: ModelConfig) -> torch.Tensor:
    """Of the first token after a prompt of 57."""
    loop = EngineLoop(runner, SchedulerConfig(8, 64, 256, PROFILE.page_size, PAGES), vocab_size=config.vocab_size, overlap=False)
    loop.add_request(list(range(3, 60)), SamplingParams(max_tokens=1))
    loop.run()
    return torch.cat([part.float() for part in parts()], dim=1)


@pytest.mark.parametrize("precision", ["bf16", "fp8", "fp8_rowwise"])
def test_logits_differ_from_those_of_one_rank_by_less_than_the_precision_costs(precision: str) -> None:
    """Sums are rounded elsewhere, so tokens may differ where two are nearly equal."""
    config = MODELS["grouped"]
    found: dict[tuple[str, int], torch.Tensor] = {}
    for name, tp in ((precision, 1), (precision, 2), ("fp32", 1)):
        model = compiled(config, name, tp)
        if tp == 1:
            runner = CpuRunner(model.plan, tensors_of(model, 0), PAGES)
            found[name, tp] = logits_of(runner, lambda runner=runner: [runner.outputs["logits"]], config)  # type: ignore[misc]
        else:
            ranks = ThreadRanks(model.plan, lambda rank, model=model: tensors_of(model, rank), PAGES)  # type: ignore[misc]
            found[name, tp] = logits_of(ranks, lambda ranks=ranks: [rank.outputs["logits"] for rank in ranks.ranks], config)  # type: ignore[misc]
            ranks.close()
    exact, one, two = found["fp32", 1], found[precision, 1], found[precision, 2]
    assert 0 < (two - one).norm() < (one - exact).norm()
    assert (two - exact).norm() < 1.25 * (one - exact).norm()


@pytest.mark.parametrize(
    ("change", "tp", "said"),
    [
        ({"num_heads": 6, "num_kv_heads": 6, "head_dim": 16}, 4, "num_attention_heads is 6, which does not divide by --tp 4"),
        (
            {"num_heads": 12, "num_kv_heads": 3, "head_dim": 16},
            2,
            "num_key_value_heads is 3, of which --tp 2 ranks cannot have equal parts",
        ),
        ({"vocab_size": 513}, 2, "vocab_size is 513, which does not divide by --tp 2"),
        ({"intermediate_size": 130}, 4, "intermediate_size is 130, which does not divide by --tp 4"),
    ],
)
def test_what_does_not_divide_is_refused(change: dict[str, int], tp: int, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        compiled(replace(TINY, **change), "fp32", tp)  # type: ignore[arg-type]


def test_a_rank_that_fails_ends_the_step_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled(TINY, "fp32", 2)
    runner = ThreadRanks(model.plan, lambda rank: tensors_of(model, rank), PAGES)
    fail: Callable[..., Any] = lambda batch: (_ for _ in ()).throw(RuntimeError("no memory"))  # noqa: E731
    monkeypatch.setattr(runner.ranks[1], "launch", fail)
    loop = EngineLoop(runner, SchedulerConfig(8, 64, 256, PROFILE.page_size, PAGES), vocab_size=512, overlap=False)
    request = loop.add_request([3, 4, 5], SamplingParams(max_tokens=2))
    with pytest.raises(EngineError, match="rank 1 failed: RuntimeError: no memory"):
        loop.run()
    assert "rank 1 failed" in str(request.error)
    runner.close()
