"""The engine: model definitions, compiler, plan, in-flight batched runtime.

`from trtllm_engines import LLM, SamplingParams`. Names are loaded when used, so that importing the package costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtllm_engines.llm import LLM, RequestOutput
    from trtllm_engines.runtime.sampling_params import SamplingParams

__all__ = ["LLM", "RequestOutput", "SamplingParams"]

_HOMES = {"LLM": "llm", "RequestOutput": "llm", "SamplingParams": "runtime.sampling_params"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
