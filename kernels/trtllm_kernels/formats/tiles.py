"""The order of a packed weight's codes in memory: that in which the tensor cores' registers hold them.

A weight is cut into tiles of 64 rows x 64 columns; tile (i, j) comes `i * K / 64 + j`-th, so that any step along K is one contiguous copy.
The rows of a tile are those of a warpgroup's A operand (PTX ISA, wgmma, fragments of matrix A): warp w of four has rows 16 w to 16 w + 15,
and its lane 4 g + q has rows g and g + 8 of them. Inside a tile the bytes of a thread lie together, so one wide load gives the codes of
several wgmma, and no shuffle follows.

An `Order` says which axes of (row, column) come in which order, and so packing and unpacking are one permutation and its inverse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trtllm_kernels.dialect.packing import TILE
from trtllm_kernels.errors import KernelError

_ROW_AXES = {"warp": 4, "half": 2, "group": 8}
"""A tile's row is 16 warp + 8 half + group."""


@dataclass(frozen=True)
class Order:
    """`columns`: sizes of the axes that a tile's column has, the slowest first. `axes`: all axes of a tile as memory has them."""

    columns: Mapping[str, int]
    axes: tuple[str, ...]

    def pack(self, codes: torch.Tensor) -> torch.Tensor:
        """[N, K] -> the same elements as memory has them, one dimension."""
        return codes.reshape(self._split(codes.shape)).permute(self._permutation()).reshape(-1)

    def unpack(self, ordered: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
        """The inverse of `pack`."""
        split, permutation = self._split(torch.Size((rows, columns))), self._permutation()
        inverse = [permutation.index(axis) for axis in range(len(permutation))]
        return ordered.reshape([split[axis] for axis in permutation]).permute(inverse).reshape(rows, columns)

    def _names(self) -> tuple[str, ...]:
        return ("tile row", *_ROW_AXES, "tile column", *self.columns)

    def _split(self, shape: torch.Size) -> tuple[int, ...]:
        if math.prod(_ROW_AXES.values()) != TILE or math.prod(self.columns.values()) != TILE:
            raise KernelError(f"a tile's axes {dict(self.columns)} must hold {TILE} columns")
        return (shape[0] // TILE, *_ROW_AXES.values(), shape[1] // TILE, *self.columns.values())

    def _permutation(self) -> list[int]:
        names = self._names()
        return [names.index(axis) for axis in ("tile row", "tile column", *self.axes)]


THREAD = ("warp", "group", "pair")
"""Axes of the thread that has an element: thread 32 warp + 4 group + pair."""
WIDE_COLUMNS = {"step": 4, "eight": 2, "pair": 4, "element": 2}
"""Of operands of 2 bytes: a column is 16 step + 8 eight + 2 pair + element. The registers of a step, of two elements each, are in the order
(half, eight) = (0, 0), (1, 0), (0, 1), (1, 1)."""
BYTE_COLUMNS = {"step": 2, "sixteen": 2, "pair": 4, "element": 4}
"""Of operands of 1 byte: a column is 32 step + 16 sixteen + 4 pair + element. A register has four elements."""
BYTES = Order({"steps": 2, **WIDE_COLUMNS, "step": 2}, ("steps", *THREAD, "step", "eight", "element", "half"))
"""Of codes of a byte under wide inputs: a tile is 4 KB and a thread has 16 bytes in each half of it, a word for each 8 of four steps' 16
columns. A word has the elements of row g in bytes 0 and 2 and those of row g + 8 in bytes 1 and 3, where the two registers' halves are."""
