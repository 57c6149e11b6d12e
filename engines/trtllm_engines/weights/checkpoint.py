"""Hugging Face safetensors: one file, or shards behind `model.safetensors.index.json`. Memory-mapped, read when asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trtllm_engines.errors import EngineError
from trtllm_engines.weights import check_shape

INDEX = "model.safetensors.index.json"


class SafetensorsWeights:
    """Opens every shard's header at once, so that a missing or truncated shard is reported before any work is done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: dict[Path, Any] = {}
        self._shard_of: dict[str, Path] = {}
        for path in self._files():
            try:
                shard = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise EngineError(f"{path} is not a whole safetensors file ({error}); download it again") from None
            self._shards[path] = shard
            names: list[str] = shard.keys()  # type: ignore[no-untyped-call]
            self._shard_of.update(dict.fromkeys(names, path))

    def _files(self) -> list[Path]:
        index = self.folder / INDEX
        if not index.is_file():
            files = sorted(self.folder.glob("*.safetensors"))
            if not files:
                raise EngineError(f"{self.folder} holds no weights: neither *.safetensors nor {INDEX} is there")
            return files
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise EngineError(f"{index} is not a safetensors index ({error})") from None
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise EngineError(f"{self.folder} lacks {missing[0]} ({len(missing)} of {len(names)} shards are missing); download it again")
        return [self.folder / name for name in names]

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": "safetensors", "path": str(self.folder)}

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        path = self._shard_of.get(name)
        if path is None:
            raise EngineError(f"weight {name} is missing from {self.folder} (expected shape {list(shape)})")
        shard = self._shards[path]
        check_shape(name, shape, tuple(shard.get_slice(name).get_shape()), str(path))
        tensor: Tensor = shard.get_tensor(name)
        return tensor.to(device=device, dtype=dtype)
