"""What tools write of their quantization, as pydantic reads it, and how they name modules: as expressions over whole module names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trtllm_engines.documents import checked
from trtllm_engines.quantization.registry import EMBEDDING

if TYPE_CHECKING:
    from trtllm_engines.checkpoints.formats.format import Format

Name = Annotated[str, Field(max_length=1000)]
Names = Annotated[list[Name], Field(max_length=100_000)]
GroupSize = Annotated[int, Field(ge=-1, le=2**20)]
"""Columns that share a scale; -1 is a whole row."""
AUTO_ROUND = "auto-round "
"""How the method of auto-round's own configuration begins; its packing follows, a layout of AutoGPTQ's or AutoAWQ's."""
WIDE_BITS = 16
"""From this number of bits on, auto-round's settings leave a module wide."""
EVERY_LINEAR = "Linear"
"""compressed-tensors' target for all products: the class of their modules."""
EMBEDDINGS = "Embedding"
"""Its target for tables of token vectors, which are of another class."""


def _rotates_between_products(stated: Any) -> bool:
    """auto-round's SpinQuant: R1 may be multiplied into weights, as R2 always is; R3 cancels out in attention."""
    if not isinstance(stated, dict):
        return bool(stated)
    return bool(stated.get("r4") or (stated.get("r1", True) and stated.get("online_r1_rotation", True)))


_ROTATIONS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "rotation_config": ("auto-round", bool),
    "spinquant_config": ("auto-round", _rotates_between_products),
    "rotation": ("GPTQModel", bool),
}
"""Keys of configurations that may state a rotation of activations: (tool that writes it, whether what it says is one)."""


class Stated(BaseModel):
    """What a tool says of a quantization; what it says besides is not used. Null is as not said: transformers writes every field."""

    model_config = ConfigDict(strict=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, stated: Any) -> Any:
        return {name: value for name, value in stated.items() if value is not None} if isinstance(stated, dict) else stated


class ModuleSettings(Stated):
    """What some modules have of their own, where it differs from the rest; None for what does not differ."""

    bits: int | None = None
    group_size: GroupSize | None = None


class CacheCodes(Stated):
    """The KV cache's format as compressed-tensors, and ModelOpt in config.json, state it (`kv_cache_scheme`)."""

    num_bits: Annotated[int, Field(ge=1, le=64)] | None = None
    type: Name | None = None

    @property
    def dtype(self) -> str:
        """fp8 or int8; "" for a format that no engine here has."""
        return {("float", 8): "fp8", ("int", 8): "int8"}.get((self.type or "", self.num_bits or 0), "")


Model = TypeVar("Model", bound=Stated)


def rotation_of(config: Mapping[str, Any]) -> str:
    """The rotation of activations that `config` states, in words; "" where it states none."""
    stated = ((key, tool) for key, (tool, rotates) in _ROTATIONS.items() if rotates(config.get(key)))
    return next((f"{tool} with activations that are rotated ({key})" for key, tool in stated), "")


def checked_config(model: type[Model], source: Format) -> Model:
    """The configuration of `source` as `model`. Raises `EngineError` naming the file and the field, and `UnknownQuantization` for a model
    that multiplies its activations by a rotation: its weights are right only behind that."""
    if rotation := rotation_of(source.config):
        raise source.unknown(rotation)
    return checked(model, source.config, str(source.path))


def wildcards(pattern: str) -> str:
    """ModelOpt's: a name with `*` and `?`; one of a module stands for all within it."""
    return re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".") + r"(?:\..*)?"


def target(target: str) -> str:
    """compressed-tensors': a name, `re:` and an expression that the name begins with, or the class of modules."""
    if target == EVERY_LINEAR:
        return ".*"
    if target == EMBEDDINGS:
        return EMBEDDING
    return f"(?:{target.removeprefix('re:')}).*" if target.startswith("re:") else re.escape(target) + r"(?:\..*)?"


def part_of_name(name: str) -> str:
    """transformers': an expression that the name begins with, or what it ends with."""
    try:
        beginning = re.compile(name).pattern
    except re.error:
        beginning = re.escape(name)
    return f"(?:{beginning}).*|.*{re.escape(name)}"


def within_name(name: str) -> str:
    """AutoAWQ's and bitsandbytes': a part of the name."""
    return f".*{re.escape(name)}.*"


def beginning(pattern: str) -> str:
    """GPTQModel's: an expression that matches the beginning of a name."""
    return f"(?:{pattern}).*"


def module_of_extra_config(name: str) -> str:
    """auto-round's: a module's name, or an expression for part of one. An expression contains a character that no name has."""
    return f".*(?:{name}).*" if set(name) & set(r"*+?^$()[]{}|\\") else re.escape(name)
