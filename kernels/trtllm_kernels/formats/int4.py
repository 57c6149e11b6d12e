"""int4: codes 0 to 15, of which 8 is zero unless the weight has zero points.

With wide inputs a tile is 2 KB and a thread has 16 bytes: a word for each step of 16 columns, whose 8 codes are those of four registers. A
register's first element lies in nibble i (of register i) and its second in nibble i + 4, so that one shift and one mask bring both to
where the numbers are made.

With fp8 inputs a thread's 16 bytes are two words for each step of 32 columns, one for each 16 of them. A word's low nibbles are the four
elements of row g and its high ones those of row g + 8. A nibble is not the code but the code less 8 in E4M3's manner: three bits of
magnitude, which a negative number has less 1, and below them the sign (-8 is 15, -1 is 1, 7 is 14). E4M3's smallest numbers are 2^-9 times
its own code, so that masks and one multiplication make twice the code less 8, and no second product takes off the 8.
"""

from __future__ import annotations

import torch

from trtllm_kernels.formats.format import Format, join_nibbles, split_nibbles
from trtllm_kernels.formats.tiles import BYTE_COLUMNS, THREAD, WIDE_COLUMNS, Order

_WIDE = Order(WIDE_COLUMNS, (*THREAD, "step", "element", "eight", "half"))
_FP8 = Order(BYTE_COLUMNS, (*THREAD, "step", "sixteen", "element", "half"))


def _signed(codes: torch.Tensor) -> torch.Tensor:
    """Nibbles of codes with fp8 inputs."""
    return torch.where(codes < 8, 15 - 2 * codes, 2 * codes - 16)


def _unsigned(nibbles: torch.Tensor) -> torch.Tensor:
    """The inverse of `_signed`."""
    return torch.where(nibbles % 2 == 0, 8 + nibbles // 2, 7 - nibbles // 2)


def _order(input_dtype: str) -> Order:
    return _FP8 if input_dtype == "fp8" else _WIDE


class Int4(Format):
    name = "int4"

    def pack(self, codes: torch.Tensor, input_dtype: str) -> torch.Tensor:
        nibbles = _signed(codes) if input_dtype == "fp8" else codes
        return join_nibbles(_order(input_dtype).pack(nibbles)).view(codes.shape[0], -1)

    def unpack(self, storage: torch.Tensor, input_dtype: str) -> torch.Tensor:
        nibbles = _order(input_dtype).unpack(split_nibbles(storage), storage.shape[0], 2 * storage.shape[1])
        return _unsigned(nibbles) if input_dtype == "fp8" else nibbles

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.to(torch.float32)


FORMAT = Int4()
