"""Every figure a row may carry: its unit, which way is better, and its one definition in words.

Figures of requests are computed by `requests.py`, those of accuracy by `quality.py`, of energy and cost by `trtllm_results/cost.py`; in
`trtllm_bench`, those of power and clocks by `telemetry.py`, MFU and MBU by `roofline/costs.py`, those of steps and the cache by
`targets/native_engine.py`. Tables, plots, comparison and gate take units and direction from here. `docs/schema.md` is printed from this
file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    unit: str
    better: Literal["higher", "lower", ""]
    meaning: str


PERCENTILES = (50, 90, 95, 99)
LATENCIES: Mapping[str, str] = {
    "ttft": "time to first token: first token received - intended arrival",
    "tpot": "time per output token after the first: (E2E - TTFT) / (N - 1), requests with N >= 2 whose tokens did not come at once",
    "itl": "inter-token latency: gap between consecutive tokens of a request, pooled over all tokens of all requests",
    "e2e": "end to end: last token received - intended arrival",
    "queue": "queue time: start of the request's first step - intended arrival, where the target reports it",
}


def _latencies() -> dict[str, Metric]:
    figures = {}
    for name, meaning in LATENCIES.items():
        figures[f"{name}_mean_ms"] = Metric("ms", "lower", f"mean of {meaning}")
        for percent in PERCENTILES:
            figures[f"{name}_p{percent}_ms"] = Metric("ms", "lower", f"{percent}th percentile (linear interpolation) of {meaning}")
        figures[f"{name}_max_ms"] = Metric("ms", "lower", f"largest {meaning}")
    return figures


_RATES: dict[str, Metric] = {
    "output_tokens_per_s": Metric("tok/s", "higher", "output tokens of completed requests / duration_s, summed over GPUs"),
    "total_tokens_per_s": Metric("tok/s", "higher", "input + output tokens of completed requests / duration_s"),
    "output_tokens_per_s_per_gpu": Metric("tok/s/GPU", "higher", "output_tokens_per_s / (tp * pp * replicas)"),
    "output_tokens_per_s_per_user": Metric(
        "tok/s/user", "higher", "mean over requests with a TPOT of tokens after the first chunk / (E2E - TTFT)"
    ),
    "requests_per_s": Metric("req/s", "higher", "completed requests / duration_s"),
    "goodput_requests_per_s": Metric("req/s", "higher", "completed requests that met every limit of the SLO / duration_s"),
    "goodput_ratio": Metric("", "higher", "requests that met every limit of the SLO / all requests, failed ones included"),
}

_COUNTS: dict[str, Metric] = {
    "duration_s": Metric("s", "", "last token received - first intended arrival, over the measured requests"),
    "completed_requests": Metric("", "", "requests that finished"),
    "failed_requests": Metric("", "lower", "requests that did not finish"),
    "input_tokens": Metric("tok", "", "prompt tokens of completed requests"),
    "output_tokens": Metric("tok", "", "tokens produced by completed requests"),
    "output_length_ratio": Metric("", "", "output tokens produced / output tokens asked for; below 1 the outputs were cut short"),
    "input_length_mean": Metric("tok", "", "mean prompt length"),
    "output_length_mean": Metric("tok", "", "mean output length"),
    "lag_p50_ms": Metric("ms", "lower", "median of sent - due: the driver's own lateness"),
    "lag_p99_ms": Metric("ms", "lower", "99th percentile of sent - due"),
    "lag_max_ms": Metric("ms", "lower", "largest sent - due"),
    "steady_start_s": Metric("s", "", "start of the steady window, from the first intended arrival"),
    "steady_end_s": Metric("s", "", "end of the steady window, from the first intended arrival"),
}

_DEVICE: dict[str, Metric] = {
    "energy_j": Metric("J", "lower", "energy of all GPUs of the cell over duration_s, from the driver's counter"),
    "energy_per_output_token_j": Metric("J/tok", "lower", "energy_j / output_tokens"),
    "output_tokens_per_j": Metric("tok/J", "higher", "output_tokens / energy_j; not stored, derived where asked for"),
    "output_tokens_per_s_per_mw": Metric(
        "tok/s/MW", "higher", "output_tokens_per_j * 10^6: of boards alone, without host and cooling; not stored, derived where asked for"
    ),
    "cost_per_million_output_tokens_usd": Metric(
        "USD",
        "lower",
        "price of the cell's GPUs for an hour / output tokens in an hour at output_tokens_per_s, in millions; not stored, derived by "
        "--gpu-price-per-hour",
    ),
    "power_mean_w": Metric("W", "", "mean board power of all GPUs over duration_s"),
    "power_max_w": Metric("W", "", "largest board power sample, summed over GPUs"),
    "sm_clock_mean_mhz": Metric("MHz", "", "mean SM clock over duration_s"),
    "sm_clock_min_mhz": Metric("MHz", "", "smallest SM clock sample"),
    "memory_clock_mean_mhz": Metric("MHz", "", "mean memory clock over duration_s"),
    "temperature_max_c": Metric("C", "", "hottest GPU temperature sample"),
    "throttled_ratio": Metric("", "lower", "share of samples in which the driver reported a thermal or hardware slow-down"),
    "power_capped_ratio": Metric("", "", "share of samples in which the software power cap limited the clocks"),
    "gpu_utilization_mean": Metric("", "", "mean of the driver's busy share"),
    "mfu": Metric(
        "", "higher", "model FLOP of the work done / (duration_s * measured peak FLOP/s of the compute dtype, int8's at least fp8's)"
    ),
    "mbu": Metric("", "higher", "bytes the work must move / (duration_s * measured memory bandwidth)"),
    "mfu_prefill": Metric("", "higher", "mfu over steps that hold context tokens only"),
    "mbu_prefill": Metric("", "higher", "mbu over steps that hold context tokens only"),
    "mfu_decode": Metric("", "higher", "mfu over steps that hold decode tokens only"),
    "mbu_decode": Metric("", "higher", "mbu over steps that hold decode tokens only"),
    "memory_peak_gib": Metric("GiB", "lower", "largest device memory in use on one GPU"),
    "kv_used_peak_ratio": Metric("", "", "largest share of KV cache pages in use"),
    "kv_used_mean_ratio": Metric("", "", "mean over steps of the share of KV cache pages in use"),
    "prefix_hit_ratio": Metric("", "higher", "prompt tokens served from the prefix cache / prompt tokens"),
    "preemptions": Metric("", "lower", "sequences evicted and recomputed"),
    "steps": Metric("", "", "engine steps run"),
    "step_mean_ms": Metric(
        "ms", "lower", "from the first step's launch to the last one's end / number of steps; of replicas, each over its own steps"
    ),
    "batch_mean": Metric("seq", "", "mean number of sequences in a step"),
    "decode_tokens_per_step_mean": Metric("tok", "", "mean number of decode tokens in a step"),
    "context_tokens_per_step_mean": Metric("tok", "", "mean number of context tokens in a step"),
    "load_s": Metric("s", "lower", "engine load to ready"),
    "build_s": Metric("s", "lower", "engine build"),
}


_QUALITY: dict[str, Metric] = {
    "perplexity": Metric("", "lower", "exp of the mean of -log q(token) over the scored tokens of a text, q by the engine that was timed"),
    "perplexity_change": Metric("", "lower", "perplexity / perplexity of the widest precision - 1, on the same tokens"),
    "kl_divergence": Metric(
        "nats/tok",
        "lower",
        "mean over the scored tokens of KL(p || q), p the widest precision's; tokens beyond its 512 likeliest are one event",
    ),
    "top1_agreement": Metric("", "higher", "share of scored tokens at which the widest precision's likeliest token is the engine's too"),
    "task_accuracy": Metric("", "higher", "share of the questions of the built-in retrieval task that were answered exactly"),
}
QUALITY: Mapping[str, Metric] = {
    **_QUALITY,
    **{
        f"{name}_{end}": Metric(one.unit, one.better, f"{'lower' if end == 'low' else 'upper'} end of the 95% interval of {name}")
        for name, one in _QUALITY.items()
        for end in ("low", "high")
    },
    "accuracy_tokens": Metric("tok", "", "scored tokens of the text"),
}
"""Of accuracy, beside speed: the same for all cells of an engine."""


def _steady(base: Mapping[str, Metric]) -> dict[str, Metric]:
    names = [name for name in base if name.endswith(("_p50_ms", "_p99_ms", "tokens_per_s", "requests_per_s", "_per_gpu", "_per_user"))]
    return {
        f"steady_{name}": Metric(base[name].unit, base[name].better, f"within the steady window: {base[name].meaning}")
        for name in names
        if not name.startswith(("goodput", "queue"))
    }


_BASE: dict[str, Metric] = {**_RATES, **_latencies()}
METRICS: Mapping[str, Metric] = {**_BASE, **_COUNTS, **_DEVICE, **QUALITY, **_steady(_BASE)}
SIGNED = frozenset(
    {*(name for name in METRICS if name.startswith(("lag_", "perplexity_change"))), "steady_start_s", "steady_end_s", "temperature_max_c"}
)
"""Figures that may be negative."""
HEADLINE = "output_tokens_per_s"
_TITLES = {
    "output_tokens_per_j": "output tokens per joule",
    "output_tokens_per_s_per_mw": "output per MW",
    "cost_per_million_output_tokens_usd": "cost per million output tokens",
}


def title(name: str) -> str:
    """A figure's name for a table that shows its unit elsewhere: `output`, `TTFT p50`, `steady output per GPU`."""
    if name in _TITLES:
        return _TITLES[name]
    text = name if name.endswith("_per_s") else re.sub(r"_(ms|s|w|mhz|gib|j|c)$", "", name)
    text = text.replace("_tokens_per_s_per_", " per ").replace("_tokens_per_s", "").replace("_requests_per_s", "")
    words = [
        word.upper() if word in (*LATENCIES, "mfu", "mbu", "gpu", "kv", "sm") and word != "queue" else word for word in text.split("_")
    ]
    return " ".join(words).replace("per gpu", "per GPU")


def common_words(labels: list[str]) -> tuple[str, list[str]]:
    """What all cell labels share, and each label without it (`all` when nothing is left): narrow tables say the rest once."""
    split = [label.split() for label in labels]
    shared = [word for word in split[0] if all(word in words for words in split)] if len(labels) > 1 and len(set(labels)) > 1 else []
    return " ".join(shared), [" ".join(word for word in words if word not in shared) or "all" * bool(words) for words in split]


def brief(value: float) -> str:
    """How a figure is written everywhere: four significant digits, whole from a thousand on, never as a power of ten.

    `0.0391`, `7.004`, `24,951`, `1,048,576`: counts stay exact.
    """
    if not math.isfinite(value):
        return str(value)
    if abs(value) >= 1000 or value == round(value):
        return f"{value:,.0f}"
    places = 3 - math.floor(math.log10(abs(float(f"{value:.4g}"))))
    return f"{value:,.{places}f}".rstrip("0").rstrip(".")
