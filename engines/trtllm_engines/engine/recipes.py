"""Engine recipes: a model, a precision, ranges and architectures under one name, as TOML. `recipes/` holds ready ones; any path will do.

A recipe is arguments of `build` and nothing more, so whatever can be built can be written down. Unknown keys are errors: a misspelt one
must not silently give the default.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from trtllm_engines.compiler.plan import Profile
from trtllm_engines.documents import checked, read_text
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.scheme import WIDE

_HERE = Path(__file__).resolve().parents[1]


class Recipe(BaseModel):
    """What `build` needs; `weights` may be overridden there."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str
    precision: str
    kv_dtype: str = "auto"
    context_attention: str = WIDE
    arches: tuple[str, ...]
    gpu: str = ""
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    page_size: int = Profile.page_size
    weights: str = "auto"
    seed: int = 0

    @property
    def profile(self) -> Profile:
        return Profile(self.max_batch_size, self.max_num_tokens, self.max_seq_len, self.page_size)

    def build_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `build`, all but `out`."""
        types = {"precision", "kv_dtype", "context_attention"}
        return {**self.model_dump(include={"model", *types, "arches", "gpu", "weights", "seed"}), "profile": self.profile}


def folder() -> Path:
    """Beside the package in a checkout, inside it in an installed wheel."""
    installed = _HERE / "recipes"
    return installed if installed.is_dir() else _HERE.parent / "recipes"


def names() -> list[str]:
    return sorted(path.stem for path in folder().glob("*.toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A ready recipe by name, or a TOML file. Raises `EngineError` naming the file and the key that is wrong."""
    known = folder() / f"{name_or_path}.toml"
    path = known if known.is_file() else Path(name_or_path)
    if not path.exists():
        raise EngineError(f"no recipe {str(name_or_path)!r}: neither a file nor one of {', '.join(names())}")
    text = read_text(path).removeprefix("\ufeff")  # some editors write a byte-order mark
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise EngineError(f"{path} is not TOML ({' '.join(str(error).split())[:200]})") from None
    if "arches" in content and isinstance(content["arches"], list):
        content["arches"] = tuple(content["arches"])
    recipe = checked(Recipe, content, str(path))
    try:
        recipe.profile  # noqa: B018
    except EngineError as error:
        raise EngineError(f"{path}: {error}") from None
    return recipe
