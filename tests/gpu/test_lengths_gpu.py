"""Sequences that grow past the length from which on another kernel decodes them: the same tokens with graphs as without."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from compiled_once import compiled_once

from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.checkpoints.write import assemble
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.fingerprint import detect_target
from trtllm_engines.compiler.plan import Profile
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.runtime.engine_loop import EngineLoop
from trtllm_engines.runtime.sampling_params import SamplingParams
from trtllm_engines.runtime.scheduler import SchedulerConfig
from trtllm_kernels.dialect.types import LEAST_KEYS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.xdist_group("lengths"),
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] != 9, reason="kernels that depend on lengths are sm_90's"
    ),
]

PROFILE = Profile(max_batch_size=72, max_num_tokens=8192, max_seq_len=1056, page_size=32)
PAGES = 72 * 33 + 1
CONFIG = replace(resolve_model("llama-3.1-8b").config, num_layers=2, vocab_size=8192)


def runner_of(precision: str, **options: Any) -> Any:
    from trtllm_engines.runtime.cuda import CudaRunner

    arch, source = detect_target().arch, DummyWeights(0)
    compiled = compile_model(CONFIG, precision, PROFILE, arches=(arch,), weights_source=source.description)
    tensors = {name: assemble(compiled.plan, name, source, torch.device("cuda")) for name in compiled.plan.weights}
    tensors |= {name: tensor.cuda() for name, tensor in compiled.constants.items()}
    cubins = compiled_once((kernel for op in compiled.plan.ops for kernel in op.tactics[arch].kernels), arch)
    return CudaRunner(compiled.plan, arch, tensors, cubins.__getitem__, num_pages=PAGES, **options)


def tokens_of(runner: Any) -> torch.Tensor:
    """[sequences, tokens], of sequences that decode together from 1,010 to 1,040 keys."""
    config = SchedulerConfig(72, PROFILE.max_num_tokens, PROFILE.max_seq_len, PROFILE.page_size, PAGES)
    loop = EngineLoop(runner, config, vocab_size=CONFIG.vocab_size, overlap=False)
    prompts = [np.random.default_rng(i).integers(0, CONFIG.vocab_size, 1000 + i % 9) for i in range(72)]
    requests = [loop.add_request(prompt, SamplingParams(max_tokens=40, ignore_eos=True)) for prompt in prompts]
    loop.run()
    return torch.tensor(np.stack([request.output for request in requests]))


@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_growing_past_the_length_of_the_persistent_kernel(precision: str) -> None:
    captured = runner_of(precision)
    tokens = tokens_of(captured)
    assert {key for key in captured._graphs if key[0] == 72} == {(72, LEAST_KEYS), (72, 2048)}
    del captured
    assert torch.equal(tokens, tokens_of(runner_of(precision, cuda_graphs=False)))
