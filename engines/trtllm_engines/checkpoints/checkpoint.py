"""Hugging Face safetensors: one file, or shards behind `model.safetensors.index.json`. Memory-mapped, read when asked for.

A tensor is a weight only if it is stored as floating-point numbers. fp8 is codes: read together with its scale (one per tensor or per row),
or refused. Integers are codes of some quantizer and are always refused, whatever precision is asked for: cast to a float, they run and mean
nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trtllm_engines.checkpoints import check_shape
from trtllm_engines.checkpoints.checkpoint_precision import stated_method
from trtllm_engines.errors import EngineError

INDEX = "model.safetensors.index.json"
_WIDE = ("F64", "F32", "F16", "BF16")
_FP8 = "F8_E4M3"
_WEIGHT_SCALES = ("_scale", "_scale_inv")
"""Endings of the name of a weight's scale: ModelOpt's and compressed-tensors', and that of transformers' fp8. Both are multiplied by."""


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
        self.check(name, shape)
        tensor = self._tensor(name)
        if (scale := self._weight_scale(name)) is not None:
            tensor = tensor.to(device).float() * scale.to(device)
        return tensor.to(device=device, dtype=dtype)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._shard_of:
            module = name.rpartition(".")[0]
            if (codes := next((one for one in self._shard_of if one.startswith(f"{module}.") and self._is_codes(one)), None)) is not None:
                raise self._refused(codes, f"are codes of {name}")
            raise EngineError(f"weight {name} is missing from {self.folder} (expected shape {list(shape)})")
        stored_dtype, stored_shape = self._header(name)
        if stored_dtype not in (*_WIDE, _FP8):
            raise self._refused(name, "are codes")
        check_shape(name, shape, stored_shape, str(self._shard_of[name]))
        if stored_dtype == _FP8:
            scale = self._weight_scale_name(name)
            if scale is None:
                raise EngineError(f"weight {name} in {self.folder} is fp8 but has no {name}{_WEIGHT_SCALES[0]}; quantize the model again")
            scale_shape = self._header(scale)[1]
            if scale_shape not in ((), (1,), (1, 1), shape[:1], (shape[0], 1)):
                raise self._refused(name, f"have scales of shape {list(scale_shape)}, one per block")

    def codes(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor] | None:
        self.check(name, shape)
        scale = self._weight_scale(name)
        if scale is None or dtype != torch.float8_e4m3fn:
            return None
        return self._tensor(name).to(device), scale.view(-1, 1).to(device)

    def largest(self, name: str, shape: tuple[int, ...]) -> float | None:
        self.check(name, shape)
        scale = self._weight_scale(name)
        return None if scale is None else float(scale.max()) * 448.0

    def kv_scale(self, name: str) -> float:
        """`k_proj.k_scale` of ModelOpt, or `self_attn.k_scale` of compressed-tensors."""
        module, _, leaf = name.rpartition(".")
        stored = self._stored_scale(name, f"{module.rpartition('.')[0]}.{leaf}")
        return 1.0 if stored is None else stored

    def input_scale(self, name: str) -> float:
        """`input_scale` of ModelOpt and compressed-tensors, or `activation_scale` of transformers."""
        stored = self._stored_scale(name, f"{name.removesuffix('input_scale')}activation_scale")
        if stored is not None:
            return stored
        raise EngineError(
            f"{self.folder} has no activation scale {name}, which an fp8 engine needs; "
            f"calibrate first: trtllm-bench quantize {self.folder} --out FOLDER"
        )

    def _stored_scale(self, *spellings: str) -> float | None:
        """The largest element of the first of these tensors that there is."""
        return next((float(self._tensor(name).float().max()) for name in spellings if name in self._shard_of), None)

    def first_codes(self) -> str | None:
        """A tensor that is stored as codes, if there is one."""
        return next((name for name in sorted(self._shard_of) if self._is_codes(name)), None)

    def wide_modules(self) -> list[str]:
        """Modules with a matrix of wide numbers for a weight."""
        named = [name for name in sorted(self._shard_of) if name.endswith(".weight") and len(self._header(name)[1]) == 2]
        return [name.removesuffix(".weight") for name in named if self._header(name)[0] in _WIDE]

    def _header(self, name: str) -> tuple[str, tuple[int, ...]]:
        entry = self._shards[self._shard_of[name]].get_slice(name)
        return str(entry.get_dtype()), tuple(entry.get_shape())

    def _is_codes(self, name: str) -> bool:
        """Whether it is a matrix of weights in anything but wide numbers."""
        dtype, shape = self._header(name)
        return dtype not in _WIDE and len(shape) > 1 and "weight" in name.rpartition(".")[2]

    def _refused(self, name: str, why: str) -> EngineError:
        return EngineError(
            f"weight {name}: its {self._header(name)[0]} values in {self.folder} {why}, quantized by {stated_method(self.folder)}, "
            f"which no engine here runs; use the original checkpoint, or one in fp8 with one scale per tensor or row"
        )

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._shards[self._shard_of[name]].get_tensor(name)
        return tensor

    def _weight_scale_name(self, name: str) -> str | None:
        return next((f"{name}{ending}" for ending in _WEIGHT_SCALES if f"{name}{ending}" in self._shard_of), None)

    def _weight_scale(self, name: str) -> Tensor | None:
        """fp32, one element or [rows, 1], of an fp8 matrix that passed `check`; None for a wide one."""
        if self._header(name)[0] != _FP8:
            return None
        scale = self._tensor(str(self._weight_scale_name(name))).float()
        return scale.view(-1, 1) if scale.numel() > 1 else scale.view(())
