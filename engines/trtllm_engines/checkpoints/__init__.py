"""Where weights come from: a Hugging Face folder, a GGUF file, or a seeded generator. All answer to Hugging Face's names.

A weight is a number: not a NaN, not infinite, within what it is stored as in the engine. Every source checks that as it reads
(`check_finite`, about the cost of a copy), since a model with one NaN answers with tokens like any other.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from trtllm_engines.errors import EngineError

if TYPE_CHECKING:
    from trtllm_engines.checkpoints.stored_codes import StoredCodes
    from trtllm_engines.models.config import ModelConfig
    from trtllm_engines.quantization.scheme import Codes


class WeightSource(Protocol):
    """Reads checkpoint tensors one at a time, so that a model larger than memory can be built."""

    @property
    def description(self) -> Mapping[str, Any]:
        """What the plan records as `weights_source`."""

    @property
    def config(self) -> ModelConfig | None:
        """What the model is, as it is stated beside the weights; None where nothing is. Raises `EngineError` where it cannot be used."""

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The tensor called `name` as wide numbers. Raises `EngineError` when it is missing, of another shape, or in unknown codes."""

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises the `EngineError` that `read` would, without reading."""

    def codes(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """(codes [N, K] of `dtype`, fp32 scale [1, 1] or [N, 1]) of a matrix that is stored so; None for a wide one."""

    def stored(self, name: str, shape: tuple[int, ...], kind: Codes, device: torch.device) -> StoredCodes | None:
        """Matrix `name` as codes, where it is stored so, in whatever they are; None for a wide one. A source that draws its weights draws
        them of `kind`."""

    def largest(self, name: str, shape: tuple[int, ...]) -> float | None:
        """A bound on the magnitude of matrix `name` that is known without reading it, such as an fp8 checkpoint's scale times 448."""

    def input_scale(self, name: str) -> float:
        """Static scale `name` of a product's input. Raises `EngineError` when it is not there."""

    def unread(self, read: Collection[str]) -> Iterable[str]:
        """Stored weights beside those `read`, in the same modules or blocks, that a model which does not read them computes without."""

    def kv_scale(self, name: str) -> float:
        """Static scale `name` of cached keys or values; 1 when it is not there."""


def open_weights(weights: str | Path, seed: int = 0) -> WeightSource:
    """`dummy`, a Hugging Face folder or a `.gguf` file. Raises `EngineError` saying what was looked for and not found."""
    if str(weights) == "dummy":
        from trtllm_engines.checkpoints.dummy import DummyWeights

        return DummyWeights(seed)
    path = Path(weights)
    if path.is_file() and path.suffix == ".gguf":
        from trtllm_engines.checkpoints.gguf_weights import GgufWeights

        return GgufWeights(path)
    if path.is_dir():
        from trtllm_engines.checkpoints.checkpoint import open_folder

        return open_folder(path)
    raise EngineError(f"weights {str(weights)!r}: not 'dummy' and no such folder or .gguf file")


def check_shape(name: str, expected: tuple[int, ...], stored: tuple[int, ...], where: str) -> None:
    if tuple(expected) != tuple(stored):
        raise EngineError(f"weight {name} in {where} has shape {list(stored)} but the model's config.json asks for {list(expected)}")


def check_finite(name: str, tensor: Tensor, dtype: torch.dtype, where: str) -> None:
    """Raises `EngineError` for a NaN, an infinite value, or one beyond what `dtype` holds. One pass over `tensor`, no copy but of fp8."""
    if not tensor.numel():
        return
    if tensor.dtype == torch.float8_e4m3fn:
        if bool(((tensor.view(torch.uint8) & 0x7F) == 0x7F).any()):
            raise EngineError(
                f"weight {name} in {where} is not finite: it holds a NaN; download the checkpoint again, or quantize it again"
            )
        return
    lowest, highest = (float(bound) for bound in torch.aminmax(tensor))
    largest = max(abs(lowest), abs(highest))
    if not math.isfinite(largest):
        kind = "a NaN" if math.isnan(lowest) else "an infinite value"
        raise EngineError(f"weight {name} in {where} is not finite: it holds {kind}; download the checkpoint again")
    if dtype.is_floating_point and largest > torch.finfo(dtype).max:
        too_small = str(dtype).removeprefix("torch.")
        raise EngineError(f"weight {name} in {where} has a value of {largest:g}, beyond the largest of {too_small}; use bf16 or fp32")


def check_scale(name: str, value: float, where: str) -> float:
    """`value`. Raises `EngineError` for a scale that is not a positive number."""
    if not (math.isfinite(value) and value > 0):
        raise EngineError(f"scale {name} in {where} is {value:g}; it must be a positive number; quantize the model again")
    return value
