"""What a reader of one tool's checkpoints answers, and what it reads from.

A reader says two things of a checkpoint: which scheme the tool's configuration gives each module, and what is stored of one module, as
codes in one form (`StoredCodes`). Where the two disagree, what is stored decides (`checkpoint_precision`). Readers look at headers when
they are asked what is there, and read a tensor when its part is asked for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from trtllm_engines.checkpoints import check_scale
from trtllm_engines.checkpoints.stored_codes import StoredCodes
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.registry import EXACT_CODES, scheme_for
from trtllm_engines.quantization.scheme import Codes, Inputs, QuantScheme

WIDE = ("F64", "F32", "F16", "BF16")
SCALES: Mapping[str, str] = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F8_E4M3": "fp8"}
"""Dtypes that stored group scales may have, by safetensors' name."""
GROUP_SCALES = ("F32", "F16", "BF16")
"""Those of `SCALES` that are wide numbers."""
WIDE_DTYPE = "bf16"
"""Precision of modules that a configuration leaves wide."""


class StoredTensors(Protocol):
    """The tensors of a checkpoint, by name."""

    folder: Path

    def __contains__(self, name: str) -> bool: ...

    def header(self, name: str) -> tuple[str, tuple[int, ...]]:
        """(type, shape), the type in safetensors' name."""

    def tensor(self, name: str) -> Tensor: ...


class UnknownQuantization(EngineError):
    """A checkpoint is quantized in a way that no scheme here has."""


Rule = tuple[str, QuantScheme]
"""(regular expression of whole module names, scheme)"""


class Format(ABC):
    """One tool's checkpoints. `config` is what the tool left beside the weights, in `file`; `tensors` None where there are none yet."""

    def __init__(self, folder: Path, file: str, config: Mapping[str, Any], tensors: StoredTensors | None) -> None:
        self.folder, self.file, self.config = folder, file, config
        self._tensors = tensors

    @abstractmethod
    def rules(self) -> Sequence[Rule]:
        """The scheme of each module that the configuration names, the more particular first. Raises `UnknownQuantization`."""

    @abstractmethod
    def wide(self) -> Sequence[str]:
        """Regular expressions of the modules that the configuration leaves wide."""

    @abstractmethod
    def stored(self, module: str) -> StoredCodes | None:
        """The codes of `module`, None where it has none. Raises `EngineError` where a part is missing or of the wrong shape, and
        `UnknownQuantization` for codes in another form."""

    def kv_dtype(self) -> str:
        """What the checkpoint says the KV cache is kept in; "" where it says nothing."""
        return ""

    @property
    def path(self) -> Path:
        return self.folder / self.file

    @property
    def tensors(self) -> StoredTensors:
        assert self._tensors is not None
        return self._tensors

    def has(self, name: str) -> bool:
        return self._tensors is not None and name in self._tensors

    def need(self, name: str, types: Sequence[str], shape: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """The shape of tensor `name`. Raises `EngineError` where it is missing, or not of one of these types, or not of this shape."""
        if not self.has(name):
            raise EngineError(f"{self.folder} has no {name}, which the codes of {name.rpartition('.')[0]} need; download it again")
        dtype, stored = self.tensors.header(name)
        if dtype not in types:
            raise EngineError(f"tensor {name} in {self.folder} is of type {dtype}; it must be of {' or '.join(types)}")
        if shape is not None and stored != shape:
            raise EngineError(f"tensor {name} in {self.folder} has shape {list(stored)}; it must be {list(shape)}")
        return stored

    def matrix(self, name: str, types: Sequence[str]) -> tuple[int, int]:
        """As `need`, of a matrix that is not empty."""
        shape = self.need(name, types)
        if len(shape) != 2 or 0 in shape:
            raise EngineError(f"tensor {name} in {self.folder} has shape {list(shape)}; it must be a matrix")
        return shape[0], shape[1]

    def number(self, name: str, types: Sequence[str] = WIDE) -> None:
        """As `need`, for a tensor of one number."""
        if (shape := self.need(name, types)) not in ((), (1,), (1, 1)):
            raise EngineError(f"tensor {name} in {self.folder} has shape {list(shape)}; it must be one number")

    def positive(self, name: str) -> Tensor:
        """The number in tensor `name`, fp32 [1], whose shape `number` has checked. Raises `EngineError` unless it is positive."""
        scale = self.tensors.tensor(name).float().view(1)
        check_scale(name, float(scale), str(self.folder))
        return scale

    def fp4_scales(self, scale: str, whole: str) -> bool:
        """Whether `scale` has NVFP4's group scales, which need the tensor scale `whole`; MXFP4's are powers of two and have none. Raises
        `EngineError` where the two do not belong together."""
        dtype = self.tensors.header(scale)[0]
        nvidias = dtype == "F8_E4M3"
        if nvidias:
            self.number(whole)
        elif self.has(whole):
            raise EngineError(f"tensor {scale} in {self.folder} is of type {dtype} and has {whole} beside it; it must be of F8_E4M3")
        return nvidias

    def unknown(self, how: str) -> UnknownQuantization:
        return UnknownQuantization(
            f"{self.folder} is quantized by {how}, which no engine here runs; "
            f"use the original checkpoint, or one quantized in a way that docs/quantization.md lists"
        )

    def scheme(self, kind: Codes, inputs: Inputs, how: str) -> QuantScheme:
        """The scheme of such weights and inputs; one scale for the tensor is one for each row, since products are merged. Raises
        `UnknownQuantization` where there is none."""
        chosen = scheme_for(kind, inputs)
        if chosen is None or not runs(kind, inputs):
            raise self.unknown(how)
        return QuantScheme(chosen.name, replace(kind, granularity="row") if kind.granularity == "tensor" else kind, inputs)


def runs(kind: Codes, inputs: Inputs) -> bool:
    """Whether some scheme multiplies such weights by such inputs."""
    chosen = scheme_for(kind, inputs)
    return chosen is not None and (EXACT_CODES in chosen.recipes or not (kind.zero_point or kind.in_groups))


@dataclass(frozen=True)
class Groups:
    """Groups of `stated` neighbours in rows of `columns`, of which the last may have fewer. An engine's groups are of one size: the largest
    that divides both, so that a stored group is one of them or several with the same scale."""

    columns: int
    stated: int

    @property
    def size(self) -> int:
        return gcd(self.columns, self.stated)

    @property
    def count(self) -> int:
        """Groups as they are stored."""
        return -(-self.columns // self.stated)

    def spread(self, parts: Tensor) -> Tensor:
        """[N, columns / size] of what is stored for each group, [N, stored groups]."""
        if self.columns % self.stated == 0:
            return parts
        return parts[:, torch.arange(0, self.columns, self.size) // self.stated]


def groups_of(name: str, columns: int, stored: int, folder: Path, stated: int = 0) -> Groups:
    """The groups of a row that has `stored` scales: of the `stated` size where that makes as many, else of equal size. Raises `EngineError`
    where they do not divide."""
    if stated > 0 and -(-columns // stated) == stored:
        return Groups(columns, min(columns, stated))
    if stored < 1 or columns % stored:
        raise EngineError(
            f"weight {name} in {folder} has {columns} columns and scales for {stored} groups, which do not divide; use another checkpoint"
        )
    return Groups(columns, columns // stored)


def words_to_codes(words: Tensor, bits: int) -> Tensor:
    """uint8 [R, C * 32 / bits or more] of int32 words [R, C]: each row is a stream of bits, lowest first. Zeros may follow."""
    if 8 % bits == 0:
        octets = words.contiguous().view(torch.uint8)  # of a little-endian machine, as all that run torch are
        return octets if bits == 8 else torch.stack([octets >> shift & ((1 << bits) - 1) for shift in range(0, 8, bits)], -1).flatten(-2)
    rows = words.shape[0]
    words = functional.pad(words, (0, -words.shape[1] % bits))
    per_block = (words.long() & 0xFFFFFFFF).view(rows, -1, bits)  # `bits` words hold 32 codes
    codes = []
    for first in range(0, 32 * bits, bits):
        word, shift = divmod(first, 32)
        value = per_block[:, :, word] >> shift
        if shift + bits > 32:
            value = value | (per_block[:, :, word + 1] << (32 - shift))
        codes.append((value & ((1 << bits) - 1)).to(torch.uint8))
    return torch.stack(codes, dim=2).view(rows, -1)


def nibbles(packed: Tensor) -> Tensor:
    """uint8 [..., 2 K] of bytes [..., K], the low half first."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


def column_order(name: str, g_idx: Tensor, groups: Groups, folder: Path) -> Tensor | None:
    """int32 [K]: columns sorted by group, from the group of each; None where they are in order. Raises `EngineError` for groups of other
    sizes."""
    in_order = torch.arange(groups.columns) // groups.stated
    stored = g_idx.long()
    if torch.equal(stored, in_order):
        return None
    if not torch.equal(stored.sort().values, in_order):
        raise EngineError(
            f"tensor {name} in {folder} does not give each of {groups.count} groups {groups.stated} columns; use another checkpoint"
        )
    return torch.argsort(stored, stable=True).int()
