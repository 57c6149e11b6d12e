"""The registry of model families. A package in this folder is a family: importing it registers one `Family`, and nothing else names it.

    models/llama/__init__.py    register(Family("llama", architectures=..., parse=..., module=..., gguf=..., presets=...))
    models/llama/module.py      the definition in torch, imported when a model is defined

So a family's facts lie in one place: which `config.json` it takes and how it reads it, its definition, llama.cpp's names for its metadata
and tensors, its presets. A weight has the name of the parameter in the definition, which is its name in Hugging Face's checkpoints.
A family in another package registers itself in the same way when that package is imported.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from trtllm_engines import models
from trtllm_engines.errors import EngineError

if TYPE_CHECKING:
    from torch import nn

    from trtllm_engines.models.config import ModelConfig
    from trtllm_engines.models.fields import Fields

FloatArray = npt.NDArray[np.float32]


class GgufTensors(Protocol):
    """The tensors of a GGUF file, by llama.cpp's names."""

    def shape(self, name: str) -> tuple[int, ...] | None:
        """As Hugging Face has it; None when absent."""

    def tensor(self, name: str) -> FloatArray | None:
        """fp32, dequantized; None when absent."""


def _as_stored(name: str, values: FloatArray, config: ModelConfig) -> FloatArray:
    return values


@dataclass(frozen=True)
class GgufFormat:
    """How llama.cpp stores one of its architectures.

    `parse` reads the metadata of the architecture (keys without its prefix); bos and eos ids are filled in by the caller. `names` maps
    modules to llama.cpp's tensors, both without `.weight` or `.bias` and with `{n}` for the layer. `convert` undoes what llama.cpp's
    converter did to the values of a weight, given its name here.
    """

    parse: Callable[[Fields, GgufTensors, str], ModelConfig]
    names: Mapping[str, str]
    convert: Callable[[str, FloatArray, ModelConfig], FloatArray] = _as_stored


@dataclass(frozen=True)
class Family:
    """One model definition and everything needed to find and configure it.

    `architectures` maps the names in config.json's `architectures` to the `model_type` that goes with each. `parse` gets the fields of a
    config.json, the architecture and the model's name, and raises `EngineError` for what `module` would compute wrongly. `module` gives
    the definition with its parameters on the meta device. `gguf` is keyed by `general.architecture`. `decoder` says that it maps
    token ids to logits, attends causally and so keeps keys and values in a cache.
    """

    name: str
    architectures: Mapping[str, str]
    parse: Callable[[Fields, str, str], ModelConfig]
    module: Callable[[ModelConfig], nn.Module]
    gguf: Mapping[str, GgufFormat] = field(default_factory=dict)
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    decoder: bool = True


FAMILIES: dict[str, Family] = {}
"""By architecture. Call `discover` before reading."""
PRESETS: dict[str, Mapping[str, Any]] = {}
"""The config.json of every preset of every family, by the preset's name. Call `discover` before reading."""


def register(family: Family) -> Family:
    """Adds a family. Raises ValueError when another one has taken one of its names."""
    taken = [name for name in family.architectures if name in FAMILIES] + [name for name in family.presets if name in PRESETS]
    if taken:
        raise ValueError(f"model family {family.name}: {', '.join(taken)} is registered already")
    FAMILIES.update(dict.fromkeys(family.architectures, family))
    PRESETS.update(family.presets)
    return family


@cache
def discover() -> None:
    """Imports every package in `trtllm_engines.models`, so that its family is registered."""
    for module in pkgutil.iter_modules(models.__path__):
        if module.ispkg:
            import_module(f"{models.__name__}.{module.name}")


def supported_architectures() -> list[str]:
    """Sorted by family, the one with most architectures first."""
    discover()
    return sorted(FAMILIES, key=lambda name: -len(FAMILIES[name].architectures))


def family_of(architecture: str) -> Family | None:
    discover()
    return FAMILIES.get(architecture)


def architecture_of(model_type: str) -> str | None:
    """The architecture whose `model_type` this is, for a config.json that names no architecture."""
    return next((name for name in supported_architectures() if FAMILIES[name].architectures[name] == model_type), None)


def gguf_formats() -> dict[str, GgufFormat]:
    """By `general.architecture`."""
    return {name: form for architecture in supported_architectures() for name, form in FAMILIES[architecture].gguf.items()}


def define(config: ModelConfig) -> nn.Module:
    """The module of `config`'s family, its parameters on the meta device. Raises `EngineError` for a family that is not a decoder."""
    family = family_of(config.architecture)
    if family is None:
        raise EngineError(f"{config.name}: architecture {config.architecture} is not supported; supported are {supported()}")
    if not family.decoder:
        raise EngineError(f"{config.name}: {config.architecture} is not a decoder, and engines are built for decoders only")
    return family.module(config)


def supported() -> str:
    return ", ".join(supported_architectures())
