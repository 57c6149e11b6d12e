"""What a step finds on the device, as the runtime leaves it there: its inputs, and a cache with keys and values."""

from __future__ import annotations

import numpy as np
import torch

from trtllm_bench.roofline.counts import StepShape
from trtllm_engines.compiler.plan import KV_SCALES, Plan
from trtllm_engines.runtime.batch import StepBatch
from trtllm_engines.runtime.device_state import DeviceState
from trtllm_engines.runtime.pages import RESERVED_PAGES
from trtllm_kernels.references.quantize import INT8_MAX

VALUE_RANGE = 3.0
"""Largest magnitude of drawn keys and values."""


def upload_step(state: DeviceState, plan: Plan, shape: StepShape) -> None:
    """A step as the runtime would upload it, of drawn tokens; each sequence owns consecutive pages."""
    sequences, decodes = shape.sequences, shape.num_decodes
    page = plan.profile.page_size
    counts = -(-shape.kv_lens // page)
    table = np.zeros((sequences, plan.profile.max_pages_per_seq), np.int32)
    first = RESERVED_PAGES
    for row, count in enumerate(counts.tolist()):
        table[row, :count] = np.arange(first, first + count)
        first += count
    state.block_table[:sequences] = torch.from_numpy(table).to(state.device)
    vocabulary = plan.config.vocab_size
    draw = np.random.default_rng(0)
    state.last_tokens.copy_(torch.from_numpy(draw.integers(0, vocabulary, len(state.last_tokens)).astype(np.int32)))
    sampled = np.ones(sequences, np.bool_)
    state.upload(
        StepBatch(
            slots=np.arange(sequences, dtype=np.int32),
            query_lens=shape.query_lens.astype(np.int32),
            kv_lens=shape.kv_lens.astype(np.int32),
            num_decodes=decodes,
            context_tokens=draw.integers(0, vocabulary, shape.tokens - decodes).astype(np.int32),
            sampled=sampled,
            page_updates=np.empty((0, 3), np.int32),
        )
    )


def fill_cache(state: DeviceState) -> None:
    """Keys and values of sequences already there, drawn; where each has a scale, all scales are alike."""
    scale = 1.0
    if (scales := state.tensors.get(KV_SCALES)) is not None:
        scale = VALUE_RANGE / INT8_MAX
        scales.fill_(scale)
    flat = state.kv_cache.view(-1)
    for at in range(0, len(flat), 1 << 26):
        part = flat[at : at + (1 << 26)]
        part.copy_(torch.randn(len(part), device=flat.device).clamp_(-VALUE_RANGE, VALUE_RANGE) / scale)
