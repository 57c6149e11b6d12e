"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): columns are rounded one by one, and each one's error is made up for in those to come.

What is minimised is the error of the product's output over the calibration text, sum over rows of e G e^T with e the error of a row of the
weight and G [K, K] the mean of x x^T over the inputs x. The best correction of the remaining columns after one was rounded follows from the
inverse of G, whose Cholesky factor has all of it that is needed, whatever the rows are.

Act-order takes columns in falling order of G's diagonal, so that those that matter most are rounded while most others are left to make up
for it. `static` keeps every column in the group it is stored in, with scales fitted beforehand, so nothing is permuted at run time.
`group` makes groups of neighbours in that order: columns need an index (`weight_g_idx`), and readers a permutation of the input.

Damping is what keeps columns from making up for errors along directions that a short text does not know: with 2,048 tokens of it, 0.01 of
the mean costs a small model twice the perplexity that rounding to nearest does. So it is tried on a text that was not calibrated on
(`best_damping`): the error that is made up for on one half is measured on the other.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from trtllm_engines.calibration.grid import Grid, Rounded, Scales
from trtllm_engines.errors import EngineError

ActOrder = Literal["none", "static", "group"]
ACT_ORDERS: tuple[str, ...] = get_args(ActOrder)
DAMPING = 0.01
DAMPINGS = (DAMPING, 0.1, 1.0, 10.0)
"""What `best_damping` tries; with the last, most columns are rounded to nearest."""
_NEARLY = 1.1
"""An error that is no more than this times the least is as good."""
_ROWS = 128
"""Most rows of a weight that dampings are tried on, evenly spaced."""
_BLOCK = 128
"""Columns after which the rest of the matrix is brought up to date, in one product."""


def gptq(weight: Tensor, gram: Tensor, grid: Grid, *, act_order: ActOrder = "static", damping: float = DAMPING) -> Rounded:
    """`weight` fp32 [N, K] on `grid`, given `gram` fp32 [K, K]. `damping`: added to the diagonal, as a share of its mean.

    Raises `EngineError` for inputs so dependent that no damping helps.
    """
    columns = weight.shape[1]
    size = grid.size(columns)
    weight, unused = weight.clone(), gram.diagonal() == 0
    weight[:, unused] = 0
    order = torch.arange(columns, device=weight.device)
    if act_order != "none":
        order = gram.diagonal().argsort(descending=True, stable=True)
    beforehand = grid.fit(weight) if act_order == "static" or not grid.group else None
    factor = _factor(gram.index_select(0, order).index_select(1, order), unused[order], damping)
    rest = weight[:, order]
    codes = torch.empty_like(rest)
    fitted: list[Scales] = []
    block = size * max(1, _BLOCK // size) if grid.group else _BLOCK
    natural = order if act_order == "static" else torch.arange(columns, device=weight.device)
    for begin in range(0, columns, block):
        end = min(begin + block, columns)
        errors = torch.empty_like(rest[:, begin:end])
        for column in range(begin, end):
            if beforehand is None and column % size == 0:
                fitted.append(grid.fit(rest[:, column : column + size]))
            scales, group = (fitted[-1], 0) if beforehand is None else (beforehand, int(natural[column]) // size)
            scale, zero = scales.scale[:, group], None if scales.zero is None else scales.zero[:, group]
            code = grid.codes(rest[:, column], scale, zero)
            codes[:, column] = code
            value = scale * (code if zero is None else code - zero)
            error = (rest[:, column] - value) / factor[column, column]
            rest[:, column:end] -= error[:, None] * factor[column, column:end]
            errors[:, column - begin] = error
        rest[:, end:] -= errors @ factor[begin:end, end:]
    if beforehand is None:
        zeros = [scales.zero for scales in fitted if scales.zero is not None]
        beforehand = Scales(torch.cat([scales.scale for scales in fitted], 1), torch.cat(zeros, 1) if zeros else None)
    back = order.argsort()
    group_of = back // size if act_order == "group" and grid.group else None
    return Rounded(codes[:, back].to(torch.int8), beforehand, group_of)


def best_damping(weight: Tensor, gram: Tensor, half: Tensor, share: float, grid: Grid, act_order: ActOrder = "static") -> float:
    """The largest damping of `DAMPINGS` with which `weight` [N, K], rounded for the inputs of one half of the text, has nearly the least
    error on those of the other: less is trusted where it hardly helps, since other texts differ more. `gram` is of the whole text, `half`
    of the half that has `share` of its tokens."""
    rows = weight[:: -(-weight.shape[0] // _ROWS)]

    def loss(damping: float) -> float:
        error = gptq(rows, half, grid, act_order=act_order, damping=damping).values() - rows
        return float(((error @ gram - share * (error @ half)) * error).sum(dtype=torch.float64))

    losses = {damping: loss(damping) for damping in DAMPINGS}
    return max(damping for damping, lost in losses.items() if lost <= _NEARLY * min(losses.values()))


def _factor(gram: Tensor, unused: Tensor, damping: float) -> Tensor:
    """Upper Cholesky factor of the inverse of `gram`, damped in place. (Of a 70-billion-parameter Llama's `down_proj` it is 3.1 GiB, so no
    copy is kept longer than it is needed.)"""
    diagonal = gram.diagonal()
    diagonal[unused] = 1
    mean, added = float(diagonal.mean()), 0.0
    for _ in range(6):
        diagonal.add_(damping * mean - added)
        added, damping = damping * mean, 10 * max(damping, 1e-4)
        lower, failed = torch.linalg.cholesky_ex(gram)
        if not int(failed):
            break
    else:
        raise EngineError("GPTQ: the inputs of a product are not finite, or depend on one another; calibrate on more text")
    del gram, diagonal
    inverse = torch.cholesky_inverse(lower)
    del lower
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper
