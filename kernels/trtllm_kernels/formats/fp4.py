"""fp4 (E2M1): sign, two bits of exponent, one of mantissa: 0, 0.5, 1, 1.5, 2, 3, 4 and 6 and their negatives (OCP Microscaling Formats).

The order is int4's: a thread has a word for each step of 16 columns, and each half of it holds an element of four registers. But a code's
bits lie where a bf16's or an fp16's do, but for a shift: sign above, exponent and mantissa at the exponent's low end. After the shift, a
mask and a multiplication by a power of two are all that is left. There is room for three codes of a bf16's and two of an fp16's form; of
the others some bits take shifts of their own (`BITS`).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trtllm_kernels.formats.format import Format
from trtllm_kernels.formats.tiles import THREAD, WIDE_COLUMNS, Order

TABLE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
_BF16_BITS = ((6, 7, 8, 15), (3, 4, 5, 12), (0, 1, 2, 9), (10, 11, 13, 14))
BITS: Mapping[str, tuple[tuple[int, int, int, int], ...]] = {
    "bf16": _BF16_BITS,
    "fp32": _BF16_BITS,
    "fp16": ((9, 10, 11, 15), (6, 7, 8, 12), (3, 4, 5, 14), (0, 1, 2, 13)),
}
"""By the inputs' format: for each register, at which bit of its half of a word the four bits of its element lie, the lowest first."""
_WIDE = Order(WIDE_COLUMNS, (*THREAD, "step", "element", "eight", "half"))


class Fp4(Format):
    name = "fp4"

    def pack(self, codes: torch.Tensor, input_dtype: str) -> torch.Tensor:
        registers = _WIDE.pack(codes.to(torch.uint8)).view(-1, 4)
        halves = torch.zeros(len(registers), dtype=torch.int32, device=codes.device)
        for register, places in enumerate(BITS[input_dtype]):
            for bit, place in enumerate(places):
                halves |= (registers[:, register] >> bit & 1).int() << place
        return halves.to(torch.int16).view(torch.uint8).view(codes.shape[0], -1)

    def unpack(self, storage: torch.Tensor, input_dtype: str) -> torch.Tensor:
        halves = storage.reshape(-1).view(torch.int16)
        registers = torch.zeros(len(halves), 4, dtype=torch.uint8, device=storage.device)
        for register, places in enumerate(BITS[input_dtype]):
            for bit, place in enumerate(places):
                registers[:, register] |= (halves >> place & 1).to(torch.uint8) << bit
        return _WIDE.unpack(registers.reshape(-1), storage.shape[0], 2 * storage.shape[1])

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.tensor(TABLE, dtype=torch.float32, device=codes.device)[codes.int()]


FORMAT = Fp4()
