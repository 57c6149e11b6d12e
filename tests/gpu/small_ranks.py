"""A small model, its engines on one GPU and several, and what the tests of ranks ask of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trtllm_engines import LLM, SamplingParams
from trtllm_engines.checkpoints.checkpoint_precision import plan_for
from trtllm_engines.compiler.compile import compile_model
from trtllm_engines.compiler.fingerprint import detect_target
from trtllm_engines.compiler.plan import ParallelLayout, Profile
from trtllm_engines.engine.build import build
from trtllm_engines.llm import RequestOutput
from trtllm_engines.models.presets import resolve_model
from trtllm_engines.runtime.rank_processes import RankProcesses
from trtllm_kernels.compile.pool import compile_many

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
DUMMY = {"kind": "dummy", "seed": 0}
PAGES = 1024
"""Of 32 tokens. Several engines have their caches on a GPU at once."""
START_S = 60.0
Key = tuple[str, ParallelLayout]
"""Precision and layout of an engine."""


def built(model: Path, wanted: Sequence[Key]) -> dict[Key, Path]:
    """Engines in the folder `model`, made there too. Their kernels are compiled on all cores at once."""
    arch = detect_target().arch
    (model / "config.json").write_text(json.dumps(CONFIG))
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
