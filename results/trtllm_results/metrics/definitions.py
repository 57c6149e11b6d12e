"""The same request log under other tools' definitions, so that a difference between two tools can be told from a difference in arithmetic.

What differs, read from the tools' own sources and documents (2026-07):

| | clock starts | E2E ends | TPOT | ITL | per user | percentile |
|---|---|---|---|---|---|---|
| trtllm-bench (this) | intended arrival | last token | D/(N - 1), N >= 2 | gaps pooled over tokens | mean (N - n1)/D | linear |
| vllm | send | last chunk | same | gaps pooled over chunks | - | linear |
| aiperf | send | last token | = its ITL | D/(N - 1), one per request | mean 1/ITL | linear |
| nvidia (trtllm-bench) | submission | last token | same, but 0 for N = 1 and counted | - | mean N/E2E | sorted[int(n p)] |
| guidellm | send | end of the stream | (last - send)/N, weighted by N | (last - first)/(N - 1), weighted by N - 1 | - | cumulative |

N: tokens of an answer, n1 of its first chunk; D = E2E - TTFT; first, last: its tokens' times; n: values, p: the percentile.

Sources: vLLM `vllm/benchmarks/serve.py` (`benchmark`, `calculate_metrics`) and `lib/endpoint_request_func.py`, 2026-06; AIPerf "Metrics
Reference" (docs.nvidia.com/aiperf); TensorRT-LLM `tensorrt_llm/bench/dataclasses/{statistics,reporting}.py`; GuideLLM
`schemas/base/{request_stats,statistics}.py`, `backends/openai/http.py` and `benchmark/schemas/metrics.py` (0.8). Rates divide by last
completion - first send; vLLM's clock runs from before the wait for the first request to the end of the last stream, a failed one's too. A
failed request is never good in any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from trtllm_results.errors import ResultsError
from trtllm_results.metrics import requests as metrics
from trtllm_results.metrics.registry import PERCENTILES
from trtllm_results.metrics.requests import FloatArray, RequestLog

RATES = ("output_tokens_per_s", "total_tokens_per_s", "output_tokens_per_s_per_gpu", "requests_per_s", "goodput_requests_per_s")
Percentile = Callable[[FloatArray, float], float]


def percentile_linear(values: FloatArray, percent: float) -> float:
    return float(np.percentile(values, percent, method="linear"))


def percentile_index(values: FloatArray, percent: float) -> float:
    """NVIDIA's trtllm-bench: `sorted(values)[int(n * p)]`, the order statistic above the quantile."""
    return float(np.sort(values)[min(int(len(values) * percent / 100), len(values) - 1)])


def percentile_cumulative(values: FloatArray, percent: float) -> float:
    """GuideLLM: the least value whose cumulative share reaches p. The shares are summed in floating point, as there: where n p is a whole
    number the sum may fall short of p by its last bit, and the next value is taken."""
    distinct, counts = np.unique(values, return_counts=True)
    reached = np.cumsum(counts / len(values))
    return float(distinct[min(int(np.searchsorted(reached, percent / 100, side="left")), len(distinct) - 1)])


@dataclass(frozen=True)
class Definitions:
    """How one tool turns a log into figures; values in seconds, one per request or one per gap."""

    percentile: Percentile
    tpot: Callable[[RequestLog], FloatArray]
    itl: Callable[[RequestLog], FloatArray]
    per_user: Callable[[RequestLog], FloatArray]
    e2e: Callable[[RequestLog], FloatArray] = metrics.e2e
    duration: Callable[[RequestLog], float] = metrics.duration
    from_send: bool = True


def _none(log: RequestLog) -> FloatArray:
    return np.empty(0)


def _tpot_or_zero(log: RequestLog) -> FloatArray:
    return np.where(log.output_tokens >= 2, metrics.mean_gap(log), 0.0)


def _chunk_gaps(log: RequestLog) -> FloatArray:
    """Gaps between the chunks of a request: those between distinct arrivals, and a zero for each chunk that came with another."""
    gaps = metrics.itl(log)
    apart = gaps[gaps > 0]
    chunks = log.columns.get("chunks")
    if chunks is None or not (chunks > 0).all():
        return apart
    together = int(np.maximum(chunks - 1, 0).sum()) - len(apart)
    return np.concatenate([apart, np.zeros(max(together, 0))])


def _to_end_of_stream(log: RequestLog) -> FloatArray:
    return np.asarray(log.columns.get("closed_s", log.end_s) - log.intended_s, dtype=np.float64)


def _whole_benchmark(log: RequestLog) -> float:
    begin = log.columns.get("start_s", log.intended_s)
    return float(np.nanmax(log.columns.get("closed_s", log.end_s)) - np.nanmin(begin))


def _time_per_token(log: RequestLog) -> FloatArray:
    return np.repeat(metrics.e2e(log) / np.maximum(log.output_tokens, 1), log.output_tokens)


def _mean_gap_by_token(log: RequestLog) -> FloatArray:
    return np.repeat(metrics.mean_gap(log), np.maximum(log.output_tokens - 1, 0))


def _speed(log: RequestLog) -> FloatArray:
    gaps = metrics.mean_gap(log)
    return 1 / gaps[np.isfinite(gaps) & (gaps > 0)]


def _whole_speed(log: RequestLog) -> FloatArray:
    return log.output_tokens / np.maximum(metrics.e2e(log), 1e-12)


DEFINITIONS: Mapping[str, Definitions] = {
    "trtllm-bench": Definitions(percentile_linear, metrics.tpot, metrics.itl, metrics.speed, from_send=False),
    "vllm": Definitions(percentile_linear, metrics.mean_gap, _chunk_gaps, _none, duration=_whole_benchmark),
    "aiperf": Definitions(percentile_linear, metrics.mean_gap, metrics.mean_gap, _speed),
    "nvidia": Definitions(percentile_index, _tpot_or_zero, _none, _whole_speed),
    "guidellm": Definitions(percentile_cumulative, _time_per_token, _mean_gap_by_token, _none, e2e=_to_end_of_stream),
}


def figures(log: RequestLog, definitions: str = "trtllm-bench", slo: Mapping[str, float] | None = None) -> dict[str, float]:
    """Whole-run figures of `log` as the named tool defines them. Raises `ResultsError` for a name not in `DEFINITIONS`."""
    if definitions not in DEFINITIONS:
        raise ResultsError(f"no definitions named '{definitions}'; choose from {', '.join(DEFINITIONS)}")
    if definitions == "trtllm-bench":
        return metrics.figures(log, slo)
    rules = DEFINITIONS[definitions]
    seen = replace(log, intended_s=log.sent_s) if rules.from_send else log
    kept = {name: value for name, value in metrics.figures(seen, slo).items() if not name.startswith(("tpot_", "itl_", "lag_"))}
    kept.pop("output_tokens_per_s_per_user", None)
    if kept.get("duration_s", 0.0) > 0:
        seconds = rules.duration(seen)
        kept |= {name: kept[name] * kept["duration_s"] / seconds for name in RATES if name in kept} | {"duration_s": seconds}
    done = seen.select(seen.ok)
    latencies = {"ttft": metrics.ttft(done), "tpot": rules.tpot(done), "itl": rules.itl(done), "e2e": rules.e2e(done)}
    for name, values in latencies.items():
        kept |= _summarise(values, name, rules.percentile)
    speeds = rules.per_user(done)
    if len(speeds):
        kept["output_tokens_per_s_per_user"] = float(speeds.mean())
    return kept


def _summarise(values_s: FloatArray, name: str, percentile: Percentile) -> dict[str, float]:
    values = values_s[np.isfinite(values_s)] * 1e3
    if not len(values):
        return {}
    summary = {f"{name}_mean_ms": float(values.mean()), f"{name}_max_ms": float(values.max())}
    return summary | {f"{name}_p{percent}_ms": percentile(values, percent) for percent in PERCENTILES}
