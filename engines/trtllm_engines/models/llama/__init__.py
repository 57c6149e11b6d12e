"""The Llama family: Llama 2, 3 and 3.1, SmolLM2, Mistral, Qwen2.5, Qwen3."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_engines.models.families import Family, register
from trtllm_engines.models.llama.config import ARCHITECTURES, parse
from trtllm_engines.models.llama.gguf import FORMATS
from trtllm_engines.models.llama.presets import PRESETS

if TYPE_CHECKING:
    from torch import nn

    from trtllm_engines.models.config import ModelConfig


def _module(config: ModelConfig) -> nn.Module:
    from trtllm_engines.models.llama.module import LlamaForCausalLM

    return LlamaForCausalLM(config)


FAMILY = register(
    Family(
        name="llama",
        architectures={name: form.model_type for name, form in ARCHITECTURES.items()},
        parse=parse,
        module=_module,
        gguf=FORMATS,
        presets=PRESETS,
    )
)
