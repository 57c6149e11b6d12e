"""Where weights come from: a Hugging Face folder, a GGUF file, or a seeded generator. All answer to Hugging Face's names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trtllm_engines.errors import EngineError


class WeightSource(Protocol):
    """Reads checkpoint tensors one at a time, so that a model larger than memory can be built."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What the plan records as `weights_source`."""

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The tensor called `name`. Raises `EngineError` when it is missing or not of this shape."""

    def largest(self, name: str, shape: tuple[int, ...]) -> float | None:
        """A bound on the magnitude of matrix `name` that is known without reading it, such as an fp8 checkpoint's scale times 448."""

    def scale(self, name: str, kind: str) -> float:
        """Static scale `name`; `kind` is `input_scale` or `kv_scale`. Raises `EngineError` when it must be there and is not."""


def open_weights(weights: str | Path, seed: int = 0) -> WeightSource:
    """`dummy`, a Hugging Face folder or a `.gguf` file. Raises `EngineError` saying what was looked for and not found."""
    if str(weights) == "dummy":
        from trtllm_engines.checkpoints.dummy import DummyWeights

        return DummyWeights(seed)
    path = Path(weights)
    if path.is_file() and path.suffix == ".gguf":
        from trtllm_engines.checkpoints.gguf_file import GgufWeights

        return GgufWeights(path)
    if path.is_dir():
        from trtllm_engines.checkpoints.checkpoint import SafetensorsWeights

        return SafetensorsWeights(path)
    raise EngineError(f"weights {str(weights)!r}: not 'dummy' and no such folder or .gguf file")


def check_shape(name: str, expected: tuple[int, ...], found: tuple[int, ...], where: str) -> None:
    if tuple(expected) != tuple(found):
        raise EngineError(f"weight {name} in {where} has shape {list(found)} but the model's config.json asks for {list(expected)}")
