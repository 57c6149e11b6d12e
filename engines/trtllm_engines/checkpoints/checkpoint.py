"""A Hugging Face folder's weights: safetensors, or PyTorch's own files where there are none; one file, or shards behind an index.
Memory-mapped, read when asked for.

A tensor is a weight only if it is stored as floating-point numbers. fp8 is codes: read together with its scale (one per tensor or per row),
or refused. Integers are codes of some quantizer and are always refused, whatever precision is asked for: cast to a float, they run and mean
nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trtllm_engines.checkpoints import check_finite, check_scale, check_shape
from trtllm_engines.checkpoints.checkpoint_precision import stated_method
from trtllm_engines.documents import checked, read_object, regular_file
from trtllm_engines.errors import EngineError

INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
_WIDE = ("F64", "F32", "F16", "BF16")
_FP8 = "F8_E4M3"
_TORCH_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": _FP8}
"""safetensors' names of PyTorch's types; of others, PyTorch's own names."""
_WEIGHT_SCALES = ("_scale", "_scale_inv")
"""Endings of the name of a weight's scale: ModelOpt's and compressed-tensors', and that of transformers' fp8. Both are multiplied by."""


def _in_folder(name: str) -> str:
    if not name.isprintable() or not 1 <= len(name) <= 255 or name in (".", "..") or any(separator in name for separator in "/\\\0"):
        raise ValueError("it must be the name of a file in the same folder")
    return name


FileName = Annotated[str, AfterValidator(_in_folder)]


class ShardIndex(BaseModel):
    """An index of shards: which file has a tensor."""

    model_config = ConfigDict(strict=True)

    weight_map: Annotated[dict[str, FileName], Field(min_length=1)]


def open_folder(folder: Path) -> FolderWeights:
    """Safetensors where there are any, else PyTorch's files. Raises `EngineError` for a folder without either, or with damaged ones."""
    return SafetensorsWeights(folder) if SafetensorsWeights.files(folder) or not TorchWeights.files(folder) else TorchWeights(folder)


class FolderWeights(ABC):
    """Opens every shard's header at once, so that a missing or truncated shard is reported before any work is done."""

    kind: str
    index: str
    pattern: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: dict[Path, Any] = {}
        self._shard_of: dict[str, Path] = {}
        for path in self._paths():
            regular_file(path)
            shard = self._open(path)
            self._shards[path] = shard
            self._shard_of.update(dict.fromkeys(shard.keys(), path))

    @classmethod
    def files(cls, folder: Path) -> list[Path]:
        """The index, where there is one, and the files of this kind."""
        return [*folder.glob(cls.index), *sorted(folder.glob(cls.pattern))]

    @abstractmethod
    def _open(self, path: Path) -> Any:
        """A shard, with a method `keys`. Raises `EngineError` for a damaged file."""

    @abstractmethod
    def _header(self, name: str) -> tuple[str, tuple[int, ...]]:
        """(type, shape) of a stored tensor, in safetensors' names."""

    @abstractmethod
    def _tensor(self, name: str) -> Tensor: ...

    def _paths(self) -> Iterable[Path]:
        index = self.folder / self.index
        if not index.is_file():
            files = sorted(self.folder.glob(self.pattern))
            if not files:
                raise EngineError(
                    f"{self.folder} holds no weights: neither {self.pattern} nor {self.index} is there, nor {TorchWeights.pattern}"
                )
            return files
        names = sorted(set(checked(ShardIndex, read_object(index), f"{index} is not a {self.kind} index").weight_map.values()))
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise EngineError(f"{self.folder} lacks {missing[0]} ({len(missing)} of {len(names)} shards are missing); download it again")
        return [self.folder / name for name in names]

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": self.kind, "path": str(self.folder)}

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        self.check(name, shape)
        tensor = self._tensor(name)
        check_finite(name, tensor, dtype, str(self._shard_of[name]))
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
        codes = self._tensor(name)
        check_finite(name, codes, dtype, str(self._shard_of[name]))
        return codes.to(device), scale.view(-1, 1).to(device)

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
        for name in spellings:
            if name in self._shard_of:
                if self._header(name)[0] not in _WIDE or 0 in self._header(name)[1]:
                    raise EngineError(f"scale {name} in {self.folder} is stored as {self._header(name)[0]}; it must be a wide number")
                return check_scale(name, float(self._tensor(name).float().max()), str(self._shard_of[name]))
        return None

    def first_codes(self) -> str | None:
        """A tensor that is stored as codes, if there is one."""
        return next((name for name in sorted(self._shard_of) if self._is_codes(name)), None)

    def wide_modules(self) -> list[str]:
        """Modules with a matrix of wide numbers for a weight."""
        named = [name for name in sorted(self._shard_of) if name.endswith(".weight") and len(self._header(name)[1]) == 2]
        return [name.removesuffix(".weight") for name in named if self._header(name)[0] in _WIDE]

    def _is_codes(self, name: str) -> bool:
        """Whether it is a matrix of weights in anything but wide numbers."""
        dtype, shape = self._header(name)
        return dtype not in _WIDE and len(shape) > 1 and "weight" in name.rpartition(".")[2]

    def _refused(self, name: str, why: str) -> EngineError:
        return EngineError(
            f"weight {name}: its {self._header(name)[0]} values in {self.folder} {why}, quantized by {stated_method(self.folder)}, "
            f"which no engine here runs; use the original checkpoint, or one in fp8 with one scale per tensor or row"
        )

    def _weight_scale_name(self, name: str) -> str | None:
        return next((f"{name}{ending}" for ending in _WEIGHT_SCALES if f"{name}{ending}" in self._shard_of), None)

    def _weight_scale(self, name: str) -> Tensor | None:
        """fp32, one element or [rows, 1], of an fp8 matrix that passed `check`; None for a wide one."""
        if self._header(name)[0] != _FP8:
            return None
        scale_name = str(self._weight_scale_name(name))
        scale = self._tensor(scale_name).float()
        for bound in torch.aminmax(scale):
            check_scale(scale_name, float(bound), str(self._shard_of[name]))
        return scale.view(-1, 1) if scale.numel() > 1 else scale.view(())


class SafetensorsWeights(FolderWeights):
    kind, index, pattern = "safetensors", INDEX, "*.safetensors"

    def _open(self, path: Path) -> Any:
        try:
            return safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise EngineError(f"{path} is not a whole safetensors file ({error}); download it again") from None

    def _header(self, name: str) -> tuple[str, tuple[int, ...]]:
        entry = self._shards[self._shard_of[name]].get_slice(name)
        return str(entry.get_dtype()), tuple(entry.get_shape())

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._shards[self._shard_of[name]].get_tensor(name)
        return tensor


class TorchWeights(FolderWeights):
    """PyTorch's files, which are pickles: read with what `torch.load` allows when it loads weights only."""

    kind, index, pattern = "pytorch", TORCH_INDEX, "pytorch_model*.bin"

    def _open(self, path: Path) -> Any:
        try:
            shard = _load(path)
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise EngineError(f"{path} is not a whole file of PyTorch weights ({reason}); download it again") from None
        if not isinstance(shard, dict) or not all(isinstance(name, str) for name in shard):
            raise EngineError(f"{path} holds a {type(shard).__name__}; it must be a dictionary of tensors by name")
        return {name: tensor for name, tensor in shard.items() if isinstance(tensor, Tensor)}

    def _header(self, name: str) -> tuple[str, tuple[int, ...]]:
        tensor = self._tensor(name)
        dtype = str(tensor.dtype).removeprefix("torch.")
        return _TORCH_DTYPES.get(dtype, dtype), tuple(tensor.shape)

    def _tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._shards[self._shard_of[name]][name].detach()
        return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _load(path: Path) -> Any:
    """Mapped into memory where the file's format allows: that of PyTorch before 1.6 is read whole."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError as error:
        if "mmap" not in str(error):
            raise
    return torch.load(path, map_location="cpu", weights_only=True)
