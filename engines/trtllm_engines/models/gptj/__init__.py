"""GPT-J."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trtllm_engines.models.families import Family, register
from trtllm_engines.models.gptj.config import ARCHITECTURE, PRESETS, parse

if TYPE_CHECKING:
    from torch import nn

    from trtllm_engines.models.config import ModelConfig


def _module(config: ModelConfig) -> nn.Module:
    from trtllm_engines.models.gptj.module import GPTJForCausalLM

    return GPTJForCausalLM(config)


FAMILY = register(Family(name="gptj", architectures={ARCHITECTURE: "gptj"}, parse=parse, module=_module, presets=PRESETS))
