"""What is in a trace: lengths, rate over time, burstiness, sessions, and how much a prefix cache could save at best."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trtllm_workloads.lengths import summary
from trtllm_workloads.traces.trace import Trace

Float64Array = npt.NDArray[np.float64]
RATE_BINS = 60


@dataclass(frozen=True)
class TraceInfo:
    requests: int
    skipped: int
    duration_s: float
    """Last arrival - first arrival; 0 where there are no timestamps."""
    rate_per_s: float
    gap_cv: float
    """Coefficient of variation of the gaps between arrivals (1 for Poisson); NaN without timestamps."""
    distinct_times: int
    input_tokens: dict[str, float]
    output_tokens: dict[str, float]
    rank_correlation: float
    """Spearman's, of prompt and output length."""
    sessions: int
    turns_mean: float
    block_tokens: int
    prefix_hit_blocks: float
    """Share of prefix blocks seen before in the trace: the hit rate of a cache that never evicts. NaN without blocks."""
    prefix_hit_tokens: float
    """Same, of prompt tokens, whole leading blocks only: what prefill could skip."""
    rate_series: list[float]
    """Requests/s in `RATE_BINS` equal parts of the duration."""

    def to_json(self) -> dict[str, Any]:
        return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in asdict(self).items()}


def info(trace: Trace) -> TraceInfo:
    ordered = trace.in_order()
    duration = float(ordered.arrival_s[-1]) if ordered.timed else 0.0
    gaps = np.diff(ordered.arrival_s) if ordered.timed else np.empty(0)
    series = np.histogram(ordered.arrival_s, bins=RATE_BINS, range=(0, duration))[0] * RATE_BINS / duration if duration > 0 else np.empty(0)
    sessions = 0 if trace.session is None else len(np.unique(trace.session[trace.session >= 0]))
    by_block, by_token = prefix_hits(ordered)
    return TraceInfo(
        requests=len(trace),
        skipped=trace.skipped,
        duration_s=duration,
        rate_per_s=len(gaps) / duration if duration > 0 else float("nan"),
        gap_cv=float(gaps.std() / gaps.mean()) if duration > 0 else float("nan"),
        distinct_times=len(np.unique(ordered.arrival_s)),
        input_tokens=summary(trace.input_tokens),
        output_tokens=summary(trace.output_tokens),
        rank_correlation=_spearman(trace.input_tokens, trace.output_tokens),
        sessions=sessions,
        turns_mean=float((trace.session >= 0).sum() / sessions) if trace.session is not None and sessions else float("nan"),
        block_tokens=trace.block_tokens,
        prefix_hit_blocks=by_block,
        prefix_hit_tokens=by_token,
        rate_series=[float(rate) for rate in series],
    )


def prefix_hits(trace: Trace) -> tuple[float, float]:
    """(share of blocks seen before, share of prompt tokens in whole leading blocks seen before), with an infinite cache."""
    if trace.block_offsets is None or trace.block_ids is None or len(trace.block_ids) == 0:
        return float("nan"), float("nan")
    _, first = np.unique(trace.block_ids, return_index=True)
    seen = np.ones(len(trace.block_ids), dtype=bool)
    seen[first] = False
    counts = np.diff(trace.block_offsets)
    within = np.arange(len(seen)) - np.repeat(trace.block_offsets[:-1], counts)
    whole = (within + 1) * trace.block_tokens <= np.repeat(trace.input_tokens.astype(np.int64), counts)
    misses = np.concatenate([[0], np.cumsum(~(seen & whole))])
    leading = misses[1:] == np.repeat(misses[trace.block_offsets[:-1]], counts)
    return float(seen.mean()), float(leading.sum() * trace.block_tokens / trace.input_tokens.sum(dtype=np.int64))


def _spearman(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> float:
    if len(a) < 2 or a.min() == a.max() or b.min() == b.max():
        return float("nan")
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: npt.NDArray[np.int32]) -> Float64Array:
    """Ranks, equal values sharing their mean rank."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[which], dtype=np.float64)


def bars(values: list[float] | Float64Array, width: int = RATE_BINS) -> str:
    """Values as a line of block characters, the largest filling its cell; the line's axis is the values' own."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0 or array.max() <= 0:
        return ""
    columns = min(width, len(array))
    # Each column shows the same stretch of the values: where 60 share 48 columns, a value on an edge counts in both by its parts.
    edges = np.linspace(0, len(array), columns + 1)
    pooled = np.diff(np.interp(edges, np.arange(len(array) + 1), np.concatenate([[0.0], np.cumsum(array)])))
    levels = np.ceil(pooled / pooled.max() * 8).astype(int)
    return "".join(" ▁▂▃▄▅▆▇█"[level] for level in levels)


def histogram(values: npt.NDArray[np.int32], bins: int = 32) -> tuple[Float64Array, Float64Array]:
    """(edges, counts) over logarithmic bins, which token counts need."""
    high = float(values.max()) + 1
    edges = np.unique(np.round(np.geomspace(max(1.0, float(values.min())), high, bins + 1)))
    counts, _ = np.histogram(values, bins=edges)
    return edges, counts.astype(np.float64)
