"""nf4: codes of bitsandbytes' NormalFloat, 16 quantiles of a normal distribution scaled to [-1, 1] (arXiv 2305.14314, appendix E).

The order is int4's, but a register's two elements share a byte, the first in its low half: what a byte stands for is looked up.
"""

from __future__ import annotations

import torch

from trtllm_kernels.formats.format import Format, join_nibbles, split_nibbles
from trtllm_kernels.formats.tiles import THREAD, WIDE_COLUMNS, Order

TABLE = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334),
    *(-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_WIDE = Order(WIDE_COLUMNS, (*THREAD, "step", "eight", "half", "element"))


class Nf4(Format):
    name = "nf4"

    def pack(self, codes: torch.Tensor, input_dtype: str) -> torch.Tensor:
        return join_nibbles(_WIDE.pack(codes)).view(codes.shape[0], -1)

    def unpack(self, storage: torch.Tensor, input_dtype: str) -> torch.Tensor:
        return _WIDE.unpack(split_nibbles(storage), storage.shape[0], 2 * storage.shape[1])

    def values(self, codes: torch.Tensor) -> torch.Tensor:
        return torch.tensor(TABLE, dtype=torch.float32, device=codes.device)[codes.int()]


FORMAT = Nf4()
