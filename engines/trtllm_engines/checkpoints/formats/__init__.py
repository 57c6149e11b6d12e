"""Readers of quantized checkpoints, one file per tool; `format_of` finds the one that wrote a folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtllm_engines.checkpoints.formats.auto_round import AutoRound
from trtllm_engines.checkpoints.formats.awq import Awq
from trtllm_engines.checkpoints.formats.bitsandbytes import BitsAndBytes
from trtllm_engines.checkpoints.formats.compressed_tensors import CompressedTensors
from trtllm_engines.checkpoints.formats.config import AUTO_ROUND, rotation_of
from trtllm_engines.checkpoints.formats.format import Format, StoredTensors, UnknownQuantization
from trtllm_engines.checkpoints.formats.fp8 import Fp8Format
from trtllm_engines.checkpoints.formats.gptq import Gptq
from trtllm_engines.checkpoints.formats.modelopt import MODELOPT_CONFIG, ModelOpt
from trtllm_engines.documents import SHOWN, read_object_if_there, shown
from trtllm_engines.errors import EngineError

_READERS = (ModelOpt, CompressedTensors, AutoRound, Fp8Format, Gptq, Awq, BitsAndBytes)
_CONFIG = "config.json"
_CONFIG_PLACES = (
    (MODELOPT_CONFIG, "quantization"),
    (_CONFIG, "quantization_config"),
    (_CONFIG, "compression_config"),
    (_CONFIG, "quantization"),
)
"""(file, key) where the quantization is stated: `compression_config` by compressed-tensors before its method had a name, `quantization` in
config.json by MLX."""
_METHOD_OF_KEY = (
    ("quant_algo", "modelopt"),
    ("config_groups", "compressed-tensors"),
    ("load_in_4bit", "bitsandbytes"),
    ("load_in_8bit", "bitsandbytes"),
    ("weight_block_size", "fp8"),
    ("activation_scheme", "fp8"),
    ("zero_point", "awq"),
    ("desc_act", "gptq"),
    ("bits", "MLX"),
)
"""(key, the only method that writes it)."""
_APART = (("quantize_config.json", "gptq", "bits"), ("quant_config.json", "awq", "w_bit"))
"""Files of AutoGPTQ and AutoAWQ of before transformers had a place for it: (name, method, a key that it has)."""

__all__ = ["Format", "UnknownQuantization", "check_rotations", "format_of", "stated_method"]


def format_of(folder: Path, tensors: StoredTensors | None) -> Format | None:
    """The reader of what `folder` says of its quantization; None where it says nothing, or nothing that a reader here knows."""
    file, config = _quantization_config(folder)
    if config is None:
        return None
    method = _method(config)
    reader = next((one for one in _READERS if one.reads(file, method)), None)
    return None if reader is None else reader(folder, file, config, tensors)


def check_rotations(folder: Path) -> None:
    """Raises `UnknownQuantization` for weights that are right only behind a rotation of activations, wherever in the folder it is stated: a
    tool that rotates and does not quantize says it in config.json itself."""
    within = [(file, read_object_if_there(folder / file).get(key)) for file, key in _CONFIG_PLACES]
    for _, config in [(_CONFIG, read_object_if_there(folder / _CONFIG)), *within]:
        if isinstance(config, dict) and (rotation := rotation_of(config)):
            raise UnknownQuantization(
                f"{folder} holds weights made by {rotation}, which no engine here computes; "
                f"use the original checkpoint, or one quantized in a way that docs/quantization.md lists"
            )


def states_quantization(folder: Path) -> bool:
    return _quantization_config(folder)[1] is not None


def stated_method(folder: Path) -> str:
    """How `folder` says it is quantized, in a few words for an error message."""
    file, config = _quantization_config(folder)
    if config is None:
        return "a method it does not state"
    method = _in_words(file, config)
    other = read_object_if_there(folder / _CONFIG).get("quantization_config")
    if file == MODELOPT_CONFIG and isinstance(other, dict) and other and (apart := _in_words(_CONFIG, other)) != method:
        return f"{method} by {file}, but {apart} by {_CONFIG}"
    return method


def _in_words(file: str, config: Mapping[str, Any]) -> str:
    method = (_method(config) or "an unnamed method")[:SHOWN]
    if file == MODELOPT_CONFIG or method == "modelopt":
        return f"ModelOpt's {str(config.get('quant_algo'))[:SHOWN]}"
    if blocks := config.get("weight_block_size"):
        return f"{method} in blocks of {('x'.join(map(str, blocks)) if isinstance(blocks, list) else str(blocks))[:SHOWN]}"
    return f"{method} ({str(config['format'])[:SHOWN]})" if "format" in config else method


def _method(config: Mapping[str, Any]) -> str:
    """The method that `config` names, else the one that its keys imply, else "". auto-round's name is followed by its packing."""
    stated = config.get("quant_method")
    method = stated if isinstance(stated, str) else next((method for key, method in _METHOD_OF_KEY if key in config), "")
    if method.removeprefix("intel/") == AUTO_ROUND.strip():
        return f"{AUTO_ROUND}{config.get('packing_format') or config.get('backend') or ''}"
    return method


def _quantization_config(folder: Path) -> tuple[str, Mapping[str, Any] | None]:
    """(name of the file, what it says of the quantization)."""
    if not folder.is_dir():
        return "", None
    for file, key in _CONFIG_PLACES:
        config = read_object_if_there(folder / file).get(key)
        if isinstance(config, dict) and config:
            within = config.get("quantization")  # as in ModelOpt's own file
            return file, {**config, **within} if isinstance(within, dict) else config
        if config not in (None, {}):
            raise EngineError(f"{folder / file}: {key} is {shown(config)}; it must be an object")
    for file, method, key in _APART:
        config = read_object_if_there(folder / file)
        if key in config:
            return file, {"quant_method": method, **config}
    return "", None
