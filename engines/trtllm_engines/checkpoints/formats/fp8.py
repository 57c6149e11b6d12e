"""Weights in fp8 (E4M3) with their scales: what ModelOpt, compressed-tensors, transformers, FBGEMM and DeepSeek's form have in common, and
the `fp8` and `fbgemm_fp8` methods of transformers and vLLM themselves, and auto-round's own.

One scale for the tensor, for each row, or for each square of 128 x 128 (DeepSeek-V3, Qwen3-FP8); the values are the codes times it, under
whichever of its names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import gcd
from typing import Annotated

from pydantic import Field
from torch import Tensor

from trtllm_engines.checkpoints.formats.config import AUTO_ROUND, Name, Names, Stated, checked_config, part_of_name
from trtllm_engines.checkpoints.formats.format import WIDE, Format, Rule, StoredTensors, UnknownQuantization
from trtllm_engines.checkpoints.stored_codes import StoredCodes
from trtllm_engines.errors import EngineError
from trtllm_engines.quantization.registry import definition
from trtllm_engines.quantization.scheme import Codes, Inputs

CODES = "F8_E4M3"
POWER_OF_TWO = "F8_E8M0"
WEIGHT_SCALES = ("_scale", "_scale_inv")
"""Endings of the name of a weight's scale: ModelOpt's and compressed-tensors', and that of transformers' fp8. Both are multiplied by."""
_MX_GROUP = 32
"""Columns that share a power of two in OCP's MXFP8."""
_DIVIDED_BY = "inverse"
"""GPTQModel's `weight_scale_semantics`: weights are divided by what it calls `weight_scale_inv`, which transformers multiplies by."""


class _Fp8(Stated):
    activation_scheme: Name | None = None
    weight_block_size: Annotated[list[Annotated[int, Field(ge=1, le=65536)]], Field(min_length=2, max_length=2)] | None = None
    weight_scale_semantics: Name | None = None
    modules_to_not_convert: Names | None = None
    ignored_layers: Names | None = None


class Fp8Format(Format):
    @staticmethod
    def reads(file: str, method: str) -> bool:
        return method in ("fp8", "fbgemm_fp8", f"{AUTO_ROUND}auto_round:fp8", f"{AUTO_ROUND}auto_round:fp8_static")

    @cached_property
    def _config(self) -> _Fp8:
        config = checked_config(_Fp8, self)
        if config.weight_scale_semantics not in (None, _DIVIDED_BY):
            raise self.unknown(f"fp8 with weight_scale_semantics {config.weight_scale_semantics[:60]}")
        return config

    def rules(self) -> Sequence[Rule]:
        config = self._config
        if config.weight_block_size:
            rows, columns = config.weight_block_size
            if rows != columns:
                raise self.unknown(f"fp8 in blocks of {rows}x{columns}")
            return [(".*", self.scheme(Codes("fp8", "block", columns), Inputs(), "fp8 in blocks"))]
        static = self.config.get("quant_method") != "fbgemm_fp8" and config.activation_scheme == "static"
        return [(".*", definition("fp8" if static else "fp8_rowwise").scheme)]

    def wide(self) -> Sequence[str]:
        return [part_of_name(name) for name in (*(self._config.modules_to_not_convert or ()), *(self._config.ignored_layers or ()))]

    def stored(self, module: str) -> StoredCodes | None:
        blocks = self._config.weight_block_size
        stored = stored_fp8(self.tensors, module, blocks[0] if blocks else None)
        if stored is None or self._config.weight_scale_semantics is None:
            return stored
        return replace(stored, scale=lambda: 1.0 / stored.scale())


def scale_name(tensors: StoredTensors, weight: str) -> str | None:
    return next((f"{weight}{ending}" for ending in WEIGHT_SCALES if f"{weight}{ending}" in tensors), None)


def stored_fp8(tensors: StoredTensors, module: str, block: int | None = None) -> StoredCodes | None:
    """The fp8 weight of `module`, where it has one. `block`: the side of the squares that share a scale, where they do."""
    name = f"{module}.weight"
    if name not in tensors or tensors.header(name)[0] != CODES:
        return None
    shape = tensors.header(name)[1]
    scale = scale_name(tensors, name)
    if scale is None:
        raise EngineError(f"weight {name} in {tensors.folder} is fp8 but has no {name}{WEIGHT_SCALES[0]}; quantize the model again")
    if len(shape) != 2:
        raise EngineError(f"weight {name} in {tensors.folder} is fp8 of shape {list(shape)}; only matrices are read")
    rows, columns = shape
    dtype, scale_shape = tensors.header(scale)
    if len(scale_shape) == 4 and scale_shape[1::2] == (1, 1):  # ModelOpt's block scales: [N / 128, 1, K / 128, 1]
        scale_shape = scale_shape[::2]
    if dtype == "U8" and scale_shape == (rows, -(-columns // _MX_GROUP)):
        raise UnknownQuantization(
            f"{tensors.folder} is quantized to MXFP8 (such as {name}), which no engine here runs; "
            f"use the original checkpoint, or one quantized in a way that docs/quantization.md lists"
        )
    if dtype not in (*WIDE, POWER_OF_TWO):
        raise EngineError(f"scale {scale} in {tensors.folder} is stored as {dtype}; it must be a wide number")

    def codes() -> Tensor:
        return tensors.tensor(name)

    in_blocks = block is not None and scale_shape == (-(-rows // block), -(-columns // block))
    if not in_blocks and scale_shape in ((), (1,), (1, 1)):
        return StoredCodes(name, Codes("fp8", "tensor"), (rows, columns), codes, lambda: tensors.tensor(scale).float().view(1))
    if not in_blocks and scale_shape in ((rows,), (rows, 1)):
        return StoredCodes(name, Codes("fp8", "row"), (rows, columns), codes, lambda: tensors.tensor(scale).float().view(-1, 1))
    if block is None or not in_blocks:
        sides = f"blocks of {block}" if block else "one tensor or of rows"
        raise EngineError(f"scale {scale} in {tensors.folder} has shape {list(scale_shape)}, which is not that of {sides} of {list(shape)}")
    size = gcd(block, columns)

    def blocks() -> Tensor:
        by_row = tensors.tensor(scale).float().view(scale_shape).repeat_interleave(block, dim=0)[:rows]
        return by_row.repeat_interleave(block, dim=1)[:, :columns:1][:, ::size].contiguous()

    return StoredCodes(name, Codes("fp8", "block", size), (rows, columns), codes, blocks)
