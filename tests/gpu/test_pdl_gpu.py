"""Kernels that begin before the one before them has ended (`triton_kernels/pdl.py`) change no bit of a step, captured or not.

A kernel that read or overwrote something too early would do so rarely: hence hundreds of steps, of kernels of a few microseconds (`tiny`)
and of ones whose weights fill the chip (`wide`: two layers at the 8B's widths, where a product's blocks wait while attention runs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from compiled_once import compiled_once

from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.fingerprint import detect_target
from trtllm_engines.compiler.plan import Plan, Profile
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import SchedulerConfig
from trtllm_kernels.compile.cubin import Cubin
from trtllm_kernels.dialect.types import LEAST_KEYS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

PROFILE = Profile(max_batch_size=8, max_num_tokens=256, max_seq_len=512, page_size=32)
PAGES = 8 * 16 + 1
STEPS = 200
MODELS = {
    "tiny-bf16": (resolve_model("tiny-llama").config, "bf16"),
    "tiny-fp8": (resolve_model("tiny-llama").config, "fp8"),
    "wide-bf16": (replace(resolve_model("llama-3.1-8b").config, num_layers=2, vocab_size=8192), "bf16"),
    "wide-fp8": (replace(resolve_model("llama-3.1-8b").config, num_layers=2, vocab_size=8192), "fp8"),
    "wide-fp8_rowwise": (replace(resolve_model("llama-3.1-8b").config, num_layers=2, vocab_size=8192), "fp8_rowwise"),
}


@dataclass(frozen=True)
class Built:
    plan: Plan
    arch: str
    tensors: Mapping[str, torch.Tensor]
    cubins: Mapping[str, Cubin]

    def runner(self, **options: Any) -> Any:
        from trtllm_engines.runtime.cuda import CudaRunner

        return CudaRunner(self.plan, self.arch, self.tensors, self.cubins.__getitem__, num_pages=PAGES, **options)


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.xdist_group(name)) for name in MODELS])
def built(request: pytest.FixtureRequest) -> Built:
    config, precision = MODELS[request.param]
    arch, device, source = detect_target().arch, torch.device("cuda"), DummyWeights(0)
    compiled = compile_model(config, precision, PROFILE, arches=(arch,), weights_source=source.description)
    tensors = {name: assemble(compiled.plan, name, source, device) for name in compiled.plan.weights}
    tensors |= {name: tensor.to(device) for name, tensor in compiled.constants.items()}
    cubins = compiled_once((kernel for op in compiled.plan.ops for kernel in op.tactics[arch].kernels), arch)
    return Built(compiled.plan, arch, tensors, cubins)


def loop_over(runner: Any, overlap: bool) -> EngineLoop:
    config = SchedulerConfig(8, PROFILE.max_num_tokens, PROFILE.max_seq_len, PROFILE.page_size, PAGES)
    return EngineLoop(runner, config, vocab_size=runner.plan.config.vocab_size, overlap=overlap)


def prompts(count: int, vocab: int) -> list[np.ndarray]:
    return [np.random.default_rng(i).integers(0, vocab, 33 + 7 * i) for i in range(count)]


def logits_of_steps(runner: Any, sequences: int = 1) -> torch.Tensor:
    """[steps, sequences, vocabulary]: of every step that only decodes, which follow prefills."""
    loop = loop_over(runner, overlap=False)
    for prompt in prompts(sequences, runner.plan.config.vocab_size):
        loop.add_request(prompt, SamplingParams(max_tokens=STEPS + 1, ignore_eos=True))
    seen = []
    while not loop.idle:
        loop.step()
        seen.append(runner.outputs["logits"][:sequences].clone())
    assert len(seen) > STEPS
    return torch.stack(seen[-STEPS:])


def assert_same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert not ours.isnan().any()
    wrong = (ours != theirs).flatten(1).any(1).nonzero().flatten().tolist()
    assert not wrong, f"{len(wrong)} of {len(ours)} steps differ, the first of them {wrong[:5]}"


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_logits_of_single_sequences_are_the_same_bits(built: Built, cuda_graphs: bool) -> None:
    expected = logits_of_steps(built.runner(cuda_graphs=cuda_graphs, pdl=False))
    for _ in range(2):
        assert_same_bits(logits_of_steps(built.runner(cuda_graphs=cuda_graphs)), expected)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_logits_of_batches_are_the_same_bits(built: Built, cuda_graphs: bool) -> None:
    """Here library routines lie between kernels; captured, 5 sequences are padded to 8."""
    expected = logits_of_steps(built.runner(cuda_graphs=cuda_graphs, pdl=False), 5)
    assert_same_bits(logits_of_steps(built.runner(cuda_graphs=cuda_graphs), 5), expected)


def test_replays_that_follow_each_other_closely_are_the_same_bits(built: Built) -> None:
    """One decode step again and again with nothing to wait for: each replay overwrites what the one right before it has just read."""
    kept = []
    for pdl in (False, True):
        runner = built.runner(pdl=pdl)
        runner.capture()
        loop = loop_over(runner, overlap=False)
        loop.add_request(prompts(1, runner.plan.config.vocab_size)[0], SamplingParams(max_tokens=9, ignore_eos=True))
        loop.run()
        inputs = runner.state.inputs
        inputs.tensors["sample_slots"].fill_(inputs.padding_slot)  # so that a replay does not change what the next one reads
        graph = runner._graphs[1, LEAST_KEYS]
        replayed = []
        for index in range(STEPS):
            graph.replay()
            if index % 3 == 2:  # mostly one graph right behind another
                replayed.append(runner._values["logits"][:1].clone())
        kept.append(torch.stack(replayed))
    assert_same_bits(kept[0], kept[0][:1].expand_as(kept[0]))
    assert_same_bits(kept[1], kept[0])


def test_requests_served_ahead_get_the_same_tokens(built: Built) -> None:
    """Prefills, mixed steps and decode steps, each scheduled while the one before runs."""
    tokens = []
    for pdl in (False, True):
        runner = built.runner(pdl=pdl)
        loop = loop_over(runner, overlap=True)
        requests = [
            loop.add_request(prompt, SamplingParams(max_tokens=20 + 9 * i, ignore_eos=True))
            for i, prompt in enumerate(prompts(20, runner.plan.config.vocab_size))
        ]
        loop.run()
        assert all(request.error is None for request in requests)
        tokens.append([request.output.tolist() for request in requests])
    assert tokens[0] == tokens[1]
