"""Hugging Face folders of the small Llama, and the logits of an engine on one prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from compiler_models import PROFILE, int32
from safetensors.torch import save_file

from trtllm_engines.engine.folder import load_engine
from trtllm_engines.runtime.cpu import CpuRunner
from trtllm_engines.runtime.inputs import StepSizes


def hf_folder(folder: Path, tensors: dict[str, torch.Tensor], quantization_config: dict[str, Any] | None = None) -> Path:
    """`compiler_models.LLAMA` over these tensors."""
    config: dict[str, Any] = {"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3}
    config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 64, "rms_norm_eps": 1e-5}
    if quantization_config is not None:
        config["quantization_config"] = quantization_config
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")
    return folder


def logits_of(engine: Path) -> torch.Tensor:
    """[4, vocabulary] of tokens 0, 5, 10 and 15 of a prompt of 16."""
    loaded = load_engine(engine)
    runner = CpuRunner(loaded.plan, loaded.tensors("cpu"), num_pages=8)
    values = {"context_tokens": int32(list(range(16))), "seq_slots": int32([0]), "query_start": int32([0, 16]), "kv_lens": int32([16])}
    for name, value in {**values, "logit_rows": torch.arange(4, dtype=torch.int32) * 5}.items():
        runner.state.tensors[name][: len(value)] = value
    runner.state.block_table[0] = torch.arange(1, PROFILE.max_pages_per_seq + 1)
    return runner.forward(StepSizes(16, 1, 0, 4, 16, 0, 0))["logits"]
