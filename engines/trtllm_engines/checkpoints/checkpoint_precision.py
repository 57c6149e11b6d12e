"""The precision a checkpoint says it was quantized for, read from what the quantizing tool left beside the weights.

ModelOpt writes `hf_quant_config.json` (or the same under `quantization_config` in config.json); compressed-tensors (llm-compressor) and
the plain `fp8` method of transformers and vLLM write `quantization_config`. Scales that are computed as tokens come are `fp8_rowwise`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trtllm_engines.errors import EngineError

_MODELOPT: Mapping[str, str] = {"FP8": "fp8", "FP8_PER_CHANNEL_PER_TOKEN": "fp8_rowwise"}


def default_precision(model: str | Path, gpu: bool) -> str:
    """What a model runs in when nobody says: what its checkpoint was quantized for, else bf16 on a GPU and fp32 on a CPU.

    Raises `EngineError` for a checkpoint quantized in a way that no engine here has.
    """
    return checkpoint_precision(model) or ("bf16" if gpu else "fp32")


def checkpoint_precision(model: str | Path) -> str | None:
    """`fp8`, `fp8_rowwise`, or None for a preset, a GGUF file or a folder that says nothing. Raises `EngineError` as above."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    apart = _read(folder / "hf_quant_config.json").get("quantization")
    if isinstance(apart, dict):
        return _modelopt(folder, apart)
    inside = _read(folder / "config.json").get("quantization_config")
    if not isinstance(inside, dict):
        return None
    method = inside.get("quant_method")
    if method == "modelopt":
        return _modelopt(folder, inside)
    if method == "compressed-tensors":
        return _compressed_tensors(folder, inside)
    if method == "fp8" and "weight_block_size" not in inside:
        return "fp8" if inside.get("activation_scheme") == "static" else "fp8_rowwise"
    raise _unknown(folder, str(method))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EngineError(f"{path} is not readable JSON ({error})") from None
    return content if isinstance(content, dict) else {}


def _modelopt(folder: Path, said: Mapping[str, Any]) -> str | None:
    algorithm = said.get("quant_algo")
    if algorithm is None:
        return None
    if algorithm not in _MODELOPT:
        raise _unknown(folder, f"ModelOpt's {algorithm}")
    return _MODELOPT[algorithm]


def _compressed_tensors(folder: Path, said: Mapping[str, Any]) -> str:
    groups = said.get("config_groups")
    dynamic = []
    for group in groups.values() if isinstance(groups, dict) else ():
        weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
        if (weights.get("num_bits"), weights.get("type"), inputs.get("num_bits"), inputs.get("type")) != (8, "float", 8, "float"):
            raise _unknown(folder, f"compressed-tensors with {weights.get('num_bits')}-bit {weights.get('type')} weights")
        if weights.get("strategy") not in ("tensor", "channel"):
            raise _unknown(folder, f"compressed-tensors with a weight scale a {weights.get('strategy')}")
        dynamic.append(bool(inputs.get("dynamic")))
    if not dynamic:
        raise _unknown(folder, "compressed-tensors without config_groups")
    return "fp8_rowwise" if any(dynamic) else "fp8"


def _unknown(folder: Path, how: str) -> EngineError:
    return EngineError(f"{folder} is quantized by {how}, which no engine here runs; use fp8 with a scale a tensor or row, or the original")
