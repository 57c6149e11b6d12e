"""Factors and scales found by trial: AWQ's, SmoothQuant's, and how far a group's scale should shrink. To change nothing is always among
the candidates, so a search never does worse than rounding to nearest, by its own measure.

AWQ (Lin et al. 2023, arXiv 2306.00978): s = a^alpha, where a is the mean magnitude of an input's column; with the weight's share as well,
s = a^alpha / w^(1 - alpha). Then Q(W s) / s takes the place of W. The measure is the error of the outputs over the whole text,
sum e G e^T (see `gptq`); of wide inputs, on a sample of its tokens, which costs less.

SmoothQuant (Xiao et al. 2022, arXiv 2211.10438): s = a^alpha / w^(1 - alpha) with largest magnitudes, for products whose inputs are rounded
as well, token by token. The measure is the error of the outputs on tokens of the text, with both sides rounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trtllm_engines.calibration.folds import Fold
from trtllm_engines.calibration.grid import Grid, Scales
from trtllm_kernels.references.quantize import INT8_MAX

_STEPS = 20
_ROWS = 1024
"""Most rows of a weight that a search tries its candidates on, evenly spaced."""
_TOKENS = 512
"""Most tokens that SmoothQuant's candidates are tried on."""
_SHRINKS = tuple(1 - 0.05 * step for step in range(11))


@dataclass(frozen=True)
class Statistics:
    """Of an input [T, K] over the text. `gram` is the mean of x x^T, fp32 [K, K]; `mean` and `largest` of magnitudes, fp32 [K]; `sample`
    some tokens, fp32 [S, K]. `half`: where it is asked for, the mean of x x^T over half of the tokens, `share` of them."""

    gram: Tensor
    mean: Tensor
    largest: Tensor
    sample: Tensor
    half: Tensor | None = None
    share: float = 0.0

    def divided(self, factors: Tensor) -> Statistics:
        """Of the input divided by `factors` [K]."""
        gram = self.gram / factors[:, None] / factors
        return Statistics(gram, self.mean / factors, self.largest / factors, self.sample / factors)


@dataclass(frozen=True)
class Found:
    """Factors [K] (None: none are better), the alpha they come from, and the measure of these and of no factors."""

    factors: Tensor | None
    alpha: float
    loss: float
    loss_before: float


def awq(weights: Sequence[Tensor], inputs: Statistics, grid: Grid, fold: Fold) -> Found:
    """Factors for the weights [N, K] that read one input."""
    rows = [_some_rows(weight) for weight in weights]
    relative = torch.cat([_relative(weight, grid) for weight in weights]).mean(0)

    def loss(factors: Tensor | None) -> float:
        rounded = [grid.rounded(row) if factors is None else grid.rounded(row * factors) / factors for row in rows]
        return math.fsum(_output_loss(row, one, inputs) for row, one in zip(rows, rounded, strict=True))

    return _best(loss, _awq_factors(inputs.mean, relative, fold))


def smooth(weights: Sequence[Tensor], inputs: Statistics, grid: Grid, fold: Fold) -> Found:
    """Factors for the weights [N, K] that read one input, which is rounded to int8 token by token."""
    sample = inputs.sample[:: -(-len(inputs.sample) // _TOKENS)]
    rows = torch.cat([_some_rows(weight) for weight in weights])
    largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    wide = sample @ rows.T

    def loss(factors: Tensor | None) -> float:
        x, weight = (sample, rows) if factors is None else (sample / factors, rows * factors)
        return float((_tokens(x) @ grid.rounded(weight).T - wide).square().sum(dtype=torch.float64))

    return _best(loss, _smooth_factors(inputs.largest, largest, fold))


def clipped(weight: Tensor, gram: Tensor, grid: Grid) -> Scales:
    """Scales of `weight` [N, K], each group's extremes shrunk by as much as makes its error e G e^T least, G the group's own block.

    Those of a symmetric grid are tried half a step wider as well, where nothing is cut off."""
    size = grid.size(weight.shape[1])
    blocks = torch.stack([gram[at : at + size, at : at + size] for at in range(0, len(gram), size)])
    best = torch.full((weight.shape[0], len(blocks)), float("inf"), device=weight.device)
    shrink = torch.ones_like(best)
    wider = ((grid.highest + 0.5) / grid.highest,) if grid.symmetric else ()
    for candidate in (*_SHRINKS, *wider):
        error = (grid.nearest(weight, grid.fit(weight, candidate)).values() - weight).view(*best.shape, size)
        loss = (torch.einsum("ngi,gij->ngj", error, blocks) * error).sum(2)
        better = loss < best
        best, shrink = torch.where(better, loss, best), torch.where(better, candidate, shrink)
    return grid.fit(weight, shrink)


def output_error(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    """|(W - Q) x| / |W x| over the text, both in the root of the mean square."""
    return math.sqrt(_loss(weight, rounded, gram) / max(_loss(weight, torch.zeros_like(weight), gram), 1e-30))


def _output_loss(weight: Tensor, rounded: Tensor, inputs: Statistics) -> float:
    """Mean squared error of the outputs: over the whole text, or over the sample where that has fewer tokens than inputs have columns."""
    if weight.shape[1] <= len(inputs.sample):
        return _loss(weight, rounded, inputs.gram)
    return float((inputs.sample @ (rounded - weight).T).square().sum(dtype=torch.float64)) / len(inputs.sample)


def _loss(weight: Tensor, rounded: Tensor, gram: Tensor) -> float:
    error = rounded - weight
    return float(((error @ gram) * error).sum(dtype=torch.float64))


def _best(loss: Callable[[Tensor | None], float], candidates: Iterator[tuple[float, Tensor]]) -> Found:
    before = best = loss(None)
    chosen: tuple[float, Tensor | None] = (0.0, None)
    for alpha, factors in candidates:
        error = loss(factors)
        if error < best:
            best, chosen = error, (alpha, factors)
    return Found(chosen[1], chosen[0], best, before)


def _awq_factors(mean: Tensor, relative: Tensor, fold: Fold) -> Iterator[tuple[float, Tensor]]:
    mean, relative = fold.shared(mean).clamp_min(1e-6), fold.shared(relative).clamp_min(1e-6)
    for step in range(1, _STEPS + 1):
        alpha = step / _STEPS
        for factors in (mean**alpha, mean**alpha / relative ** (1 - alpha)):
            yield alpha, fold.spread(_centred(factors))


def _smooth_factors(largest: Tensor, weight: Tensor, fold: Fold) -> Iterator[tuple[float, Tensor]]:
    largest, weight = fold.shared(largest).clamp_min(1e-6), fold.shared(weight).clamp_min(1e-6)
    for step in range(1, _STEPS):
        alpha = step / _STEPS
        yield alpha, fold.spread(_centred(largest**alpha / weight ** (1 - alpha)))


def _centred(factors: Tensor) -> Tensor:
    """With the smallest and the largest equally far from 1, so that what is divided by them keeps its size; and none beyond 2^10."""
    return (factors / (factors.amax() * factors.amin()).sqrt()).clamp(2.0**-10, 2.0**10)


def _relative(weight: Tensor, grid: Grid) -> Tensor:
    """Magnitudes as shares of their group's largest, [N, K]."""
    groups = weight.abs().view(len(weight), -1, grid.size(weight.shape[1]))
    return (groups / groups.amax(2, keepdim=True).clamp_min(1e-12)).view(weight.shape)


def _tokens(x: Tensor) -> Tensor:
    """Rounded to int8 with one scale per token."""
    scale = (x.abs().amax(1, keepdim=True) / INT8_MAX).clamp_min(1e-12)
    return (x / scale).round().clamp(-INT8_MAX, INT8_MAX) * scale


def _some_rows(weight: Tensor) -> Tensor:
    return weight[:: -(-weight.shape[0] // _ROWS)]
