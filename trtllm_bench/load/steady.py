"""When a run was steady: stated rules, so that a reader can see which was used.

*Turnover*, for a closed loop of a known bound c: from the end of its c-th request, when every place has been handed on, to its last
turnover, the c-th end from the last, when the last request took its place. All places are taken throughout, and the span holds whole waves
where requests are of equal length: exactly n - 2c requests end in it, however close together.

*Concurrency*: the longest span in which the number of requests in flight stays at or above `ratio` of its peak (SGLang's rule). Right for
a batch; under Poisson load the count fluctuates and the span is short, which is an honest answer.

*Slope*: the run is cut into equal bins; the steady span is the longest run of bins over which a least-squares line through the number in
flight changes by no more than `tolerance` of its mean. Right for open loops; a queue that grows to the end of the run has no such span.

All rules look at requests in flight and not at throughput, because a start with prefills only has full throughput but no steady mix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from trtllm_results.metrics.requests import FloatArray, RequestLog

CONCURRENCY_RATIO = 0.9
SLOPE_BINS, SLOPE_TOLERANCE, SLOPE_MIN_SHARE = 40, 0.2, 0.25
Rule = Literal["concurrency", "slope"]


@dataclass(frozen=True)
class Span:
    """Seconds on the log's clock; `share` of the whole run."""

    start_s: float
    end_s: float
    share: float
    rule: Rule


def in_flight(log: RequestLog) -> tuple[FloatArray, FloatArray]:
    """(times, requests in flight from that time on): a step function over requests that were sent and ended."""
    ends = closed(log)
    known = np.isfinite(log.sent_s) & np.isfinite(ends)
    times = np.concatenate([log.sent_s[known], ends[known]])
    change = np.concatenate([np.ones(int(known.sum())), -np.ones(int(known.sum()))])
    order = np.lexsort((change, times))
    return times[order], np.cumsum(change[order])


def closed(log: RequestLog) -> FloatArray:
    """[n] when each request's place was free again: the end of its answer, where the log tells it from the last token."""
    return np.asarray(log.columns.get("closed_s", log.end_s), dtype=np.float64)


def by_turnover(log: RequestLog, concurrency: int) -> Span | None:
    """From the c-th end to the c-th end from the last; by concurrency where there is no bound, or there are fewer than three waves."""
    ends = np.sort(closed(log)[np.isfinite(log.sent_s) & np.isfinite(closed(log))])
    if not concurrency or len(ends) < 3 * concurrency:
        return by_concurrency(log)
    return _span(log, float(ends[concurrency - 1]), float(ends[-concurrency - 1]), "concurrency")


def by_concurrency(log: RequestLog) -> Span | None:
    """Longest span with at least `CONCURRENCY_RATIO` of the peak in flight. A place refilled within the same instant does not break it."""
    times, count = in_flight(log)
    if len(times) == 0:
        return None
    last = np.concatenate([times[1:] > times[:-1], [True]])
    times, count = times[last], count[last]
    high = count >= CONCURRENCY_RATIO * count.max()
    edges = np.flatnonzero(np.diff(np.concatenate([[False], high, [False]]).astype(np.int8)))
    starts, ends = times[edges[::2]], times[np.minimum(edges[1::2], len(times) - 1)]
    longest = int(np.argmax(ends - starts))
    return _span(log, float(starts[longest]), float(ends[longest]), "concurrency")


def by_slope(log: RequestLog) -> Span | None:
    """The longest run of bins (at least a quarter of the run) whose fitted line is flat to `SLOPE_TOLERANCE`; None when there is none."""
    times, count = in_flight(log)
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    edges = np.linspace(times[0], times[-1], SLOPE_BINS + 1)
    level = _bin_means(times, count, edges)
    for length in range(SLOPE_BINS, max(3, int(SLOPE_BINS * SLOPE_MIN_SHARE)) - 1, -1):
        drift, first = min((_drift(level[first : first + length]), first) for first in range(SLOPE_BINS - length + 1))
        if drift <= SLOPE_TOLERANCE:
            return _span(log, float(edges[first]), float(edges[first + length]), "slope")
    return None


def _drift(level: FloatArray) -> float:
    """Change along the fitted line, or of an outer tenth's mean from the whole's if that is more, as a share of the mean level."""
    mean = float(level.mean())
    if mean <= 0:
        return float("inf")
    x = np.arange(len(level)) - (len(level) - 1) / 2
    fitted = abs(float((x * level).sum() / (x * x).sum())) * len(level)
    tenth = max(1, len(level) // 10)
    ends = max(abs(float(level[:tenth].mean()) - mean), abs(float(level[-tenth:].mean()) - mean))
    return max(fitted, ends) / mean


def _bin_means(times: FloatArray, count: FloatArray, edges: FloatArray) -> FloatArray:
    """Time-weighted mean of the step function in each bin."""
    area = np.concatenate([[0.0], np.cumsum(count[:-1] * np.diff(times))])
    return np.asarray(np.diff(np.interp(edges, times, area)) / np.diff(edges), dtype=np.float64)


def grows(log: RequestLog, arrivals_end_s: float) -> bool:
    """Whether the number in flight still grew when arrivals ended: its mean over their last quarter is well above that of the quarter
    before, and by more than chance. An open loop shows this exactly when it asks for more than the target can serve.

    Chance: under Poisson arrivals the number in flight has about its mean as variance (M/G/infinity), so three roots of it are luck."""
    times, count = in_flight(log)
    known = np.isfinite(log.sent_s)
    if known.sum() < 20:
        return False
    begin = float(log.sent_s[known].min())
    edges = np.linspace(begin, arrivals_end_s, 5)
    if edges[-1] <= edges[0]:
        return False
    level = _bin_means(times, count, edges)
    climbs = level[3] > 1.25 * level[2] and level[2] > 1.25 * level[1]
    return bool(climbs and level[3] - level[1] > 3 * np.sqrt(level[1] + 1))


def _span(log: RequestLog, start_s: float, end_s: float, rule: Rule) -> Span:
    whole = float(np.nanmax(log.end_s) - np.nanmin(log.sent_s))
    return Span(start_s, end_s, (end_s - start_s) / whole if whole > 0 else 0.0, rule)
