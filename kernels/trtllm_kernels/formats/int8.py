"""int8: signed codes, two's complement.

With wide inputs a tile has the order of bytes (`tiles.BYTES`).
"""

from __future__ import annotations

import torch

from trtllm_kernels.formats.format import Format
from trtllm_kernels.formats.tiles import BYTES


class Int8(Format):
    name = "int8"

    def pack(self, codes: torch.Tensor, input_dtype: str) -> torch.Tensor:
        return BYTES.pack(codes.to(torch.int8)).view(codes.shape)

    def unpack(self, storage: torch.Tensor, input_dtype: str) -> torch.Tensor:
        return BYTES.unpack(storage, *storage.shape)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.to(torch.float32)


FORMAT = Int8()
