"""A Hugging Face folder's weights: safetensors, or PyTorch's own files where there are none; one file, or shards behind an index.
Memory-mapped, read when asked for.

A tensor is a weight only if it is stored as floating-point numbers. All else is codes of some quantizer: read together with their scales by
the reader of the tool that wrote them (`formats`), or refused, whatever precision is asked for. Cast to a float they run and mean nothing.
"""

from __future__ import annotations

import os
import pickle
import shlex
import warnings
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from errno import ENOMEM
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from trtllm_engines.checkpoints import check_finite, check_scale, check_shape
from trtllm_engines.checkpoints.formats import UnknownQuantization, check_rotations, format_of, stated_method
from trtllm_engines.checkpoints.formats.bitsandbytes import ABSMAX
from trtllm_engines.checkpoints.formats.format import WIDE, Format
from trtllm_engines.checkpoints.formats.fp8 import CODES as FP8
from trtllm_engines.checkpoints.formats.fp8 import scale_name, stored_fp8
from trtllm_engines.checkpoints.stored_codes import StoredCodes
from trtllm_engines.documents import checked, read_object, regular_file
from trtllm_engines.errors import EngineError
from trtllm_engines.models.config import ModelConfig, check_no_adapter, read_config
from trtllm_engines.quantization.scheme import Codes
from trtllm_kernels.references.quantize import FP8_MAX

INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
_MOST_MAPPED = 2
"""Shards of safetensors at once: tensors that are merged may be in two."""
_TORCH_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": FP8,
    "int8": "I8",
    "uint8": "U8",
    "int32": "I32",
    "int64": "I64",
}
"""safetensors' names of PyTorch's types; of others, PyTorch's own names."""
_WEIGHTS = (".weight", ".weight_packed", ".qweight")
"""Endings of the name of what holds a module's weight."""


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
        check_rotations(folder)
        check_no_adapter(folder)
        self._shards: dict[Path, Any] = {}
        self._shard_of: dict[str, Path] = {}
        self._stated = self._index()
        for path in self._paths():
            regular_file(path)
            shard = self._open(path)
            self._shards[path] = shard
            for name in shard.keys():  # noqa: SIM118 (a shard is not a mapping)
                self._place(name, path)

    def _place(self, name: str, path: Path) -> None:
        """Notes that tensor `name` is in `path`, unless the index says that another file's counts. Raises `EngineError`."""
        if self._stated.get(name, path.name) != path.name:
            return
        if name in self._shard_of:
            raise EngineError(
                f"tensor {name} is in both {self._shard_of[name].name} and {path.name} of {self.folder}, and no {self.index} says which "
                f"one counts; remove the file that is not of this model"
            )
        self._shard_of[name] = path

    @classmethod
    def files(cls, folder: Path) -> list[Path]:
        """The index, where there is one, and the files of this kind."""
        return [*folder.glob(cls.index), *sorted(folder.glob(cls.pattern))]

    @abstractmethod
    def _open(self, path: Path) -> Any:
        """A shard, with a method `keys`. Raises `EngineError` for a damaged file."""

    @abstractmethod
    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        """(type, shape) of a stored tensor, in safetensors' names."""

    @abstractmethod
    def tensor(self, name: str) -> Tensor: ...

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    @cached_property
    def _format(self) -> Format | None:
        return format_of(self.folder, self)

    def _index(self) -> Mapping[str, str]:
        """The file of each tensor as the index states it; empty where there is none."""
        index = self.folder / self.index
        if not os.path.lexists(index):
            return {}
        return checked(ShardIndex, read_object(index), f"{index} is not a {self.kind} index").weight_map

    def _paths(self) -> Iterable[Path]:
        if not self._stated:
            files = sorted(self.folder.glob(self.pattern))
            if not files:
                raise EngineError(
                    f"{self.folder} holds no weights: neither {self.pattern} nor {self.index} is there, nor {TorchWeights.pattern}"
                )
            return files
        names = sorted(set(self._stated.values()))
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing:
            raise EngineError(f"{self.folder} lacks {missing[0]} ({len(missing)} of {len(names)} shards are missing); download it again")
        return [self.folder / name for name in names]

    @property
    def description(self) -> Mapping[str, Any]:
        return {"kind": self.kind, "path": str(self.folder)}

    @property
    def config(self) -> ModelConfig | None:
        return read_config(self.folder) if os.path.lexists(self.folder / "config.json") else None

    def read(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        self.check(name, shape)
        codes = self._codes_of(name)
        if codes is None or (codes.kind.dtype == "fp8" and codes.kind.granularity != "block" and codes.factor is None):
            tensor = self.tensor(name)
            check_finite(name, tensor, dtype, str(self._shard_of[name]))
            if codes is not None:
                tensor = tensor.to(device).float() * self._checked_scale(codes, name).to(device)
        else:
            tensor = codes.on(device).values()
            check_finite(name, tensor, dtype, str(self.folder))
        return tensor.to(device=device, dtype=dtype)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        module = name.rpartition(".")[0]
        codes = self._codes_of(name)
        if codes is not None:
            check_shape(name, shape, codes.shape, str(self.folder))
            return
        if name not in self._shard_of:
            if (stored := self._codes_within(module)) is not None:
                raise self._refused(stored, f"are codes of {name}")
            place = f"{self._stated[name]}, where {self.index} says it is" if name in self._stated else f"{self.folder}"
            raise EngineError(f"weight {name} is missing from {place} (expected shape {list(shape)})")
        _, stored_shape = self.header(name)
        if not self._is_wide(name):
            raise self._refused(name, "are codes")
        check_shape(name, shape, stored_shape, str(self._shard_of[name]))

    def codes(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor] | None:
        self.check(name, shape)
        codes = self._codes_of(name)
        if codes is None or codes.kind not in _PLAIN.get(dtype, ()) or codes.order is not None or codes.factor is not None:
            return None
        stored = codes.codes()
        check_finite(name, stored, dtype, str(self.folder))
        return stored.to(device), self._checked_scale(codes, name).view(-1, 1).to(device)

    def stored(self, name: str, shape: tuple[int, ...], kind: Codes, device: torch.device) -> StoredCodes | None:
        self.check(name, shape)
        codes = self._codes_of(name)
        return None if codes is None else codes.on(device)

    def largest(self, name: str, shape: tuple[int, ...]) -> float | None:
        self.check(name, shape)
        codes = self._codes_of(name)
        if codes is None or codes.kind.dtype != "fp8":
            return None
        return float(self._checked_scale(codes, name).max()) * FP8_MAX

    def kv_scale(self, name: str) -> float:
        """`k_proj.k_scale` of ModelOpt, or `self_attn.k_scale` of compressed-tensors; before these had names, `k_proj.output_scale`, or
        `self_attn.kv_scale` for keys and values."""
        module, _, leaf = name.rpartition(".")
        attention = module.rpartition(".")[0]
        stored = self._stored_scale(name, f"{attention}.{leaf}", f"{module}.output_scale", f"{attention}.kv_scale")
        return 1.0 if stored is None else stored

    def input_scale(self, name: str) -> float:
        """`input_scale` of ModelOpt and compressed-tensors, or `activation_scale` of transformers."""
        stored = self._stored_scale(name, f"{name.removesuffix('input_scale')}activation_scale")
        if stored is not None:
            return stored
        raise EngineError(
            f"{self.folder} has no activation scale {name}, which an fp8 engine needs; "
            f"calibrate first: trtllm-bench quantize {shlex.quote(str(self.folder))} --out FOLDER"
        )

    def _stored_scale(self, *spellings: str) -> float | None:
        """The largest element of the first of these tensors that there is."""
        for name in spellings:
            if name in self._shard_of:
                dtype, shape = self.header(name)
                if dtype not in WIDE or 0 in shape:
                    stored = f"stored as {dtype}" if dtype not in WIDE else "empty"
                    raise EngineError(f"scale {name} in {self.folder} is {stored}; it must be a wide number")
                return check_scale(name, float(self.tensor(name).float().max()), str(self._shard_of[name]))
        return None

    def unread(self, read: Collection[str]) -> Iterator[str]:
        """A quantizer's own tensors have other endings; a bias of zeros, and the mask that GPT-J stores as one, change nothing."""
        modules = {name.rpartition(".")[0] for name in read}
        blocks = {module.rpartition(".")[0] for module in modules} - {""}
        for name in sorted(self._shard_of):
            module, _, leaf = name.rpartition(".")
            beside = module in modules or module.rpartition(".")[0] in blocks
            if name in read or leaf not in ("weight", "bias") or not beside:
                continue
            dtype, shape = self.header(name)
            if dtype in WIDE and len(shape) in (1, 2) and not (leaf == "bias" and not self.tensor(name).any()):
                yield name

    def first_codes(self) -> str | None:
        """A tensor that is stored as codes, if there is one."""
        return next((name for name in sorted(self._shard_of) if self._is_codes(name)), None)

    def modules(self) -> list[str]:
        """Modules that have a matrix for a weight, wide or codes."""
        named = [name for name in sorted(self._shard_of) if name.endswith(_WEIGHTS) and len(self.header(name)[1]) == 2]
        return [name.rpartition(".")[0] for name in named]

    def _is_codes(self, name: str) -> bool:
        """Whether it is a matrix of weights in anything but wide numbers."""
        return not self._is_wide(name) and len(self.header(name)[1]) > 1 and "weight" in name.rpartition(".")[2]

    def _codes_within(self, module: str) -> str | None:
        """A tensor of `module` that is stored as codes, whatever its tool calls it: a matrix where there is one."""
        within = [one for one in sorted(self._shard_of) if one.startswith(f"{module}.") and not self._is_wide(one)]
        return next((one for one in within if len(self.header(one)[1]) > 1), next(iter(within), None))

    def _is_wide(self, name: str) -> bool:
        """Whether a stored tensor is numbers, and not codes: bitsandbytes may keep its bytes in words of a wide type."""
        return self.header(name)[0] in WIDE and f"{name}{ABSMAX}" not in self

    def _refused(self, name: str, why: str) -> EngineError:
        return EngineError(
            f"weight {name}: its {self.header(name)[0]} values in {self.folder} {why}, quantized by {stated_method(self.folder)}, "
            f"which no engine here runs; use the original checkpoint, or one quantized in a way that docs/quantization.md lists"
        )

    def _codes_of(self, name: str) -> StoredCodes | None:
        """The codes of weight `name`, None where it is wide. Raises `EngineError` for those that no reader here knows."""
        module, _, leaf = name.rpartition(".")
        if leaf != "weight" or (name in self._shard_of and self._is_wide(name)):
            return None
        try:
            codes = None if self._format is None else self._format.stored(module)
        except UnknownQuantization:
            stored = self._codes_within(module)
            if stored is None:
                raise
            raise self._refused(stored, "are codes" if stored == name else f"are codes of {name}") from None
        return stored_fp8(self, module) if codes is None else codes

    def _checked_scale(self, codes: StoredCodes, name: str) -> Tensor:
        """fp32, one element or [rows, 1]. Those of integers may be negative (auto-round's are, where that rounds a row better)."""
        scale = codes.scale().float()
        where = scale_name(self, name) or name
        for bound in torch.aminmax(scale if codes.kind.dtype == "fp8" else scale.abs()):
            check_scale(where, float(bound), str(self._shard_of[name]))
        return scale.view(-1, 1) if scale.numel() > 1 else scale.view(())


_PLAIN = {dtype: (Codes(name, "tensor"), Codes(name, "row")) for dtype, name in ((torch.float8_e4m3fn, "fp8"), (torch.int8, "int8"))}
"""Codes with scales of a row or the tensor and nothing besides."""


class SafetensorsWeights(FolderWeights):
    """A shard is its headers, by name. Few are mapped at a time: a model may be larger than the memory that a process may map."""

    kind, index, pattern = "safetensors", INDEX, "*.safetensors"

    def __init__(self, folder: Path) -> None:
        self._mapped = lru_cache(maxsize=_MOST_MAPPED)(_safe_open)
        super().__init__(folder)

    def _open(self, path: Path) -> Any:
        shard = self._mapped(path)
        entries = {name: shard.get_slice(name) for name in shard.keys()}  # noqa: SIM118 (as above)
        return {name: (str(entry.get_dtype()), tuple(entry.get_shape())) for name, entry in entries.items()}

    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        header: tuple[str, tuple[int, ...]] = self._shards[self._shard_of[name]][name]
        return header

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._mapped(self._shard_of[name]).get_tensor(name)
        return tensor


def _safe_open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        if isinstance(error, OSError) and error.errno == ENOMEM:
            raise MemoryError(f"{path} cannot be mapped into memory") from error
        raise EngineError(f"{path} is not a whole safetensors file ({error}); download it again") from None


class TorchWeights(FolderWeights):
    """PyTorch's files, which are pickles: read with what `torch.load` allows when it loads weights only."""

    kind, index, pattern = "pytorch", TORCH_INDEX, "pytorch_model*.bin"

    def _open(self, path: Path) -> Any:
        try:
            shard = _load(path)
        except pickle.UnpicklingError:  # whose text advises to load the file with what it holds, which runs it
            raise EngineError(
                f"{path} is not a whole file of PyTorch weights, or holds objects other than tensors, which are not loaded since they can "
                f"run code; use a checkpoint in safetensors"
            ) from None
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise EngineError(f"{path} is not a whole file of PyTorch weights ({reason}); download it again") from None
        if not isinstance(shard, dict) or not all(isinstance(name, str) for name in shard):
            raise EngineError(f"{path} holds a {type(shard).__name__}; it must be a dictionary of tensors by name")
        return {name: tensor for name, tensor in shard.items() if isinstance(tensor, Tensor)}

    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        tensor = self._shards[self._shard_of[name]][name]
        if tensor.device.type == "meta":
            raise EngineError(f"tensor {name} in {self._shard_of[name]} has a shape but no values; save the model with its weights")
        dtype = str(tensor.dtype).removeprefix("torch.")
        return _TORCH_DTYPES.get(dtype, dtype), tuple(tensor.shape)

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._shards[self._shard_of[name]][name].detach()
        return tensor if tensor.layout == torch.strided else tensor.to_dense()


def _load(path: Path) -> Any:
    """Mapped into memory where the file's format allows: that of PyTorch before 1.6 is read whole. What PyTorch warns of a damaged file,
    such as its pickle protocol, is left out: the error says what to do."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
        return torch.load(path, map_location="cpu", weights_only=True)
