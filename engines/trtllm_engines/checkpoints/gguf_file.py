"""GGUF, llama.cpp's single-file format: configuration, tokenizer and (quantized) weights. Dequantized on reading by the `gguf` library.

What an architecture's metadata means, and how its tensors are called and laid out, each model family says (`models/<family>/`).
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
from trtllm_engines.models import families
from trtllm_engines.models.config import ModelConfig, readable, token_ids
from trtllm_engines.models.families import FloatArray
from trtllm_engines.models.fields import Fields, is_neutral

HARMLESS: Mapping[str, tuple[Any, ...] | None] = {
    "vocab_size": None,
    "tensor_data_layout": None,
    "pooling_type": None,
    "rope.scaling.original_context_length": None,
    "rope.scaling.finetuned": None,
    "rope.scaling.attn_factor": (1.0,),
    "rope.scale_linear": (1.0,),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "use_parallel_residual": (False,),
}
"""Metadata of an architecture, without its prefix, that a family's parser need not read: the values (None: all) with which it changes no
result. llama.cpp takes 0 of a scale or a cap for none."""
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
        formats = families.gguf_formats()
        if architecture not in formats:
            raise EngineError(f"{path}: GGUF architecture {architecture!r} is not supported; supported are {', '.join(formats)}")
        self.architecture: str = architecture
        self.format = formats[architecture]

    def get(self, key: str, default: Any = None) -> Any:
        """A metadata value."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def tensor(self, name: str) -> FloatArray | None:
        """fp32, dequantized, shape as Hugging Face has it; None when absent."""
        stored = self._tensors.get(name)
        if stored is None:
            return None
        shape = tuple(int(n) for n in reversed(stored.shape))
        values = gguf.quants.dequantize(stored.data, stored.tensor_type)
        return np.array(values, dtype=np.float32).reshape(shape)

    def shape(self, name: str) -> tuple[int, ...] | None:
        stored = self._tensors.get(name)
        return None if stored is None else tuple(int(n) for n in reversed(stored.shape))

    @cached_property
    def config(self) -> ModelConfig:
        """Read from the metadata by the family. Raises `EngineError` for what is missing, and for what would change results unheeded."""
        prefix = f"{self.architecture}."
        keys = [str(key) for key in self._reader.fields if str(key).startswith(prefix)]
        fields = Fields({key.removeprefix(prefix): self.get(key) for key in keys}, f"{self.path}: GGUF metadata of {self.architecture}")
        with readable(fields, lambda key: f"{self.path}: metadata {prefix}{key} is missing"):
            config = self.format.parse(fields, self, self.path.stem)
        for key in fields.unread():
            neutral = HARMLESS.get(key, ())
            if neutral is not None and not is_neutral(fields[key], neutral):
                raise fields.refuse(key)
        ids = {key: self.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos")}
        return replace(config, bos_token_id=ids["bos"], eos_token_ids=token_ids(ids["eos"]))

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
        stored = stored_name(name, self._file.format.names)
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
        values = self._file.tensor(str(stored_name(name, self._file.format.names)))
        assert values is not None
        values = self._file.format.convert(name, values, self._file.config)
        return torch.from_numpy(np.ascontiguousarray(values)).to(device=device, dtype=dtype)


def stored_name(name: str, names: Mapping[str, str]) -> str | None:
    """llama.cpp's name of weight `name` (`model.layers.3.mlp.up_proj.weight`), by a family's `GgufFormat.names`; None when it has none."""
    module, _, kind = name.rpartition(".")
    layer = re.search(r"\.(\d+)\.", module)
    number = "" if layer is None else layer.group(1)
    stored = names.get(module if layer is None else f"{module[: layer.start(1)]}{{n}}{module[layer.end(1) :]}")
    return None if stored is None or kind not in ("weight", "bias") else f"{stored.replace('{n}', number)}.{kind}"
