"""GGUF, llama.cpp's single-file format: configuration, tokenizer and (quantized) weights. Dequantized on reading by the `gguf` library.

Two things differ from Hugging Face. Names, mapped here. And for architecture `llama` the rows of q and k are stored interleaved, for a
rotation of adjacent pairs; we undo that, since our table rotates halves. Llama 3.1's frequency scaling arrives as a tensor of divisors,
`rope_freqs.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from trtllm_engines.checkpoints import check_shape
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig, RopeConfig

ARCHITECTURES: Mapping[str, str] = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
_TOP_LEVEL: Mapping[str, str] = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_IN_LAYER: Mapping[str, str] = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_CONTROL_TOKEN = 3
"""`tokenizer.ggml.token_type` of special tokens."""


class GgufFile:
    """One GGUF file, memory-mapped. Raises `EngineError` when it is not one, or of an architecture we have no model for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
        except Exception as error:
            raise EngineError(f"{path} is not a whole GGUF file ({error}); download it again") from None
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        architecture = self.get("general.architecture")
        if architecture not in ARCHITECTURES:
            raise EngineError(f"{path}: GGUF architecture {architecture!r} is not supported; supported are {', '.join(ARCHITECTURES)}")
        self.architecture: str = architecture

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def tensor(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]] | None:
        """fp32, dequantized, shape as Hugging Face has it; None when absent."""
        found = self._tensors.get(name)
        if found is None:
            return None
        shape = tuple(int(n) for n in reversed(found.shape))
        values = gguf.quants.dequantize(found.data, found.tensor_type)
        return np.array(values, dtype=np.float32).reshape(shape)

    def shape(self, name: str) -> tuple[int, ...] | None:
        found = self._tensors.get(name)
        return None if found is None else tuple(int(n) for n in reversed(found.shape))

    @cached_property
    def config(self) -> ModelConfig:
        """Read from the metadata."""

        def need(key: str) -> Any:
            value = self.get(f"{self.architecture}.{key}")
            if value is None:
                raise EngineError(f"{self.path}: metadata {self.architecture}.{key} is missing")
            return value

        heads = int(need("attention.head_count"))
        hidden = int(need("embedding_length"))
        head_dim = int(self.get(f"{self.architecture}.attention.key_length") or hidden // heads)
        rope = RopeConfig(
            theta=float(self.get(f"{self.architecture}.rope.freq_base") or 10000.0),
            rotary_dim=int(self.get(f"{self.architecture}.rope.dimension_count") or head_dim),
        )
        factors = self.tensor("rope_freqs.weight")
        scaling = self.get(f"{self.architecture}.rope.scaling.type") or "none"
        if factors is not None:
            rope = replace(rope, scaling="factors", freq_factors=tuple(float(f) for f in factors))
        elif scaling == "linear":
            rope = replace(rope, scaling="linear", factor=float(need("rope.scaling.factor")))
        elif scaling != "none":
            raise EngineError(f"{self.path}: rope scaling {scaling!r} is not supported; supported are none and linear")
        embedding = self.shape("token_embd.weight")
        if embedding is None:
            raise EngineError(f"weight token_embd.weight is missing from {self.path}")
        eos = self.get("tokenizer.ggml.eos_token_id")
        return ModelConfig(
            name=self.path.stem,
            architecture=ARCHITECTURES[self.architecture],
            hidden_size=hidden,
            num_layers=int(need("block_count")),
            num_heads=heads,
            num_kv_heads=int(self.get(f"{self.architecture}.attention.head_count_kv") or heads),
            head_dim=head_dim,
            intermediate_size=int(need("feed_forward_length")),
            vocab_size=embedding[0],
            max_position_embeddings=int(need("context_length")),
            norm_eps=float(np.float32(need("attention.layer_norm_rms_epsilon")).astype(str)),
            rope=rope,
            qkv_bias=self.shape("blk.0.attn_q.bias") is not None,
            output_bias=self.shape("blk.0.attn_output.bias") is not None,
            mlp_bias=self.shape("blk.0.ffn_gate.bias") is not None,
            qk_norm=self.shape("blk.0.attn_q_norm.weight") is not None,
            tie_embeddings=self.shape("output.weight") is None,
            bos_token_id=self.get("tokenizer.ggml.bos_token_id"),
            eos_token_ids=() if eos is None else (int(eos),),
        )

    def special_tokens(self) -> list[str]:
        tokens, types = self.get("tokenizer.ggml.tokens"), self.get("tokenizer.ggml.token_type")
        return [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]


class GgufWeights:
    """A GGUF file as a source of weights."""

    def __init__(self, path: Path) -> None:
        self._file = GgufFile(path)

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "gguf", "path": str(self._file.path)}

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        stored = _stored_name(name)
        found = None if stored is None else self._file.shape(stored)
        if found is None:
            raise EngineError(f"weight {name} ({stored} in GGUF) is missing from {self._file.path} (expected shape {list(shape)})")
        check_shape(name, shape, found, str(self._file.path))

    def codes(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        return None

    def largest(self, name: str, shape: tuple[int, ...]) -> None:
        return None

    def kv_scale(self, name: str) -> float:
        return 1.0

    def input_scale(self, name: str) -> float:
        raise EngineError("a GGUF file has no activation scales, which an fp8 engine needs; calibrate first: trtllm-bench quantize")

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        self.check(name, shape)
        values = self._file.tensor(str(_stored_name(name)))
        assert values is not None
        config = self._file.config
        if self._file.architecture == "llama" and ".q_proj." in name:
            values = unpermute(values, config.num_heads)
        if self._file.architecture == "llama" and ".k_proj." in name:
            values = unpermute(values, config.num_kv_heads)
        return torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype)


def _stored_name(name: str) -> str | None:
    if name in _TOP_LEVEL:
        return _TOP_LEVEL[name]
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if found is None or found[2] not in _IN_LAYER:
        return None
    return f"blk.{found[1]}.{_IN_LAYER[found[2]]}.{found[3]}"


def unpermute(values: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """Rows of each head from interleaved pairs (0, h, 1, h + 1, ...) to halves (0, 1, ..., h, h + 1, ...)."""
    rows = values.shape[0]
    return values.reshape(num_heads, rows // num_heads // 2, 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
