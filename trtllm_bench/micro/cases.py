"""Steps of a model that are taken apart op by op, and the plan that is compiled for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trtllm_bench.errors import BenchError
from trtllm_bench.roofline.counts import StepShape
from trtllm_engines.checkpoints.dummy import DummyWeights
from trtllm_engines.compiler.compile import Compiled, compile_model
from trtllm_engines.compiler.plan import Op, Plan, Profile
from trtllm_engines.models.config import ModelConfig


@dataclass(frozen=True)
class KernelCase:
    """One step to take apart."""

    label: str
    shape: StepShape


def decode_case(sequences: int, kv_len: int) -> KernelCase:
    return KernelCase("decode", StepShape.decode(sequences, kv_len))


def prefill_case(tokens: int) -> KernelCase:
    return KernelCase("prefill", StepShape.prefill(1, tokens))


def chunk_case(tokens: int, past: int) -> KernelCase:
    """A prompt's next tokens, the `past` before them in the cache."""
    return KernelCase("chunk", StepShape(np.array([tokens]), np.array([tokens + past]), 0, 1))


def compile_cases(
    config: ModelConfig, precision: str, arch: str, cases: Sequence[KernelCase], page_size: int = 32, **compile_flags: Any
) -> Compiled:
    """A model's plan for these steps, in which the last layer's ops are those of the others.

    Raises `BenchError` for a sequence of more tokens than the model has positions.
    """
    tokens = max(case.shape.tokens for case in cases)
    sequences = max(case.shape.sequences for case in cases)
    longest = max(int(case.shape.kv_lens.max()) for case in cases)
    if longest > config.max_position_embeddings:
        most = config.max_position_embeddings
        raise BenchError(f"{config.name} has {most:,} positions; a sequence of {longest:,} tokens is too long for it")
    profile = Profile(sequences, max(tokens, sequences), min(longest + 1, config.max_position_embeddings), page_size)
    source = DummyWeights(0).description
    return compile_model(config, precision, profile, arches=(arch,), weights_source=source, every_row=True, **compile_flags)


def ops_until(plan: Plan, last: str) -> tuple[Op, ...]:
    """A plan's ops up to the first whose kind is `last`; all of them where that is empty."""
    end = next((index + 1 for index, op in enumerate(plan.ops) if op.op == last), len(plan.ops))
    return plan.ops[:end]
