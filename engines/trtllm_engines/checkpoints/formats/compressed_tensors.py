"""compressed-tensors: what llm-compressor writes (github.com/vllm-project/compressed-tensors).

Groups of modules, each with its own weights and inputs. `weight_packed` holds integers of 2 to 8 bits in int32 words along K, a stream of
bits, lowest first, shifted to be positive (`pack-quantized`), or two fp4 codes a byte; `weight` holds int8 (`int-quantized`, of fewer bits
too) or fp8. Codes of 2 and 3 bits become int4, those of 5 to 7 bits int8.
NVFP4's scale of the tensor is divided by: `weight_global_scale` is what scales were multiplied by to fill E4M3.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Any

import torch
from pydantic import Field, field_validator
from torch import Tensor

from trtllm_engines.checkpoints.formats.config import (
    EMBEDDINGS,
    EVERY_LINEAR,
    CacheCodes,
    GroupSize,
    Name,
    Names,
    Stated,
    checked_config,
    target,
)
from trtllm_engines.checkpoints.formats.format import (
    GROUP_SCALES,
    SCALES,
    WIDE_DTYPE,
    Format,
    Groups,
    Rule,
    column_order,
    groups_of,
    nibbles,
    runs,
    words_to_codes,
)
from trtllm_engines.checkpoints.formats.fp8 import stored_fp8
from trtllm_engines.checkpoints.stored_codes import StoredCodes
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.module_names import expression
from trtllm_engines.quantization.registry import definition
from trtllm_engines.quantization.scheme import Codes, Inputs, QuantScheme

_LAYOUTS = {
    *("dense", "mixed-precision", "pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    *("nvfp4-pack-quantized", "mxfp4-pack-quantized"),
}
"""Layouts (`format`) that are read. Under `mixed-precision` each group has a layout of its own, recognised by its tensors."""


class StatedCodes(Stated):
    """What it says of a weight or an input."""

    num_bits: Annotated[int, Field(ge=1, le=64)] | None = None
    type: Name | None = None
    strategy: Name | None = None
    group_size: GroupSize | None = None
    symmetric: bool | None = None
    block_structure: list[Annotated[int, Field(ge=1)]] | None = None
    scale_dtype: Name | None = None
    dynamic: bool | Name | None = None

    @field_validator("block_structure", mode="before")
    @classmethod
    def _of_text(cls, stated: Any) -> Any:
        """Early versions wrote the sides as text, such as `128x128`."""
        sides = stated.split("x") if isinstance(stated, str) else ()
        return [int(side) for side in sides] if sides and all(side.isdecimal() for side in sides) else stated


class Group(Stated):
    targets: Names | None = None
    weights: StatedCodes | None = None
    input_activations: StatedCodes | None = None


class _Applied(Stated):
    location: Name


class _Transform(Stated):
    apply: list[_Applied] | None = None


class _Transforms(Stated):
    """Rotations. Those of weights are already in the stored weights; the others are multiplications between GEMMs."""

    config_groups: dict[str, _Transform] | None = None

    def between_products(self) -> list[str]:
        groups = (self.config_groups or {}).items()
        return [name for name, one in groups if any(not place.location.startswith("weight_") for place in one.apply or ())]


class _Sparsity(Stated):
    """How zeros are stored: `dense` as any number, other formats without them."""

    format: Name | None = None


class Config(Stated):
    format: Name | None = None
    sparsity_config: _Sparsity | None = None
    transform_config: _Transforms | None = None
    config_groups: dict[str, Group] | None = None
    ignore: Names | None = None
    kv_cache_scheme: CacheCodes | None = None


class CompressedTensors(Format):
    @staticmethod
    def reads(file: str, method: str) -> bool:
        return method == "compressed-tensors"

    @cached_property
    def _config(self) -> Config:
        config = checked_config(Config, self)
        if config.format and config.format not in _LAYOUTS:
            raise self.unknown(f"compressed-tensors in the layout {config.format[:60]}")
        if self._sparse_as(config) not in ("", "dense"):
            raise self.unknown(f"compressed-tensors with sparse weights ({self._sparse_as(config)[:60]})")
        if config.transform_config and (rotated := config.transform_config.between_products()):
            raise self.unknown(f"compressed-tensors with activations that are transformed ({', '.join(rotated)[:60]})")
        return config

    @staticmethod
    def _sparse_as(config: Config) -> str:
        return (config.sparsity_config and config.sparsity_config.format) or ""

    @cached_property
    def _targets(self) -> list[tuple[str, Group]]:
        """(modules, group) of each target, named modules before expressions before whole classes, as compressed-tensors looks them up."""
        targets: list[tuple[int, str, Group]] = []
        for group in (self._config.config_groups or {}).values():
            for one in group.targets or [EVERY_LINEAR]:
                rank = 3 if one == EVERY_LINEAR else 2 if one == EMBEDDINGS else 1 if one.startswith("re:") else 0
                targets.append((rank, target(one), group))
        return [(pattern, group) for _, pattern, group in sorted(targets, key=lambda one: one[0])]

    def rules(self) -> Sequence[Rule]:
        if not self._targets and not self.kv_dtype() and not self._sparse_as(self._config):
            raise self.unknown("compressed-tensors without config_groups")
        return [(pattern, self._scheme(group)) for pattern, group in self._targets]

    def wide(self) -> Sequence[str]:
        return [target(name) for name in self._config.ignore or ()]

    def kv_dtype(self) -> str:
        cache = self._config.kv_cache_scheme
        return "" if cache is None else cache.dtype

    def _scheme(self, group: Group) -> QuantScheme:
        if group.weights is None:  # only the KV cache or the inputs are quantized: GEMMs stay wide
            return definition(WIDE_DTYPE).scheme
        weights, inputs = group.weights, group.input_activations
        how = f"compressed-tensors with {_said(weights)} weights and {_said(inputs) if inputs else '16-bit'} inputs"
        taken = self._inputs(inputs, weights, how)
        if (weights.num_bits, weights.type) == (8, "float") and weights.strategy in ("tensor", "channel") and taken.dtype:
            return definition("fp8_rowwise" if taken.scaling == "dynamic" else "fp8").scheme
        kind = self._kind(weights, how)
        inputs_stay_wide = taken.dtype == "int8" and not runs(kind, taken)
        return self.scheme(kind, Inputs() if inputs_stay_wide else taken, how)

    def _inputs(self, inputs: StatedCodes | None, weights: StatedCodes, how: str) -> Inputs:
        """How the engine takes the inputs. fp4 inputs, and those of block-scaled fp8, are taken wide: no Hopper GPU multiplies fp4, and
        wide inputs are exact. int8 inputs get a scale per token even where a static one is stated, since it rounds less. `_scheme` takes
        them wide too where no GEMM multiplies them by the weights (int4, or with zero points)."""
        if inputs is None or inputs.num_bits == 4 or weights.strategy == "block":
            return Inputs()
        dtype = {(8, "float"): "fp8", (8, "int"): "int8"}.get((inputs.num_bits or 0, inputs.type or ""))
        if dtype is None:
            raise self.unknown(how)
        return Inputs(dtype, "dynamic" if inputs.dynamic or dtype == "int8" else "static")

    def _kind(self, weights: StatedCodes, how: str) -> Codes:
        zero = weights.symmetric is False
        match weights.num_bits, weights.type, weights.strategy:
            case (2 | 3 | 4 | 5 | 6 | 7 | 8) as bits, "int", "group" | "channel" | "tensor" as strategy:
                dtype = "int4" if bits <= 4 else "int8"
                if strategy == "group" and (size := weights.group_size or 128) > 0:
                    return Codes(dtype, "group", size, zero, "bf16")
                return Codes(dtype, "tensor" if strategy == "tensor" else "row", zero_point=zero)
            case 4, "float", "tensor_group":
                return Codes("fp4", "group", weights.group_size or 16, scale_dtype="fp8", tensor_scale=True)
            case 4, "float", "group":
                return Codes("fp4", "group", weights.group_size or 32, scale_dtype="e8m0")
            case 8, "float", "block" if weights.block_structure and len(set(weights.block_structure)) == 1:
                return Codes("fp8", "block", weights.block_structure[0])
            case 8, "float", "tensor" | "channel" as strategy:
                return Codes("fp8", "row" if strategy == "channel" else "tensor")
        raise self.unknown(how)

    def stored(self, module: str) -> StoredCodes | None:
        group = next((one for pattern, one in self._targets if expression(pattern).matches(module)), None)
        weights = (group.weights if group else None) or StatedCodes()
        packed, plain = f"{module}.weight_packed", f"{module}.weight"
        if self.has(packed):
            return self._fp4(module) if self.tensors.header(packed)[0] == "U8" else self._words(module, weights)
        if not self.has(plain):
            return None
        dtype = self.tensors.header(plain)[0]
        if dtype == "I8":
            return self._int8(module, weights)
        block = weights.block_structure[0] if weights.block_structure else None
        return stored_fp8(self.tensors, module, block)

    def _words(self, module: str, weights: StatedCodes) -> StoredCodes:
        name, scale = f"{module}.weight_packed", f"{module}.weight_scale"
        bits = self._bits(weights, name)
        rows, words = self.matrix(name, ("I32",))
        columns = words * 32 // bits
        if self.has(f"{module}.weight_shape"):
            self.need(f"{module}.weight_shape", ("I32", "I64"), (2,))
            stored_rows, columns = (int(size) for size in self.tensors.tensor(f"{module}.weight_shape").tolist())
            if stored_rows != rows or columns < 1 or -(-columns * bits // 32) != words:
                raise EngineError(
                    f"tensor {name} in {self.folder} has shape {[rows, words]}, which {bits}-bit codes of {[stored_rows, columns]} "
                    f"({module}.weight_shape) have not; download it again"
                )
        zero_name = f"{module}.weight_zero_point"
        kind, groups = self._int_kind(module, weights, (rows, columns))
        g_idx = f"{module}.weight_g_idx"
        if self.has(g_idx):
            self.need(g_idx, ("I32", "I64"), (columns,))
        order = column_order(g_idx, self.tensors.tensor(g_idx), groups, self.folder) if self.has(g_idx) else None
        shift = _shift(bits) - (1 << (bits - 1))

        def codes() -> Tensor:
            unsigned = words_to_codes(self.tensors.tensor(name), bits)[:, :columns]
            unsigned = unsigned if order is None else unsigned[:, order.long()]
            return unsigned + shift if bits <= 4 else (unsigned.short() + shift).char()

        def zero() -> Tensor:
            stored = self.tensors.tensor(zero_name)
            if stored.dtype != torch.int32:
                return groups.spread(_plain_zero(stored, rows, bits))
            return groups.spread((words_to_codes(stored.T.contiguous(), bits).T[:rows].float() + shift).contiguous())

        if kind.zero_point and kind.granularity != "tensor":
            zero_rows = {"I32": -(-rows * bits // 32), "I8": rows}  # early versions did not pack them
            self.need(zero_name, tuple(zero_rows))
            self.need(zero_name, tuple(zero_rows), (zero_rows[self.tensors.header(zero_name)[0]], groups.count))
        elif kind.zero_point:
            self.number(zero_name, ("I8",))
        return StoredCodes(
            f"{module}.weight",
            kind,
            (rows, columns),
            codes,
            lambda: self._scale(scale, kind, groups),
            zero if kind.zero_point else None,
            order=None if order is None else lambda: order,
        )

    def _int8(self, module: str, weights: StatedCodes) -> StoredCodes:
        """`int-quantized`: a code a byte, of fewer bits too."""
        name, scale, zero = f"{module}.weight", f"{module}.weight_scale", f"{module}.weight_zero_point"
        bits = self._bits(weights, name)
        rows, columns = self.matrix(name, ("I8",))
        kind, groups = self._int_kind(module, weights, (rows, columns))
        if kind.zero_point and kind.granularity != "tensor":
            self.need(zero, ("I8",), (rows, groups.count))
        elif kind.zero_point:
            self.number(zero, ("I8",))
        return StoredCodes(
            name,
            kind,
            (rows, columns),
            lambda: (self.tensors.tensor(name) + _shift(bits)).byte() if bits <= 4 else self.tensors.tensor(name),
            lambda: self._scale(scale, kind, groups),
            (lambda: groups.spread(_plain_zero(self.tensors.tensor(zero), rows, bits))) if kind.zero_point else None,
        )

    def _bits(self, weights: StatedCodes, name: str) -> int:
        if weights.type != "int" or weights.num_bits is None or not 2 <= weights.num_bits <= 8:
            raise self.unknown(f"compressed-tensors with {_said(weights)} weights (such as {name})")
        return weights.num_bits

    def _scale(self, name: str, kind: Codes, groups: Groups) -> Tensor:
        stored = self.tensors.tensor(name)
        return stored.float().view(1) if kind.granularity == "tensor" else groups.spread(stored)

    def _int_kind(self, module: str, weights: StatedCodes, shape: tuple[int, int]) -> tuple[Codes, Groups]:
        """Codes of the weight of `module`, of `shape` [rows, columns], and their groups (a row is one group); the granularity follows from
        the shape of the scales. Raises `EngineError` for scales that do not fit."""
        scale, dtype = f"{module}.weight_scale", "int4" if (weights.num_bits or 8) <= 4 else "int8"
        zero = weights.symmetric is False or self.has(f"{module}.weight_zero_point")
        rows, columns = shape
        if self.need(scale, GROUP_SCALES) in ((), (1,), (1, 1)):
            return Codes(dtype, "tensor", zero_point=zero), Groups(columns, columns)
        scale_shape = self.matrix(scale, GROUP_SCALES)
        if scale_shape[0] != rows:
            raise EngineError(f"tensor {scale} in {self.folder} has shape {list(scale_shape)}; it must have {rows} rows, one per output")
        if scale_shape[1] == 1:
            return Codes(dtype, "row", zero_point=zero), Groups(columns, columns)
        groups = groups_of(f"{module}.weight", columns, scale_shape[1], self.folder, weights.group_size or 0)
        return Codes(dtype, "group", groups.size, zero, SCALES[self.tensors.header(scale)[0]]), groups

    def _fp4(self, module: str) -> StoredCodes:
        name, scale, whole = f"{module}.weight_packed", f"{module}.weight_scale", f"{module}.weight_global_scale"
        rows, half = self.matrix(name, ("U8",))
        _, groups = self.matrix(scale, ("F8_E4M3", "U8"))
        self.need(scale, ("F8_E4M3", "U8"), (rows, groups))
        size = groups_of(f"{module}.weight", 2 * half, groups, self.folder).size
        nvidias = self.fp4_scales(scale, whole)
        return StoredCodes(
            f"{module}.weight",
            Codes("fp4", "group", size, scale_dtype="fp8" if nvidias else "e8m0", tensor_scale=nvidias),
            (rows, 2 * half),
            lambda: nibbles(self.tensors.tensor(name)),
            lambda: self.tensors.tensor(scale),
            tensor_scale=(lambda: 1.0 / self.positive(whole)) if nvidias else None,
        )


def _said(codes: StatedCodes) -> str:
    scaled = f", one scale per {codes.strategy}" if codes.strategy else ""
    return f"{codes.num_bits}-bit {codes.type}{scaled}"


def _plain_zero(stored: Tensor, rows: int, bits: int) -> Tensor:
    """Zero points fp32 [N, 1] or [N, groups], from stored ones that are a byte each, or from one for the whole tensor."""
    by_row = stored.float().view(-1, 1).expand(rows, 1) if stored.numel() == 1 else stored.float().view(rows, -1)
    return by_row + _shift(bits)


def _shift(bits: int) -> int:
    """What turns signed codes into those that an engine has: int4's count from 0, with their middle at 8; those of more bits are int8."""
    return 8 if bits <= 4 else 0
