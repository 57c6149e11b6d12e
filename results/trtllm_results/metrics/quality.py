"""Figures of accuracy from sums over the windows of a text, with intervals over the windows.

The change of perplexity is paired: both precisions score the same tokens, so what makes one window harder than another drops out, and a
difference of a tenth of a percent can be seen where perplexity itself is known to a few percent.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trtllm_results.stats import Interval, block_interval, share_interval

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class WindowSums:
    """Sums over the scored tokens of each window, [windows]: `loss` of -log q in nats; against a reference, `divergence` in nats, `agreed`
    in tokens, and the reference's own loss."""

    tokens: FloatArray
    loss: FloatArray
    divergence: FloatArray | None = None
    agreed: FloatArray | None = None
    reference_loss: FloatArray | None = None


def text_figures(sums: WindowSums) -> dict[str, float]:
    """Figures of a text by name; those against a reference only where there is one."""
    figures = _figures("perplexity", block_interval(sums.loss, sums.tokens), _exp)
    figures["accuracy_tokens"] = float(sums.tokens.sum())
    if sums.reference_loss is not None:
        figures |= _figures("perplexity_change", block_interval(sums.loss - sums.reference_loss, sums.tokens), lambda mean: _exp(mean) - 1)
    if sums.divergence is not None:
        figures |= _figures("kl_divergence", block_interval(np.maximum(sums.divergence, 0.0), sums.tokens), lambda mean: max(mean, 0.0))
    if sums.agreed is not None:
        figures |= _figures("top1_agreement", block_interval(sums.agreed, sums.tokens), lambda mean: min(max(mean, 0.0), 1.0))
    return figures


def task_figures(right: int, count: int) -> dict[str, float]:
    """Figures of a task with `count` questions of which `right` were answered exactly."""
    return _figures("task_accuracy", share_interval(right, count))


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _figures(name: str, interval: Interval, scale: Callable[[float], float] = float) -> dict[str, float]:
    """The estimate and its ends, without those that are not finite numbers."""
    ends = {name: interval.estimate, f"{name}_low": interval.low, f"{name}_high": interval.high}
    scaled = {key: scale(value) for key, value in ends.items()}
    return {key: value for key, value in scaled.items() if math.isfinite(value)}
