"""Hugging Face safetensors: one file, or shards behind `model.safetensors.index.json`. Memory-mapped, read when asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trtllm_engines.checkpoints import check_shape
from trtllm_engines.errors import EngineError

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
        if tensor.dtype == torch.float8_e4m3fn:
            tensor = tensor.to(device).float() * self._stored_scale(name).to(device)
        return tensor.to(device=device, dtype=dtype)

    def largest(self, name: str, shape: tuple[int, ...]) -> float | None:
        scale = f"{name}_scale"
        return float(self._tensor(scale).float().max()) * 448.0 if scale in self._shard_of else None

    def scale(self, name: str, kind: str) -> float:
        """ModelOpt and compressed-tensors agree on `input_scale`; for the cache: `k_proj.k_scale`, or `self_attn.k_scale`."""
        module, _, leaf = name.rpartition(".")
        for spelling in (name, f"{module.rpartition('.')[0]}.{leaf}"):
            if spelling in self._shard_of:
                return float(self._tensor(spelling).float().max())
        if kind == "kv_scale":
            return 1.0
        raise EngineError(
            f"{self.folder} has no activation scale {name}, which an fp8 engine needs; "
            f"calibrate first: trtllm-bench quantize {self.folder} --out FOLDER"
        )

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._shards[self._shard_of[name]].get_tensor(name)
        return tensor

    def _stored_scale(self, name: str) -> Tensor:
        """Of an fp8 matrix: one element, or one a row."""
        scale = f"{name}_scale"
        if scale not in self._shard_of:
            raise EngineError(f"weight {name} in {self.folder} is fp8 but has no {scale}; quantize the model again")
        tensor = self._tensor(scale).float()
        return tensor.view(-1, 1) if tensor.numel() > 1 else tensor.view(())
