"""A weight stored as codes, in one form whichever tool wrote it: what every reader of a format returns and every scheme takes.

Codes are those of the dialect (`trtllm_kernels.dialect.ops.linear`): int4 counts from 0, int8 is signed, fp4, nf4 and fp8 are their bits.
What a format packs is unpacked, what it shifts is shifted back, and columns that were quantized out of order (act-order) are sorted by
group, so that column k of the codes multiplies column `order[k]` of the input. Each part is read when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trtllm_engines.quantization.scheme import Codes, Inputs
from trtllm_kernels import formats
from trtllm_kernels.references.codes import code_values

Part = Callable[[], Tensor]


@dataclass(frozen=True)
class StoredCodes:
    """Codes of the weight `name` [N, K]."""

    name: str
    kind: Codes
    shape: tuple[int, int]
    codes: Part
    """[N, K]: uint8, int8, or fp8."""
    scale: Part
    """[N, groups], [N, 1] or [1], in `kind.scale_dtype`; powers of two are uint8."""
    zero: Part | None = None
    """fp32 [N, groups] or [N, 1]."""
    tensor_scale: Part | None = None
    """fp32 [1], where `kind` has one."""
    order: Part | None = None
    """int32 [K]."""
    factor: Part | None = None
    """fp32 [K]: what column k of the input is multiplied by, before columns are put in order."""

    def values(self) -> Tensor:
        """fp32 [N, K] of the weight that the codes stand for, in the model's order of columns, factors taken in."""
        codes, scale = self.codes(), self.scale()
        decoded = formats.values(codes, self.kind.dtype)
        zero = None if self.zero is None else self.zero().T
        row_scale = self.tensor_scale() if self.tensor_scale is not None else None if self.kind.in_groups else scale
        values = code_values(decoded, self.kind.dtype, row_scale, scale.T if self.kind.in_groups else None, zero)
        if self.order is not None:
            arranged = torch.empty_like(values)
            arranged[:, self.order().long()] = values
            values = arranged
        return values if self.factor is None else values * self.factor()

    def suits(self, kind: Codes, inputs: Inputs) -> bool:
        """Whether a product of weights of `kind` and such inputs can keep these codes."""
        arranged = (inputs.ordered or self.order is None) and (inputs.factored or self.factor is None)
        return kind.is_like(self.kind) and self.gives(kind) and arranged

    def gives(self, kind: Codes) -> bool:
        """Whether codes of `kind` have the same values: their groups divide these, and they have zero points where these have."""
        mine = self.kind
        sizes = mine.group_size if mine.in_groups else self.shape[1], kind.group_size if kind.in_groups else self.shape[1]
        coarser = sizes[0] % sizes[1] or (mine.granularity == "row" and kind.granularity == "tensor")
        return not coarser and (kind.zero_point or not mine.zero_point)

    def on(self, device: torch.device) -> StoredCodes:
        """The same with every part on `device`."""

        def moved(part: Part | None) -> Part | None:
            return None if part is None else lambda: part().to(device)

        parts = {name: moved(getattr(self, name)) for name in ("codes", "scale", "zero", "tensor_scale", "order", "factor")}
        return self if device.type == "cpu" else replace(self, **parts)  # type: ignore[arg-type]

    def as_kind(self, kind: Codes) -> StoredCodes:
        """The same values in codes of `kind`, which `gives` allows: they may have more scales, wider ones, or be wider."""
        mine = self.kind
        if kind == mine:
            return self
        result = self
        if (mine.dtype, kind.dtype) == ("int4", "int8"):
            offset = 0 if mine.zero_point else 8
            result = replace(result, codes=lambda: self.codes().to(torch.int16).sub(offset).to(torch.int8))
        size = mine.group_size if mine.in_groups else self.shape[1]
        repeats = size // kind.group_size if kind.in_groups else 0
        result = replace(result, scale=lambda: _as_scale(self.scale(), self.shape[0], repeats, kind))
        if kind.zero_point:
            middle = float(formats.ZERO.get(kind.dtype, 0))
            zero = self.zero or (lambda: torch.full((self.shape[0], 1), middle, device=self.codes().device))
            groups = self.shape[1] // kind.group_size if kind.in_groups else 1
            result = replace(result, zero=lambda: _repeated(zero(), groups // zero().shape[1]))
        return replace(result, kind=kind)


def _as_scale(scale: Tensor, rows: int, repeats: int, kind: Codes) -> Tensor:
    if repeats == 0:
        return scale.float() if kind.granularity == "tensor" else scale.float().view(-1, 1).expand(rows, 1).contiguous()
    values = scale.view(-1, 1).expand(rows, 1) if scale.dim() < 2 else scale
    return _repeated(values if kind.scale_dtype in ("fp8", "e8m0") else values.to(SCALE_DTYPES[kind.scale_dtype]), repeats)


def _repeated(groups: Tensor, repeats: int) -> Tensor:
    return groups if repeats < 2 else groups.repeat_interleave(repeats, dim=1)


SCALE_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn, "e8m0": torch.uint8}
