"""Small models of every shape the compiler must handle, and one ragged batch to run them on, dense or paged."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from trtllm_engines.checkpoints.dummy import draw
from trtllm_engines.compiler.graph import ModelGraph
from trtllm_engines.compiler.plan import KV_SCALES, RING_SLOTS, Profile
from trtllm_engines.models.config import ModelConfig, RopeConfig
from trtllm_kernels.dialect.specs import DTYPES
from trtllm_kernels.dialect.types import SAMPLING_WORDS
from trtllm_kernels.references.sampling import EMPTY

PROFILE = Profile(max_batch_size=4, max_num_tokens=64, max_seq_len=64, page_size=16)

LLAMA = ModelConfig(
    name="test-llama",
    architecture="LlamaForCausalLM",
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=96,
    vocab_size=97,
    max_position_embeddings=64,
    norm_eps=1e-5,
    rope=RopeConfig(theta=10000.0, rotary_dim=16),
)
MODELS: dict[str, ModelConfig] = {
    "llama": LLAMA,
    "multi-head": replace(LLAMA, num_kv_heads=4),
    "qkv bias": replace(LLAMA, architecture="Qwen2ForCausalLM", qkv_bias=True),
    "every bias": replace(LLAMA, qkv_bias=True, output_bias=True, mlp_bias=True),
    "qk norm": replace(LLAMA, architecture="Qwen3ForCausalLM", qk_norm=True, head_dim=32, rope=RopeConfig(1e6, 32)),
    "tied embeddings": replace(LLAMA, tie_embeddings=True),
    "gptj": replace(
        LLAMA, architecture="GPTJForCausalLM", num_kv_heads=4, mlp_bias=True, rope=RopeConfig(10000.0, rotary_dim=8, interleaved=True)
    ),
    "one layer": replace(LLAMA, num_layers=1),
}
LENGTHS = (5, 1, 17, 9)
TOTAL = sum(LENGTHS)


def checkpoint(graph: ModelGraph, seed: int = 0) -> dict[str, Tensor]:
    """Random tensors under checkpoint names."""
    tensors = {}
    for name, shape in graph.checkpoint_shapes.items():
        tensors[name] = torch.empty(shape, dtype=DTYPES[graph.dtype])
        draw(tensors[name], name, seed)
    return tensors


def stacked(graph: ModelGraph, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The graph's weights, merged ones stacked from the checkpoint's."""

    def made(weight: str) -> Tensor:
        parts = [tensors[name] for name, _ in graph.parts(weight)]
        return torch.stack(parts, 1).flatten(0, 1) if graph.recipe(weight).interleave else torch.cat(parts)

    return {weight: made(weight) for weight in graph.weights}


def int32(values: object) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int32)


def dense_inputs(seed: int = 0) -> dict[str, Tensor]:
    """Four whole prompts, logits of every token."""
    tokens = torch.randint(0, LLAMA.vocab_size, (TOTAL,), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)
    return {
        "token_ids": tokens,
        "positions": torch.cat([torch.arange(n, dtype=torch.int32) for n in LENGTHS]),
        "query_start": int32([0, *torch.tensor(LENGTHS).cumsum(0).tolist()]),
        "logit_rows": torch.arange(TOTAL, dtype=torch.int32),
    }


def paged_inputs(graph: ModelGraph, seed: int = 0) -> dict[str, Tensor]:
    """The same prompts as one step over an empty cache: pages shuffled, unwritten cache poisoned."""
    dense = dense_inputs(seed)
    config, profile = graph.config, graph.profile
    slots = profile.max_batch_size + 1
    pages = slots * profile.max_pages_per_seq + 1
    order = torch.randperm(pages - 1, generator=torch.Generator().manual_seed(seed), dtype=torch.int32) + 1
    table = order[: slots * profile.max_pages_per_seq].reshape(slots, -1)
    shape = (config.num_layers, pages, 2, config.num_kv_heads, profile.page_size, config.head_dim)
    return {
        "context_tokens": dense["token_ids"],
        "seq_slots": int32([2, 0, 3, 1]),
        "query_start": dense["query_start"],
        "kv_lens": int32(LENGTHS),
        "logit_rows": dense["logit_rows"],
        "sampling_words": torch.zeros((TOTAL, SAMPLING_WORDS), dtype=torch.int32),
        "sample_slots": int32([2] * TOTAL),
        "ring_slot": int32([0]),
        "token_ring": torch.zeros((RING_SLOTS, TOTAL), dtype=torch.int32),
        "argmax_scratch": torch.full((TOTAL,), EMPTY),
        "last_tokens": int32([0] * slots),
        "block_table": table,
        "kv_cache": torch.full(shape, 127, dtype=torch.int8)
        if KV_SCALES in graph.inputs
        else torch.full(shape, float("nan"), dtype=DTYPES[graph.inputs["kv_cache"].dtype]),
        **({KV_SCALES: torch.full(shape[:-1], float("nan"))} if KV_SCALES in graph.inputs else {}),
    }
