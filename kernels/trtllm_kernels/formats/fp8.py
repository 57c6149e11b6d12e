"""fp8: E4M3 codes (OCP 8-bit Floating Point Specification), as torch holds them.

With wide inputs a tile has the order of bytes (`tiles.BYTES`). With fp8 inputs a weight is a row-major matrix and not packed.
"""

from __future__ import annotations

import torch

from trtllm_kernels.formats.format import Format
from trtllm_kernels.formats.tiles import BYTES


class Fp8(Format):
    name = "fp8"

    def pack(self, codes: torch.Tensor, input_dtype: str) -> torch.Tensor:
        return BYTES.pack(codes.view(torch.uint8)).view(codes.shape).view(torch.float8_e4m3fn)

    def unpack(self, storage: torch.Tensor, input_dtype: str) -> torch.Tensor:
        return BYTES.unpack(storage.view(torch.uint8), *storage.shape).view(torch.float8_e4m3fn)

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        return codes.view(torch.float8_e4m3fn).to(torch.float32)


FORMAT = Fp8()
