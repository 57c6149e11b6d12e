"""The CUDA executor against the CPU one: same tokens and logits, with graphs and without, overlapped or not, and no wait in a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compiled_once import compile_engines

from trtllm_engines import LLM
from trtllm_engines.compiler.fingerprint import detect_target
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.engine.build import build
from trtllm_engines.engine.folder import Engine, load_engine
from trtllm_engines.errors import EngineError
from trtllm_engines.runtime.batch import StepBatch
from trtllm_engines.runtime.cpu import CpuRunner
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.inputs import StepInputs
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import SchedulerConfig
from trtllm_kernels.dialect.types import LEAST_KEYS
from trtllm_kernels.references.philox import gumbel_noise, random_words

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("runtime"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

PROFILE = Profile(max_batch_size=24, max_num_tokens=96, max_seq_len=256, page_size=32)
PAGES = 24 * 8 + 1
PRECISIONS = ("fp32", "bf16", "fp8")


@pytest.fixture(scope="module", params=PRECISIONS)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    target = detect_target()
    folder = tmp_path_factory.mktemp("engines") / request.param
    compile_engines("tiny-llama", PRECISIONS, PROFILE, target.arch)
    return load_engine(build("tiny-llama", request.param, out=folder, profile=PROFILE, arches=(target.arch,)), target)


@pytest.fixture(scope="module")
def fp32_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    target = detect_target()
    folder = tmp_path_factory.mktemp("engines") / "tiny"
    compile_engines("tiny-llama", PRECISIONS, PROFILE, target.arch)
    return load_engine(build("tiny-llama", "fp32", out=folder, profile=PROFILE, arches=(target.arch,)), target)


def cuda_runner(engine: Engine, **options: Any) -> Any:
    from trtllm_engines.runtime.cuda import CudaRunner

    return CudaRunner(engine.plan, engine.arch, engine.tensors("cuda"), engine.cubin, **{"num_pages": PAGES, **options})


def loop_over(runner: Any, overlap: bool = True, policy: str = "guaranteed_no_evict", batch: int = 24) -> EngineLoop:
    pages = runner.num_pages
    config = SchedulerConfig(batch, PROFILE.max_num_tokens, PROFILE.max_seq_len, PROFILE.page_size, pages, policy)  # type: ignore[arg-type]
    return EngineLoop(runner, config, vocab_size=runner.plan.config.vocab_size, overlap=overlap)


def test_steps_read_their_inputs_from_the_hosts_memory() -> None:
    """A kernel reads them in place, behind what is under way, and while the host fills the buffers of later steps."""
    profile = Profile(max_batch_size=512, max_num_tokens=8192, max_seq_len=256, page_size=32)
    ours, expected = StepInputs(profile, "cuda"), StepInputs(profile, "cpu")
    assert [mapped is not None and mapped.is_cuda for mapped in ours._mapped] == [True] * len(ours._host_buffers)
    rng, ahead = np.random.default_rng(5), len(ours._host_buffers) - 1
    draws = rng.integers(0, 1 << 30, (513, 3), dtype=np.int32)
    landed: list[tuple[torch.Tensor, torch.Tensor, torch.cuda.Event]] = []
    for step in range(24):
        decodes, prompts = int(rng.integers(1, 400)), step % 3
        lengths = np.array([1] * decodes + [int(rng.integers(1, 2000)) for _ in range(prompts)], np.int32)
        batch = StepBatch(
            slots=rng.permutation(512)[: len(lengths)].astype(np.int32),
            query_lens=lengths,
            kv_lens=lengths + rng.integers(0, 50, len(lengths), dtype=np.int32),
            num_decodes=decodes,
            context_tokens=rng.integers(0, 1 << 30, int(lengths[decodes:].sum()), dtype=np.int32),
            sampled=np.ones(len(lengths), np.bool_),
            page_updates=rng.integers(0, 8, (step % 5, 3), dtype=np.int32),
        )
        if step >= ahead:
            landed[step - ahead][2].synchronize()
        torch.cuda._sleep(1_000_000)
        sizes = ours.upload(batch, draws)
        seen = ours._device.clone()
        event = torch.cuda.Event()
        event.record()
        expected.upload(batch, draws)
        nbytes = expected._tokens_at + 4 * sizes.num_tokens
        landed.append((seen[:nbytes], expected._device[:nbytes].clone(), event))
    assert all(torch.equal(seen.cpu(), wanted) for seen, wanted, _ in landed)


def workload(count: int = 40) -> list[tuple[np.ndarray, SamplingParams]]:
    rng = np.random.default_rng(3)
    kinds = [
        SamplingParams(),
        SamplingParams(),
        SamplingParams(temperature=0.9, seed=1),
        SamplingParams(temperature=1.0, top_k=20, top_p=0.95, seed=2),
        SamplingParams(repetition_penalty=1.2, frequency_penalty=0.2, min_tokens=4, stop_token_ids=(5,)),
    ]
    requests = []
    for index in range(count):
        options = {**vars(kinds[index % len(kinds)]), "max_tokens": int(rng.integers(5, 60)), "ignore_eos": True}
        requests.append((rng.integers(0, 512, int(rng.choice([1, 2, 31, 32, 33, 100, 190]))), SamplingParams(**options)))
    return requests


def tokens_of(loop: EngineLoop, requests: list[tuple[np.ndarray, SamplingParams]]) -> list[list[int]]:
    added = [loop.add_request(prompt, params) for prompt, params in requests]
    loop.run()
    assert all(request.error is None for request in added)
    return [request.output.tolist() for request in added]


def test_fp32_tokens_equal_the_cpus(fp32_engine: Engine) -> None:
    requests = workload()
    expected = tokens_of(loop_over(CpuRunner(fp32_engine.plan, fp32_engine.tensors("cpu"), PAGES)), requests)
    assert tokens_of(loop_over(cuda_runner(fp32_engine)), requests) == expected


@pytest.mark.parametrize("options", [{"cuda_graphs": False}, {"overlap": False}, {"policy": "max_utilization"}, {"policy": "static_batch"}])
def test_no_mode_changes_a_token(fp32_engine: Engine, options: dict[str, Any]) -> None:
    requests = workload()
    expected = tokens_of(loop_over(cuda_runner(fp32_engine)), requests)
    graphs = options.pop("cuda_graphs", True)
    pages = 40 if options.get("policy") == "max_utilization" else PAGES
    assert tokens_of(loop_over(cuda_runner(fp32_engine, cuda_graphs=graphs, num_pages=pages), **options), requests) == expected


def test_logits_are_close_to_the_cpus_after_prefill_and_decode(engine: Engine) -> None:
    """Teacher-free: one request, so that both run the same steps until a token differs."""
    tolerance = {"atol": 2e-4, "rtol": 1e-4} if engine.plan.precision == "fp32" else {"atol": 6e-2, "rtol": 2e-2}
    cpu, gpu = CpuRunner(engine.plan, engine.tensors("cpu"), PAGES), cuda_runner(engine)
    loops = [loop_over(cpu, overlap=False), loop_over(gpu, overlap=False)]
    prompt = np.random.default_rng(0).integers(0, 512, 150)
    requests = [loop.add_request(prompt, SamplingParams(max_tokens=20, ignore_eos=True)) for loop in loops]
    while not loops[0].idle:
        for loop in loops:
            loop.step()
        received = [int(loop.scheduler.slots.received[0]) for loop in loops]
        if not all(received):
            continue
        ours, theirs = gpu.outputs["logits"][0].float().cpu(), cpu.outputs["logits"][0].float()
        if engine.plan.precision == "fp8":  # a code that flips moves a value by up to 6%
            assert torch.nn.functional.cosine_similarity(ours, theirs, dim=0) > 0.98
        else:
            torch.testing.assert_close(ours, theirs, **tolerance)
        tokens = [loop.scheduler.slots.tokens[0, 150 : 150 + received[0]].tolist() for loop in loops]
        if tokens[0] != tokens[1]:
            assert engine.plan.precision != "fp32"
            break
    assert requests[0].error is requests[1].error is None


def test_padded_graphs_leave_other_sequences_alone(fp32_engine: Engine) -> None:
    """5 sequences replay the graph of 8: the same tokens as each alone, which replays the graph of 1."""
    runner = cuda_runner(fp32_engine)
    rng = np.random.default_rng(1)
    requests = [(rng.integers(0, 512, 16), SamplingParams(max_tokens=30, ignore_eos=True)) for _ in range(5)]
    alone = [tokens_of(loop_over(runner), [request])[0] for request in requests]
    assert tokens_of(loop_over(runner), requests) == alone
    assert set(runner._graphs) == {(1, LEAST_KEYS), (8, LEAST_KEYS)}


def test_no_step_waits_for_the_device(engine: Engine) -> None:
    """torch raises at any synchronising call while launching, for every kind of sampling."""
    runner = cuda_runner(engine)
    launch: Callable[..., Any] = runner.launch
    loop = loop_over(runner)
    tokens_of(loop, workload())

    def strict(batch: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return launch(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    runner.launch = strict
    tokens_of(loop, workload())


def test_capturing_ahead_captures_every_bucket_and_lazily_adds_none(fp32_engine: Engine) -> None:
    runner = cuda_runner(fp32_engine)
    seen: list[tuple[int, int]] = []
    runner.capture(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (len(runner.buckets), len(runner.buckets)), "no launch of this engine's depends on lengths"
    captured = set(runner._graphs)
    tokens_of(loop_over(runner), [(prompt, SamplingParams(max_tokens=20, ignore_eos=True)) for prompt, _ in workload()])
    assert set(runner._graphs) == captured


def test_logprobs_equal_the_cpus(fp32_engine: Engine) -> None:
    params = SamplingParams(max_tokens=8, logprobs=4, ignore_eos=True)
    results = []
    for runner in (CpuRunner(fp32_engine.plan, fp32_engine.tensors("cpu"), PAGES), cuda_runner(fp32_engine)):
        loop = loop_over(runner)
        request = loop.add_request([1, 2, 3], params)
        loop.run()
        results.append(request)
    assert results[0].output.tolist() == results[1].output.tolist()
    for ours, theirs in zip(results[1].logprobs, results[0].logprobs, strict=True):
        assert ours.chosen == pytest.approx(theirs.chosen, abs=1e-3)
        assert list(ours.top) == list(theirs.top)


def test_random_bits_are_the_cpus() -> None:
    seeds, positions = torch.tensor([1, 2**62 + 5, 0]), torch.tensor([0, 7, 100_000])
    on_gpu = random_words(seeds.cuda(), positions.cuda(), 50_001)
    assert torch.equal(on_gpu.cpu(), random_words(seeds, positions, 50_001))
    noise = gumbel_noise(seeds.cuda(), positions.cuda(), 50_001)
    torch.testing.assert_close(noise.cpu(), gumbel_noise(seeds, positions, 50_001), atol=2e-6, rtol=2e-6)


def test_the_cache_takes_its_fraction_of_free_memory(fp32_engine: Engine) -> None:
    runner = cuda_runner(fp32_engine, num_pages=None, kv_cache_fraction=0.5)
    assert runner.num_pages == PROFILE.max_batch_size * PROFILE.max_pages_per_seq + 1


@pytest.fixture(scope="module")
def smollm2() -> Path:
    from trtllm_engines.checkpoints.fetch import fetch
    from trtllm_kernels.files import cache_folder

    return fetch("smollm2-135m", cache_folder() / "models" / "smollm2-135m")


@pytest.mark.model
def test_smollm2_in_bf16_says_what_it_says_in_fp32_on_the_cpu(smollm2: Path, tmp_path: Path) -> None:
    """Answers are begun for it: an answer's first word can be so close a call that rounding turns it."""
    target = detect_target()
    profile = Profile(max_batch_size=8, max_num_tokens=256, max_seq_len=512, page_size=32)
    gpu_engine = load_engine(build(smollm2, "bf16", out=tmp_path / "bf16", profile=profile, arches=(target.arch,)), target)
    cpu_engine = load_engine(build(smollm2, "fp32", out=tmp_path / "fp32", profile=profile))
    tokenizer = gpu_engine.tokenizer
    assert tokenizer is not None
    gpu, cpu = cuda_runner(gpu_engine, num_pages=129), CpuRunner(cpu_engine.plan, cpu_engine.tensors("cpu"), 129)
    questions = ["What is the capital of France?", "How many days are in a week?", "Name the largest ocean on Earth."]
    beginnings = ["The capital of France is", "There are", "The largest ocean on Earth is the"]
    answers = ["Paris", "seven", "Pacific"]
    for question, beginning, answer in zip(questions, beginnings, answers, strict=True):
        ids = np.array([*tokenizer.encode_chat([{"role": "user", "content": question}]), *tokenizer.encode(beginning)])
        first = []
        for runner in (cpu, gpu):
            config = SchedulerConfig(8, 256, 512, 32, 129)
            loop = EngineLoop(runner, config, vocab_size=49152, eos_ids=gpu_engine.plan.config.eos_token_ids)
            loop.add_request(ids, SamplingParams(max_tokens=1))
            loop.run()
            first.append(runner.outputs["logits"][0].float().cpu())
            request = loop.add_request(ids, SamplingParams(max_tokens=12))
            loop.run()
            text = tokenizer.decode(request.output.tolist())
            assert answer in text or (answer == "seven" and "7" in text), (runner, text)
        difference = torch.log_softmax(first[0], 0) - torch.log_softmax(first[1], 0)
        divergence = float((torch.softmax(first[0], 0) * difference).sum())
        assert divergence < 2e-2
        assert float(difference[first[0].topk(50).indices].abs().max()) < 0.5


def test_logits_that_are_no_numbers_are_told_where_they_are_looked_at(tmp_path: Path) -> None:
    target = detect_target()
    engine = build("tiny-llama", "bf16", out=tmp_path / "e", profile=PROFILE, arches=(target.arch,))
    llm: Any = LLM(engine, device="cuda", check_logits=True)
    good = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=8))[0]
    assert len(good.token_ids) == 8
    llm._runner.memory.tensors["model.norm.weight"].fill_(float("nan"))
    (output,) = llm.generate([[1, 2, 3]], SamplingParams(max_tokens=8))
    assert len(output.token_ids) == 0
    assert "the logits of a step are NaN or infinite, so there is no next token" in output.error
    with pytest.raises(EngineError, match="NaN or infinite"):
        llm.close()
    plain = LLM(engine, device="cuda")
    assert plain.generate([[1, 2, 3]], SamplingParams(max_tokens=8))[0].token_ids.tolist() == good.token_ids.tolist()
    plain.close()
