"""The same request log under other tools' definitions, so that a difference between two tools can be told from a difference in arithmetic.

What differs, read from the tools' own sources and documents (2026-07):

| | clock starts | TPOT | ITL | per user | percentile |
|---|---|---|---|---|---|
| trtllm-bench (this) | intended arrival | (E2E - TTFT)/(N - 1), N >= 2 | gaps pooled over tokens | mean 1/TPOT | linear |
| vllm | send | same | same | - | linear |
| aiperf | send | = its ITL | (E2E - TTFT)/(N - 1), one a request | mean 1/ITL | linear |
| nvidia (trtllm-bench) | submission | same, but 0 for N = 1 and counted | - | mean N/E2E | sorted[int(n p)] |
| guidellm | send | E2E/N, first token included, weighted by N | (E2E - TTFT)/(N - 1), weighted by N - 1 | - | least value of cumulative
share >= p |

Sources: vLLM `vllm/benchmarks/serve.py` (`calculate_metrics`); AIPerf "Metrics Reference" (docs.nvidia.com/aiperf); TensorRT-LLM
`tensorrt_llm/bench/dataclasses/{statistics,reporting}.py`; GuideLLM `schemas/base/{request_stats,statistics}.py` and
`benchmark/schemas/metrics.py` (0.8). Rates divide by last completion - first send in all four, and a failed request is never good in any.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from trtllm_results.errors import ResultsError
from trtllm_results.metrics import requests as metrics
from trtllm_results.metrics.registry import PERCENTILES
from trtllm_results.metrics.requests import FloatArray, RequestLog

Percentile = Callable[[FloatArray, float], float]


def percentile_linear(values: FloatArray, percent: float) -> float:
    return float(np.percentile(values, percent, method="linear"))


def percentile_index(values: FloatArray, percent: float) -> float:
    """NVIDIA's trtllm-bench: `sorted(values)[int(n * p)]`, the order statistic above the quantile."""
    return float(np.sort(values)[min(int(len(values) * percent / 100), len(values) - 1)])


def percentile_cumulative(values: FloatArray, percent: float) -> float:
    """GuideLLM: the least value whose cumulative share reaches p."""
    return float(np.percentile(values, percent, method="inverted_cdf"))


@dataclass(frozen=True)
class Definitions:
    """How one tool turns a log into figures; values in seconds, one a request or one a gap."""

    percentile: Percentile
    tpot: Callable[[RequestLog], FloatArray]
    itl: Callable[[RequestLog], FloatArray]
    per_user: Callable[[RequestLog], FloatArray]
    from_send: bool = True


def _none(log: RequestLog) -> FloatArray:
    return np.empty(0)


def _tpot_or_zero(log: RequestLog) -> FloatArray:
    return np.where(log.output_tokens >= 2, metrics.tpot(log), 0.0)


def _time_per_token(log: RequestLog) -> FloatArray:
    return np.repeat(metrics.e2e(log) / np.maximum(log.output_tokens, 1), log.output_tokens)


def _mean_gap_by_token(log: RequestLog) -> FloatArray:
    return np.repeat(metrics.tpot(log), np.maximum(log.output_tokens - 1, 0))


def _speed(log: RequestLog) -> FloatArray:
    gaps = metrics.tpot(log)
    return 1 / gaps[np.isfinite(gaps) & (gaps > 0)]


def _whole_speed(log: RequestLog) -> FloatArray:
    return log.output_tokens / np.maximum(metrics.e2e(log), 1e-12)


DEFINITIONS: Mapping[str, Definitions] = {
    "trtllm-bench": Definitions(percentile_linear, metrics.tpot, metrics.itl, _speed, from_send=False),
    "vllm": Definitions(percentile_linear, metrics.tpot, metrics.itl, _none),
    "aiperf": Definitions(percentile_linear, metrics.tpot, metrics.tpot, _speed),
    "nvidia": Definitions(percentile_index, _tpot_or_zero, _none, _whole_speed),
    "guidellm": Definitions(percentile_cumulative, _time_per_token, _mean_gap_by_token, _none),
}


def figures(log: RequestLog, definitions: str = "trtllm-bench", slo: Mapping[str, float] | None = None) -> dict[str, float]:
    """Whole-run figures of `log` as the named tool defines them. Raises `ResultsError` for a name not in `DEFINITIONS`."""
    if definitions not in DEFINITIONS:
        raise ResultsError(f"No definitions named '{definitions}'; choose from {', '.join(DEFINITIONS)}.")
    if definitions == "trtllm-bench":
        return metrics.figures(log, slo)
    rules = DEFINITIONS[definitions]
    seen = replace(log, intended_s=log.sent_s) if rules.from_send else log
    found = {name: value for name, value in metrics.figures(seen, slo).items() if not name.startswith(("tpot_", "itl_", "lag_"))}
    found.pop("output_tokens_per_s_per_user", None)
    done = seen.select(seen.ok)
    latencies = {"ttft": metrics.ttft(done), "tpot": rules.tpot(done), "itl": rules.itl(done), "e2e": metrics.e2e(done)}
    for name, values in latencies.items():
        found |= _summarise(values, name, rules.percentile)
    speeds = rules.per_user(done)
    if len(speeds):
        found["output_tokens_per_s_per_user"] = float(speeds.mean())
    return found


def _summarise(values_s: FloatArray, name: str, percentile: Percentile) -> dict[str, float]:
    values = values_s[np.isfinite(values_s)] * 1e3
    if not len(values):
        return {}
    found = {f"{name}_mean_ms": float(values.mean()), f"{name}_max_ms": float(values.max())}
    return found | {f"{name}_p{percent}_ms": percentile(values, percent) for percent in PERCENTILES}
