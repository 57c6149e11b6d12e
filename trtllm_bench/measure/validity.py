"""Whether a run's figures may be believed: what to warn of, what makes it void, and where it was steady.

Void means the run did not measure what was asked: the driver itself sent late, stood still for long enough to move a figure, or the target
fell silent. A void run keeps its figures in the record, marked, and is never counted as a result. Warnings are things a reader must know
but which may be the truth about the target: outputs of another length than asked (first, because short ones make every rate look better),
tokens that nobody counted, prompts of another length or answered from a cache, failures, a queue that grew to the end.

A standstill of the client is weighed by what it could have moved: the figures are computed again as if everything stamped at its end had
come at its beginning, and every request that fell due in it had been sent in time. In a closed loop it also takes its share of the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trtllm_bench.load import steady
from trtllm_bench.load.driver import TOO_LATE, LoadResult
from trtllm_bench.load.steady import Span
from trtllm_bench.load.target import Standstill
from trtllm_results.metrics import requests as metrics
from trtllm_results.metrics.registry import title
from trtllm_results.metrics.requests import FloatArray, RequestLog

MAX_LAG_MS = 25.0
"""p99 of the driver's lag beyond which a run is void: at the scale of the shortest TTFT that anyone promises."""
MAX_EMPTY_PLACES = 0.01
"""In a closed loop a late driver also needs to have left this share of the places empty: when a whole batch ends in one step, refilling it
takes the driver a moment that does not matter beside the seconds the batch runs."""
SHORT_OUTPUT = 0.99
"""Outputs below this share of what was asked for, or as far above it, are warned of."""
SHORT_STEADY = 0.25
MOVED, VOID_MOVED = 0.01, 0.05
"""Share by which a standstill may have moved a figure: from the first on it is warned of, from the second on it may void the run."""
LONG_STANDSTILL = 10.0
"""In units of the lag allowed: a standstill this long voids a run, and is told where it moves no more than a maximum; a shorter one, which
any busy machine has, is a warning where it moves more."""
BACKLOG_S = 0.02
"""What the client stamps within this time after a standstill may have come during it."""
CACHED = 0.01
TOLD_REASONS = 3


@dataclass(frozen=True)
class Verdict:
    """`void` is one sentence, empty when the figures may be used. `window`: the steady span, where there is one."""

    warnings: tuple[str, ...]
    void: str
    window: Span | None


def verdict(result: LoadResult, open_loop: bool, max_lag_ms: float = MAX_LAG_MS, shares_prefixes: bool = False) -> Verdict:
    """The verdict on a run. The steady span is found by slope in an open loop and by turnover in a closed one (`steady.py`)."""
    log = result.measured
    done = log.select(log.ok)
    window = (steady.by_slope(log) if open_loop else steady.by_turnover(log, result.concurrency)) if len(done) else None
    warnings = [
        *_uncounted(done),
        *_other_outputs(result),
        *_other_prompts(result),
        *_cached(done, shares_prefixes),
        *told_failures(result),
        *told_late(result),
    ]
    warnings += _in_bursts(done)
    if open_loop and np.isfinite(log.sent_s).any() and steady.grows(log, float(np.nanmax(log.sent_s))):
        warnings.append("requests in flight grew to the end of the arrivals: the target serves fewer than it was sent")
    if open_loop and len(log) >= 20 and (window is None or window.share < SHORT_STEADY):
        warnings.append("no steady state: requests in flight never stayed level for a quarter of the run")
    if not open_loop and result.concurrency and len(log) >= 20 and (window is None or window.share < SHORT_STEADY):
        share = 0.0 if window is None else window.share
        warnings.append(f"only {share:.0%} of the run was steady; give more requests to a concurrency of {result.concurrency}")
    if not open_loop and len(result.log) < result.concurrency:
        warnings.append(f"a concurrency of {result.concurrency} was never reached: there were {len(result.log)} requests; give more")
    standstill = _standstill(result, open_loop, max_lag_ms)
    void = _void(result, open_loop, max_lag_ms)
    if standstill is not None and standstill.voids and not void:
        void = standstill.sentence
    elif standstill is not None:
        warnings.append(standstill.sentence)
    return Verdict(tuple(warnings), void, window)


def _uncounted(done: RequestLog) -> list[str]:
    if not len(done) or bool(done.columns["counted"].all()):
        return []
    pieces = float(done.output_tokens.mean())
    return [
        f"nobody counted the output tokens: answers came in {pieces:.1f} pieces on average and the server gave no usage; "
        "token figures are left out (give --tokenizer to count them)"
    ]


def _cached(done: RequestLog, shares_prefixes: bool) -> list[str]:
    share = metrics.cached_share(done)
    if shares_prefixes or not share > CACHED:
        return []
    return [f"the target took {share:.0%} of the prompt tokens from its prefix cache: TTFT is that of prompts seen before"]


def _in_bursts(done: RequestLog) -> list[str]:
    at_once = metrics.came_at_once(done) & (done.columns["chunks"] > 0)
    if not at_once.any():
        return []
    return [
        f"{int(at_once.sum())} of {len(done)} requests got all their tokens at once: their TTFT is the time of the whole answer, "
        "and they have no TPOT and no speed"
    ]


def _other_outputs(result: LoadResult) -> list[str]:
    done = result.measured.select(result.measured.ok)
    if not len(done) or done.requested_tokens is None or not done.columns["counted"].all():
        return []
    length, asked = float(done.output_tokens.mean()), float(done.requested_tokens.mean())
    if SHORT_OUTPUT * asked <= length <= max(asked / SHORT_OUTPUT, asked + 1):  # one more may be the end itself
        return []
    how = "shorter" if length < asked else "longer"
    return [f"outputs were {how} than asked: {length:.1f} tokens per request instead of {asked:.1f}"]


def _other_prompts(result: LoadResult) -> list[str]:
    """A template, a cut at the target's longest prompt, or another tokenizer; one token more (of the beginning) is not a difference."""
    known = result.log.ok & ~result.log.columns["warmup"] & (result.sent_tokens > 0)
    if not known.any():
        return []
    counted, sent = float(result.log.input_tokens[known].mean()), float(result.sent_tokens[known].mean())
    if abs(counted - sent) <= max(1.0, (1 - SHORT_OUTPUT) * sent):
        return []
    how = "shorter" if counted < sent else "longer"
    return [f"prompts were {how} than asked: {counted:.1f} tokens by the target's count instead of {sent:.1f}"]


def told_failures(result: LoadResult) -> list[str]:
    """How many requests failed and why, as a sentence; none where none did. One that was given up as too late for its limits did not."""
    failed = [reason for _, reason in result.failures if reason != TOO_LATE]
    return [f"{len(failed)} of {len(result.log)} requests failed: {_commonest(failed)}"] if failed else []


def told_late(result: LoadResult) -> list[str]:
    """How many requests were given up as too late for their limits."""
    late = sum(reason == TOO_LATE for _, reason in result.failures)
    return [f"{late} of {len(result.log)} requests {TOO_LATE}"] if late else []


def commonest_failures(result: LoadResult) -> str:
    """The most frequent reasons, with their counts when there are several."""
    return _commonest([reason for _, reason in result.failures])


def _commonest(failed: Sequence[str]) -> str:
    reasons = Counter(failed).most_common()
    if len(reasons) == 1:
        return reasons[0][0]
    told = "; ".join(f"{reason} ({count})" for reason, count in reasons[:TOLD_REASONS])
    more = len(reasons) - TOLD_REASONS
    return told + (f"; {more} other reasons" if more > 1 else f"; {reasons[-1][0]} ({reasons[-1][1]})" if more == 1 else "")


def _lag_after_start(result: LoadResult) -> FloatArray:
    """Lag of the requests that were not due at the very start: a batch of thousands that are due at one instant must be sent one after
    another, which is not a fault of the driver (and counts as their latency)."""
    due = result.log.columns["due_s"]
    lag = (result.log.sent_s - due)[due > result.start_s]
    return np.asarray(lag[np.isfinite(lag)], dtype=np.float64)


def empty_places(result: LoadResult) -> float:
    """Closed loop: share of the time of all places that they stood empty because the driver had not yet sent the next request."""
    log = result.log
    lag = log.sent_s - log.columns["due_s"]
    held = log.columns["closed_s"] - log.columns["due_s"]
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


@dataclass(frozen=True)
class _Effect:
    sentence: str
    voids: bool


def _standstill(result: LoadResult, open_loop: bool, max_lag_ms: float) -> _Effect | None:
    """What the client's standstills could have done to the figures; None where that is nothing to speak of."""
    log = result.measured
    done = log.select(log.ok)
    if not len(done):
        return None
    begin, end = float(np.nanmin(log.intended_s)), float(np.nanmax(log.columns["closed_s"]))
    gaps = [(max(since, begin), min(until, end)) for since, until in _merged(result.standstills) if until > begin and since < end]
    gaps = [(since, until) for since, until in gaps if (until - since) * 1e3 > max_lag_ms]
    if not gaps:
        return None
    total, longest = sum(until - since for since, until in gaps), max(until - since for since, until in gaps)
    long = longest * 1e3 > LONG_STANDSTILL * max_lag_ms
    moved = _moved(done, gaps)
    if not open_loop:
        moved["output_tokens_per_s"] = total / max(end - begin - total, 1e-9)
    lasting = {name: share for name, share in moved.items() if not name.endswith("_max_ms")}
    name, share = max(lasting.items(), key=lambda one: one[1], default=("", 0.0))
    if share < MOVED and long:
        name, share = max(moved.items(), key=lambda one: one[1], default=("", 0.0))
    if share < MOVED:
        return None
    sentence = (
        f"the client stood still for {longest * 1e3:,.0f} ms ({total:.2f} s in all of {end - begin:.1f} s): {title(name)} may be off by "
        f"{share:.0%}; give this machine less to do beside"
    )
    return _Effect(sentence, long and lasting.get(name, 0.0) > VOID_MOVED)


def _merged(gaps: Sequence[Standstill]) -> list[Standstill]:
    """Standstills of either thread, overlapping ones as one."""
    merged: list[Standstill] = []
    for since, until in sorted(gaps):
        if merged and since <= merged[-1][1] + BACKLOG_S:
            merged[-1] = (merged[-1][0], max(until, merged[-1][1]))
        else:
            merged.append((since, until))
    return merged


def _moved(done: RequestLog, gaps: Sequence[Standstill]) -> dict[str, float]:
    """For each reported percentile, the share by which the standstills could have raised it, where that is above a millisecond."""
    reported, undisturbed = _percentiles(done), _percentiles(_undisturbed(done, gaps))
    return {
        name: abs(value - undisturbed[name]) / max(undisturbed[name], 1e-3)
        for name, value in reported.items()
        if name in undisturbed and abs(value - undisturbed[name]) > 1.0
    }


def _percentiles(log: RequestLog) -> dict[str, float]:
    figures = metrics.figures(log)
    return {
        name: value for name, value in figures.items() if name.startswith(("ttft_p", "tpot_p", "itl_p", "e2e_p", "ttft_max", "e2e_max"))
    }


def _undisturbed(done: RequestLog, gaps: Sequence[Standstill]) -> RequestLog:
    """The log as it might have been: what was stamped at the end of a standstill came at its beginning, and what fell due in it was sent,
    and so answered, that much earlier."""
    due, late = done.columns["due_s"], metrics.lag(done)
    in_gap = np.zeros(len(done), dtype=bool)
    for since, until in gaps:
        in_gap |= (due >= since) & (due <= until)
    early = np.where(in_gap & np.isfinite(late), np.clip(late, 0.0, None), 0.0)

    def as_it_came(times: FloatArray, shift: FloatArray) -> FloatArray:
        came = times.copy()
        for since, until in gaps:
            came = np.where((times >= since) & (times <= until + BACKLOG_S), np.minimum(came, since), came)
        return np.asarray(np.where(shift > 0, times - shift, came), dtype=np.float64)

    first = np.maximum(as_it_came(done.first_token_s, early), done.intended_s)
    tokens = done.token_times_s
    if tokens is not None and done.token_offsets is not None:
        tokens = as_it_came(tokens, np.repeat(early, np.diff(done.token_offsets)))
    return replace(done, first_token_s=first, end_s=np.maximum(as_it_came(done.end_s, early), first), token_times_s=tokens)
