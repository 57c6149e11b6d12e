"""int8: signed codes, two's complement.

With wide inputs a tile is 4 KB and a thread has 16 bytes in each half of it, a word for each 8 of four steps' 16 columns. A word has the
elements of row g in bytes 0 and 2 and those of row g + 8 in bytes 1 and 3, where the two registers' halves are.
"""

from __future__ import annotations

import torch

from trtllm_kernels.formats.format import Format
from trtllm_kernels.formats.tiles import THREAD, WIDE_COLUMNS, Order

_COLUMNS = {"steps": 2, **WIDE_COLUMNS, "step": 2}
_WIDE = Order(_COLUMNS, ("steps", *THREAD, "step", "eight", "element", "half"))


class Int8(Format):
    name = "int8"

    def pack(self, codes: torch.Tensor, input_dtype: str) -> torch.Tensor:
        return _WIDE.pack(codes.to(torch.int8)).view(codes.shape)

    def unpack(self, storage: torch.Tensor, input_dtype: str) -> torch.Tensor:
        return _WIDE.unpack(storage, *storage.shape)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.to(torch.float32)


FORMAT = Int8()
