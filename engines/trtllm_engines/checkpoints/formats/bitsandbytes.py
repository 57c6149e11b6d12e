"""bitsandbytes, as transformers saves it: nf4 (Dettmers et al. 2023, arXiv 2305.14314) and int8 (2022, arXiv 2208.07339).

4 bits: the matrix as one row of bytes, the high nibble first, in blocks of 64 with one largest magnitude each; these may be codes
themselves, in blocks of 256 with an offset (double quantization). The bytes may be stored as words of a wide type
(`bnb_4bit_quant_storage`). int8: one largest magnitude per row, `SCB`, of which a step is 1/127.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import gcd
from typing import Annotated

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from trtllm_engines.checkpoints.formats.config import Name, Names, Stated, checked_config, within_name
from trtllm_engines.checkpoints.formats.format import WIDE, Format, Rule
from trtllm_engines.checkpoints.stored_codes import StoredCodes
from trtllm_engines.documents import checked_json
from trtllm_engines.quantization.scheme import Codes, Inputs
from trtllm_kernels import formats

_BLOCK = 64
ABSMAX = ".absmax"
"""Ending of what 4-bit codes have beside them: the weight's name and this."""
_STATE = "weight.quant_state.bitsandbytes__nf4"


class _Config(Stated):
    load_in_4bit: bool = False
    load_in_8bit: bool = False
    bnb_4bit_quant_type: Name = "fp4"
    llm_int8_skip_modules: Names | None = None


class _State(Stated):
    """What is written beside a weight of 4-bit codes."""

    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)]
    blocksize: Annotated[int, Field(ge=1)]
    nested_blocksize: Annotated[int, Field(ge=1)] = 256
    nested_offset: float = 0.0


class BitsAndBytes(Format):
    @staticmethod
    def reads(file: str, method: str) -> bool:
        return method == "bitsandbytes"

    @cached_property
    def _config(self) -> _Config:
        config = checked_config(_Config, self)
        if config.load_in_4bit and config.bnb_4bit_quant_type != "nf4":
            raise self.unknown(f"bitsandbytes' {config.bnb_4bit_quant_type[:60]}")
        if not (config.load_in_4bit or config.load_in_8bit):
            raise self.unknown("bitsandbytes without load_in_4bit or load_in_8bit")
        return config

    def rules(self) -> Sequence[Rule]:
        if self._config.load_in_4bit:
            return [(".*", self.scheme(Codes("nf4", "group", _BLOCK), Inputs(), "bitsandbytes' nf4"))]
        return [(".*", self.scheme(Codes("int8", "row"), Inputs(), "bitsandbytes' int8"))]

    def wide(self) -> Sequence[str]:
        return [within_name(name) for name in self._config.llm_int8_skip_modules or ()]

    def stored(self, module: str) -> StoredCodes | None:
        _ = self._config  # refuses forms that only look like these
        name = f"{module}.weight"
        dtype = self.tensors.header(name)[0] if self.has(name) else ""
        if dtype == "I8":
            rows, columns = self.matrix(name, ("I8",))
            self.need(f"{module}.SCB", WIDE, (rows,))
            scale = lambda: self.tensors.tensor(f"{module}.SCB").float().view(rows, 1) / 127  # noqa: E731
            return StoredCodes(name, Codes("int8", "row"), (rows, columns), lambda: self.tensors.tensor(name), scale)
        return self._nf4(module) if dtype == "U8" or self.has(f"{name}{ABSMAX}") else None

    def _nf4(self, module: str) -> StoredCodes:
        name, absmax = f"{module}.weight", f"{module}.weight{ABSMAX}"
        self.need(f"{module}.{_STATE}", ("U8",))
        state = self._state(module)
        (rows, columns), block = state.shape, state.blocksize
        size = gcd(columns, block)  # a block may hold the end of one row and the beginning of the next
        self._check_bytes(name, rows * columns // 2)
        self.need(absmax, ("F32", "U8"), (-(-rows * columns // block),))
        self.need(f"{module}.weight.quant_map", WIDE, (16,))
        table = self.tensors.tensor(f"{module}.weight.quant_map").float()
        if not torch.allclose(table, torch.tensor(formats.nf4.TABLE), atol=1e-6):
            raise self.unknown(f"bitsandbytes with a table of its own (such as {name})")

        def codes() -> Tensor:
            packed = self.tensors.tensor(name).contiguous().view(torch.uint8).view(rows, columns // 2)
            return torch.stack((packed >> 4, packed & 15), dim=2).flatten(1)

        def scale() -> Tensor:
            largest = self.tensors.tensor(absmax)
            if largest.dtype == torch.uint8:
                largest = self._nested(module, largest, state)
            return largest.float().repeat_interleave(block // size)[: rows * columns // size].view(rows, columns // size)

        return StoredCodes(name, Codes("nf4", "group", size), (rows, columns), codes, scale)

    def _check_bytes(self, name: str, count: int) -> None:
        """Raises `EngineError` unless tensor `name` is one column of words that make `count` bytes."""
        words = {"U8": count, "F16": count // 2, "BF16": count // 2, "F32": count // 4}
        self.need(name, tuple(words))
        self.need(name, tuple(words), (words[self.tensors.header(name)[0]], 1))

    def _state(self, module: str) -> _State:
        text = bytes(self.tensors.tensor(f"{module}.{_STATE}").flatten().tolist()).decode(errors="replace")
        return checked_json(TypeAdapter(_State), text, f"{self.folder}: {module}.{_STATE}")

    def _nested(self, module: str, codes: Tensor, state: _State) -> Tensor:
        """Largest magnitudes that are codes themselves."""
        self.need(f"{module}.weight.nested_quant_map", WIDE, (256,))
        self.need(f"{module}.weight.nested_absmax", WIDE, (-(-codes.numel() // state.nested_blocksize),))
        values = self.tensors.tensor(f"{module}.weight.nested_quant_map").float()[codes.long()]
        blocks = self.tensors.tensor(f"{module}.weight.nested_absmax").float()
        of_each = blocks.repeat_interleave(state.nested_blocksize)[: len(values)]
        return values * of_each + state.nested_offset
