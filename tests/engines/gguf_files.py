"""GGUF files of the tests' Llama, written as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import torch
from compiler_models import LLAMA

from trtllm_engines.checkpoints.gguf_weights import stored_name
from trtllm_engines.models.llama.gguf import NAMES


def permute(values: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k."""
    rows = values.shape[0]
    return values.reshape(heads, 2, rows // heads // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def write_gguf(
    path: Path,
    tensors: dict[str, torch.Tensor],
    quantized: bool,
    architecture: str = "llama",
    metadata: Mapping[str, bool | int | float | str | list[int] | list[str]] | None = None,
) -> None:
    """`metadata` is written in place of what the file would say, or besides."""
    writer = gguf.GGUFWriter(path, architecture)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
    writer.add_block_count(LLAMA.num_layers)
    writer.add_context_length(LLAMA.max_position_embeddings)
    writer.add_embedding_length(LLAMA.hidden_size)
    if f"{architecture}.feed_forward_length" not in (metadata or {}):
        writer.add_feed_forward_length(LLAMA.intermediate_size)
    for key, value in (metadata or {}).items():
        add[type(value)](key, value)
    writer.add_head_count(LLAMA.num_heads)
    writer.add_head_count_kv(LLAMA.num_kv_heads)
    writer.add_layer_norm_rms_eps(LLAMA.norm_eps)
    writer.add_rope_freq_base(LLAMA.rope.theta)
    writer.add_eos_token_id(2)
    for name, tensor in tensors.items():
        values = tensor.numpy()
        if architecture == "llama" and ".q_proj." in name:
            values = permute(values, LLAMA.num_heads)
        if architecture == "llama" and ".k_proj." in name:
            values = permute(values, LLAMA.num_kv_heads)
        stored = stored_name(name, NAMES)
        assert stored is not None
        if quantized and values.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(stored, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
