"""Where a factor on the columns of a product's input is taken exactly: in a norm's weight, or in the rows of the product before.

AWQ and SmoothQuant multiply a weight's columns by factors and divide the input's by them. The division costs nothing where the input is

    a norm's output: its weight (and bias) is divided;
    silu(gate) * up: the rows of `up_proj` are;
    attention's output: the rows of `v_proj` are, with one factor for all query heads that share a value head.

Elsewhere (after GELU, or where something else reads the value as well) it would take an op at run time, for which compressed-tensors'
layout has no place. Such a product keeps its weight as it is.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor
from torch.fx import Node

from trtllm_engines.compiler.graph import op_name


@dataclass(frozen=True)
class Fold:
    """`divided` names tensors whose rows (or elements) are divided by the factors. A factor serves `copies` blocks of `block` columns."""

    divided: tuple[str, ...]
    block: int
    copies: int = 1

    def shared(self, statistic: Tensor) -> Tensor:
        """`statistic` [K] of the input's columns, as its largest over the columns that share a factor, [K / copies]."""
        return statistic.view(-1, self.copies, self.block).amax(1).flatten()

    def rows(self, factors: Tensor) -> Tensor:
        """Factors [K] as one for each of what is divided, [K / copies]."""
        return factors.view(-1, self.copies, self.block)[:, 0].flatten()

    def spread(self, factors: Tensor) -> Tensor:
        """Factors [K / copies] as one for each column, [K]."""
        return factors.view(-1, 1, self.block).expand(-1, self.copies, -1).flatten()


def fold_of(value: Node, columns: int, products: Collection[Node]) -> Fold | None:
    """Where factors on `value` [T, columns] can go; `products` are those whose weights may be scaled. None where they cannot."""
    if any(user not in products or user.args[0] is not value for user in value.users):
        return None
    op = op_name(value)
    if op == "rms_norm":
        return Fold((_target(value.args[1]),), columns)
    if op == "layer_norm":
        return Fold((_target(value.args[1]), _target(value.args[2])), columns)
    if op == "silu_mul":
        return _rows(value.args[1], columns, 1)
    if op == "attention":
        heads, kv_heads = value.args[4], value.args[5]
        assert isinstance(heads, int)
        assert isinstance(kv_heads, int)
        return _rows(value.args[2], columns // heads, heads // kv_heads)
    return None


def _rows(product: object, block: int, copies: int) -> Fold | None:
    if not isinstance(product, Node) or op_name(product) != "linear" or len(product.users) > 1:
        return None
    weight, bias = product.args[1:3]
    return Fold((_target(weight), *([] if bias is None else [_target(bias)])), block, copies)


def _target(node: object) -> str:
    assert isinstance(node, Node)
    return str(node.target)
