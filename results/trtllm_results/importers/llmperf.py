"""LLMPerf's `*_summary.json`: flat keys such as `results_ttft_s_quantiles_p50`, seconds, and some numbers as text.

Its inter token latency is a request's whole latency over its output tokens, so it counts the first token and is no TPOT: it goes to
`extra`. Lengths asked for make the cell, as LLMPerf draws each prompt's and does not say how many requests it was given.
Metadata that the user added are settings.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from trtllm_results.importers._common import (
    SECRET,
    Count,
    Foreign,
    Importer,
    Measured,
    MeasuredOrZero,
    Text,
    epoch_time,
    make,
    number_of,
    parse,
    ratio,
    required,
    scaled,
    whole,
)
from trtllm_results.metrics.registry import PERCENTILES
from trtllm_results.record.cell import Cell
from trtllm_results.record.row import Row

LATENCIES = {"ttft_s": "ttft", "end_to_end_latency_s": "e2e"}
PREFIX = "results_"
ASKED = ("model", "mean_input_tokens", "mean_output_tokens", "num_concurrent_requests")
OF_THE_FILE = ("name", "version", "timestamp")


class Summary(Foreign):
    model: Text
    mean_input_tokens: Count = None
    mean_output_tokens: Count = None
    num_concurrent_requests: Count
    num_completed_requests: Count = Field(alias="results_num_completed_requests")
    per_minute: Measured = Field(None, alias="results_num_completed_requests_per_min")
    errors: Count = Field(None, alias="results_number_errors")
    output_rate: Measured = Field(None, alias="results_mean_output_throughput_token_per_s")
    timestamp: MeasuredOrZero = None
    statistics: dict[str, Measured] = Field(default_factory=dict)


def recognises(content: Any) -> bool:
    return isinstance(content, dict) and {"results_num_completed_requests", "num_concurrent_requests"} <= set(content)


def unreadable(content: Any) -> str:
    """What a file of LLMPerf's is that holds no result to import, or ''."""
    first = content[0] if isinstance(content, list) and content else content
    if isinstance(first, list) and first:
        first = first[0]
    if isinstance(first, dict) and {"request_output_throughput_token_per_s", "ttft_s", "number_total_tokens"} <= set(first):
        return "LLMPerf's record of single requests; import the file beside it whose name ends in _summary.json"
    return ""


def rows(content: Any) -> list[Row]:
    names = (*LATENCIES, "inter_token_latency_s", "number_input_tokens", "number_output_tokens", "request_output_throughput_token_per_s")
    statistics = {
        f"{name}_{statistic}": number_of(content[key])
        for name in names
        for statistic in ("mean", "max", *(f"quantiles_p{percent}" for percent in PERCENTILES))
        if (key := f"{PREFIX}{name}_{statistic}") in content
    }
    summary = parse(Summary, content | {"statistics": statistics})
    known = summary.statistics
    completed = required(summary.num_completed_requests, "results_num_completed_requests")
    seconds = ratio(completed * 60 or None, summary.per_minute)
    prompt, output = known.get("number_input_tokens_mean"), known.get("number_output_tokens_mean")
    figures: dict[str, float | None] = {
        "duration_s": seconds,
        "completed_requests": completed,
        "failed_requests": summary.errors,
        "input_tokens": scaled(prompt, completed),
        "output_tokens": scaled(output, completed),
        "input_length_mean": prompt,
        "output_length_mean": output,
        "requests_per_s": scaled(summary.per_minute, 1 / 60),
        "output_tokens_per_s": summary.output_rate,
    }
    for theirs, ours in LATENCIES.items():
        for statistic, name in (("mean", "mean"), ("max", "max"), *((f"quantiles_p{percent}", f"p{percent}") for percent in PERCENTILES)):
            figures[f"{ours}_{name}_ms"] = scaled(known.get(f"{theirs}_{statistic}"), 1e3)
    settings = {
        name: value
        for name, value in content.items()
        if not name.startswith(PREFIX) and not SECRET.search(name) and name not in (*ASKED, *OF_THE_FILE)
        if isinstance(value, str | int | float) and value != ""
    }
    cell = Cell(
        model=summary.model,
        precision="",
        batch=summary.num_concurrent_requests or 0,
        isl=summary.mean_input_tokens or whole(prompt),
        osl=summary.mean_output_tokens or whole(output),
        target="openai",
        settings=settings,
    )
    extra = {
        "inter_token_latency_mean_ms": scaled(known.get("inter_token_latency_s_mean"), 1e3),
        "request_output_throughput_mean": known.get("request_output_throughput_token_per_s_mean"),
    }
    return [make(cell, figures, "llmperf", content, started_at=epoch_time(summary.timestamp), extra=extra)]


TOOLS = {"llmperf": Importer(recognises, rows, unreadable=unreadable)}
