"""Models known by name, as the `config.json` their authors published, so that presets and folders take one path through the parser.

Each family keeps its own beside its definition. A preset carries no weights: they are drawn (`--weights dummy`) or come from a folder of
the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from trtllm_engines.errors import EngineError
from trtllm_engines.models import families
from trtllm_engines.models.config import ModelConfig, config_from_hf, read_config

families.discover()
PRESETS = families.PRESETS
"""config.json by the preset's name."""


@dataclass(frozen=True)
class ModelSource:
    """A model and where it came from: `path` is its folder or GGUF file, `None` for a preset."""

    config: ModelConfig
    path: Path | None


def preset_config(name: str) -> ModelConfig:
    return config_from_hf(PRESETS[name], name)


def resolve_model(name_or_path: str | Path) -> ModelSource:
    """A preset's name, a Hugging Face folder or a `.gguf` file; raises `EngineError` naming the presets otherwise."""
    name = str(name_or_path)
    if name in PRESETS:
        return ModelSource(preset_config(name), None)
    path = Path(name_or_path)
    if path.is_dir():
        return ModelSource(read_config(path), path)
    if path.is_file() and path.suffix == ".gguf":
        from trtllm_engines.models.gguf_file import GgufFile  # with the `gguf` library, which few need

        return ModelSource(GgufFile(path).config, path)
    if path.is_file():
        raise EngineError(f"{name} is a file but not a .gguf one; give a preset, a Hugging Face folder or a .gguf file")
    near = get_close_matches(name, PRESETS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise EngineError(f"unknown model {name!r}{hint}: neither a preset ({', '.join(PRESETS)}) nor an existing folder or .gguf file")
