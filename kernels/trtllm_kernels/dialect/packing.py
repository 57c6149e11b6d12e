"""Shapes that packed weights may have. Imports no torch, since lowerings ask."""

from __future__ import annotations

from trtllm_kernels.errors import KernelError

TILE = 64
"""Rows and columns of a tile of a packed weight."""
PACKED_INPUTS = {
    "int4": ("bf16", "fp16", "fp32", "fp8"),
    "int8": ("bf16", "fp16", "fp32"),
    "fp8": ("bf16", "fp16", "fp32"),
    "fp4": ("bf16", "fp16", "fp32"),
    "nf4": ("bf16", "fp16", "fp32"),
}
"""Format of a weight -> formats of its inputs with which it is stored in tiles."""


def is_packed(dtype: str, input_dtype: str) -> bool:
    """Whether a weight with such inputs is stored in tiles; otherwise it is a row-major matrix."""
    return input_dtype in PACKED_INPUTS.get(dtype, ())


def check_shape(rows: int, columns: int, dtype: str) -> None:
    """Raises `KernelError` for a weight [rows, columns] that tiles do not divide."""
    if rows % TILE or columns % TILE or rows <= 0 or columns <= 0:
        raise KernelError(f"a weight of {rows} x {columns} cannot be stored as {dtype}; rows and columns must be multiples of {TILE}")
