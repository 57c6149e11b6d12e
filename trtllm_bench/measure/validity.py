"""Whether a run's figures may be believed: what to warn of, what makes it void, and where it was steady.

Void means the run did not measure what was asked: the driver itself sent late, or the target fell silent. A void run keeps its figures in
the record, marked, and is never counted as a result. Warnings are things a reader must know but which may be the truth about the target:
outputs shorter than asked (first, because it makes every rate look better), prompts of another length, failures, a queue that grew to
the end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from trtllm_bench.load import steady
from trtllm_bench.load.driver import LoadResult
from trtllm_bench.load.steady import Span
from trtllm_results.metrics.requests import FloatArray

MAX_LAG_MS = 25.0
"""p99 of the driver's lag beyond which a run is void: at the scale of the shortest TTFT that anyone promises."""
MAX_EMPTY_PLACES = 0.01
"""In a closed loop a late driver also needs to have left this share of the places empty: when a whole batch ends in one step, refilling it
takes the driver a moment that does not matter beside the seconds the batch runs."""
SHORT_OUTPUT = 0.99
"""Outputs below this share of what was asked for are warned of."""
SHORT_STEADY = 0.25


@dataclass(frozen=True)
class Verdict:
    """`void` is one sentence, empty when the figures may be used. `window`: the steady span, where there is one."""

    warnings: tuple[str, ...]
    void: str
    window: Span | None


def verdict(result: LoadResult, open_loop: bool, max_lag_ms: float = MAX_LAG_MS) -> Verdict:
    """The verdict on a run. The steady span is found by slope in an open loop and by concurrency in a closed one (`steady.py`)."""
    log = result.measured
    done = log.select(log.ok)
    window = (steady.by_slope(log) if open_loop else steady.by_concurrency(log)) if len(done) else None
    warnings = [*_shortfall(result), *_other_prompts(result), *_failures(result)]
    if open_loop and np.isfinite(log.sent_s).any() and steady.grows(log, float(np.nanmax(log.sent_s))):
        warnings.append("requests in flight grew to the end of the arrivals: the target serves fewer than it was sent")
    if open_loop and len(log) >= 20 and (window is None or window.share < SHORT_STEADY):
        warnings.append("no steady state: requests in flight never stayed level for a quarter of the run")
    return Verdict(tuple(warnings), _void(result, open_loop, max_lag_ms), window)


def _shortfall(result: LoadResult) -> list[str]:
    done = result.measured.select(result.measured.ok)
    if not len(done) or done.requested_tokens is None:
        return []
    length, asked = float(done.output_tokens.mean()), float(done.requested_tokens.mean())
    if length >= SHORT_OUTPUT * asked:
        return []
    return [f"outputs were shorter than asked: {length:.1f} tokens a request instead of {asked:.1f}"]


def _other_prompts(result: LoadResult) -> list[str]:
    """A template, a cut at the target's longest prompt, or another tokenizer; one token more (of the beginning) is no difference."""
    known = result.log.ok & ~result.log.columns["warmup"] & (result.sent_tokens > 0)
    if not known.any():
        return []
    counted, sent = float(result.log.input_tokens[known].mean()), float(result.sent_tokens[known].mean())
    if abs(counted - sent) <= max(1.0, (1 - SHORT_OUTPUT) * sent):
        return []
    how = "shorter" if counted < sent else "longer"
    return [f"prompts were {how} than asked: {counted:.1f} tokens by the target's count instead of {sent:.1f}"]


def _failures(result: LoadResult) -> list[str]:
    if not result.failures:
        return []
    return [f"{len(result.failures)} of {len(result.log)} requests failed: {commonest_failure(result)}"]


def commonest_failure(result: LoadResult) -> str:
    """The most frequent reason, with its count when there are others."""
    reason, count = Counter(reason for _, reason in result.failures).most_common(1)[0]
    return reason if count == len(result.failures) else f"{reason} ({count} of {len(result.failures)} failures)"


def _lag_after_start(result: LoadResult) -> FloatArray:
    """Lag of the requests that were not due at the very start: a batch of thousands that are due at one instant must be sent one after
    another, which is no fault of the driver (and counts as their latency)."""
    due = result.log.columns["due_s"]
    lag = (result.log.sent_s - due)[due > result.start_s]
    return np.asarray(lag[np.isfinite(lag)], dtype=np.float64)


def empty_places(result: LoadResult) -> float:
    """Closed loop: share of the time of all places that they stood empty because the driver had not yet sent the next request."""
    log = result.log
    lag = log.sent_s - log.columns["due_s"]
    held = log.end_s - log.columns["due_s"]
    known = np.isfinite(lag) & np.isfinite(held)
    return float(lag[known].sum() / held[known].sum()) if held[known].sum() > 0 else 0.0


def _void(result: LoadResult, open_loop: bool, max_lag_ms: float) -> str:
    if result.stalled:
        return "the target fell silent and the run was given up"
    lag_ms = _lag_after_start(result) * 1e3
    late = float(np.percentile(lag_ms, 99)) if len(lag_ms) else 0.0
    if late > max_lag_ms and (open_loop or empty_places(result) > MAX_EMPTY_PLACES):
        return (
            f"the driver sent {late:.1f} ms late (p99) where {max_lag_ms:g} ms is the limit: this machine cannot send this load; "
            "give it more CPU cores or ask for less"
        )
    return ""
