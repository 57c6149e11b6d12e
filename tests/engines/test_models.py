"""Our model definitions against transformers' own, with transformers' own checkpoints: every architecture, tiny and random, fp32.

The path is the user's: `save_pretrained` (in shards) -> config.json -> trace -> weights by name -> logits, unpaged and compiled.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from compiler_models import PROFILE, dense_inputs, paged_inputs, stacked

from trtllm_engines.checkpoints import open_weights
from trtllm_engines.compiler.graph import evaluate, trace
from trtllm_engines.compiler.passes import run_passes
from trtllm_engines.models.config import read_config

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 64,
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama 2": ("LlamaConfig", "LlamaForCausalLM", {**COMMON, "num_key_value_heads": 4}),
    "llama 3.1": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {**COMMON, "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 16}},
    ),
    "linear rope": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {**COMMON, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "every bias": ("LlamaConfig", "LlamaForCausalLM", {**COMMON, "attention_bias": True, "mlp_bias": True}),
    "tied": ("LlamaConfig", "LlamaForCausalLM", {**COMMON, "tie_word_embeddings": True}),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**COMMON, "sliding_window": None, "head_dim": 32}),
    "qwen2.5": ("Qwen2Config", "Qwen2ForCausalLM", COMMON),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", {**COMMON, "head_dim": 32}),
    "gpt-j": (
        "GPTJConfig",
        "GPTJForCausalLM",
        {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 64, "rotary_dim": 8, "vocab_size": 97, "eos_token_id": 2},
    ),
}


def reference_logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    bounds = inputs["query_start"].tolist()
    ids = inputs["token_ids"].long()
    with torch.no_grad():
        rows = [model(ids[None, begin:end]).logits[0] for begin, end in pairwise(bounds)]
    return torch.cat(rows)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_transformers(name: str, tmp_path: Path) -> None:
    config_class, model_class, fields = CONFIGS[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**fields)).eval()
    for parameter in model.parameters():  # norms start at one and biases at zero: draw them too, or a swapped one goes unseen
        parameter.data.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1

    config = read_config(tmp_path)
    source = open_weights(tmp_path)
    inputs = dense_inputs()
    expected = reference_logits(model, inputs)
    graph = trace(config, "fp32", PROFILE)
    cpu = torch.device("cpu")
    tensors = {key: source.read(key, shape, torch.float32, cpu) for key, shape in graph.checkpoint_shapes.items()}
    torch.testing.assert_close(evaluate(graph, tensors, inputs)[0], expected, atol=2e-5, rtol=2e-5)
    run_passes(graph)
    torch.testing.assert_close(evaluate(graph, stacked(graph, tensors), paged_inputs(graph))[0], expected, atol=2e-5, rtol=2e-5)
