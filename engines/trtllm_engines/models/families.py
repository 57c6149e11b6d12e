"""Model definitions, as their papers put them: no precision, no paging, no parallelism, no fusion. Passes add those."""

from __future__ import annotations

from torch import nn

from trtllm_engines.models.config import ModelConfig


def define(config: ModelConfig) -> nn.Module:
    """The module of `config`'s family, its parameters on the meta device."""
    if config.family == "gptj":
        from trtllm_engines.models.gptj import GPTJForCausalLM

        return GPTJForCausalLM(config)
    from trtllm_engines.models.llama import LlamaForCausalLM

    return LlamaForCausalLM(config)
