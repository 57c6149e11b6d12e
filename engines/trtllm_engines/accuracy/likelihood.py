"""What an engine makes of a text, and how far that is from what another makes of it: perplexity, KL divergence, agreement on the likeliest
token. Sums are kept by window, the unit that intervals are drawn over: tokens of one window depend on one another.

    perplexity        exp of the mean of -log q(t), over the scored tokens t
    KL divergence     mean of sum over v of p(v) log(p(v) / q(v)), in nats per token, p the reference's distribution and q this engine's
    top-1 agreement   share of scored tokens at which both have the same likeliest token

Of the reference the `KEPT` likeliest tokens of each place are kept, 4 KiB instead of a vocabulary; all others count as one event, so the
KL divergence is that of the coarser distributions. It is never above the whole one, and short of it by what happens within the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trtllm_engines.accuracy.teacher import Teacher
from trtllm_engines.calibration.probe import Progress
from trtllm_engines.errors import EngineError
from trtllm_engines.llm import LLM
from trtllm_engines.runtime.batch import IntArray

KEPT = 512
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reference:
    """What the reference expects: by (window, position) a row of `ids` and `logprobs` [tokens, kept], likeliest first."""

    rows: dict[tuple[int, int], int]
    ids: IntArray
    logprobs: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Likelihood:
    """Sums over the scored tokens of each window: `loss` of -log q in nats; `divergence` in nats and `agreed` against a reference."""

    tokens: IntArray
    loss: FloatArray
    divergence: FloatArray | None = None
    agreed: FloatArray | None = None


def likelihood(
    llm: LLM, windows: Sequence[IntArray], reference: Reference | None = None, *, keep: bool = False, progress: Progress | None = None
) -> tuple[Likelihood, Reference | None]:
    """Of `windows` under an idle engine, against `reference` where there is one; with `keep`, what a reference for others has.

    Raises `EngineError` for windows that do not fit, and logits that are not numbers.
    """
    tokens, loss = np.zeros(len(windows), np.int32), np.zeros(len(windows))
    divergence, agreed = np.zeros(len(windows)), np.zeros(len(windows))
    places: list[tuple[int, int]] = []
    kept: list[tuple[Tensor, Tensor]] = []
    total, done = sum(len(ids) - max(1, len(ids) // 2) for ids in windows), 0
    for step in Teacher(llm).run(windows):
        logprobs = torch.log_softmax(step.logits.float(), dim=-1)
        targets = torch.as_tensor(step.targets, dtype=torch.int64, device=logprobs.device)
        nll = -logprobs.gather(1, targets[:, None])[:, 0].double().cpu().numpy()
        if not np.isfinite(nll).all():
            raise EngineError("the logits of a step are NaN or infinite; the weights are damaged, or need a wider precision")
        np.add.at(tokens, step.windows, 1)
        np.add.at(loss, step.windows, nll)
        if reference is not None:
            rows = [reference.rows[place] for place in zip(step.windows.tolist(), step.positions.tolist(), strict=True)]
            ids = torch.as_tensor(reference.ids[rows], dtype=torch.int64, device=logprobs.device)
            expected = torch.as_tensor(reference.logprobs[rows], device=logprobs.device)
            np.add.at(divergence, step.windows, _divergence(expected, logprobs.gather(1, ids)).cpu().numpy())
            np.add.at(agreed, step.windows, (logprobs.argmax(1) == ids[:, 0]).double().cpu().numpy())
        if keep:
            top = logprobs.topk(min(KEPT, logprobs.shape[1]), dim=-1)
            kept.append((top.indices.int().cpu(), top.values.cpu()))
            places += zip(step.windows.tolist(), step.positions.tolist(), strict=True)
        done += len(step.targets)
        if progress is not None:
            progress("accuracy", done, total)
    made = None
    if keep:
        rows_of = {place: row for row, place in enumerate(places)}
        made = Reference(rows_of, torch.cat([ids for ids, _ in kept]).numpy(), torch.cat([values for _, values in kept]).numpy())
    return Likelihood(tokens, loss, *(() if reference is None else (divergence, agreed))), made


def _divergence(expected: Tensor, actual: Tensor) -> Tensor:
    """KL divergence of each row in nats, fp64 [n], given log-probabilities [n, kept] of the same tokens; the rest is one event."""
    expected, actual = expected.double(), actual.double()
    p, q = expected.exp(), actual.exp()
    inside = (p * (expected - actual)).sum(1)
    p_rest, q_rest = (1 - p.sum(1)).clamp_min(0), (1 - q.sum(1)).clamp_min(1e-12)
    outside = torch.where(p_rest > 1e-12, p_rest * (p_rest.clamp_min(1e-12) / q_rest).log(), 0.0)
    return inside + outside
