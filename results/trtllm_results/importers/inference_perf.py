"""inference-perf's `stage_N_lifecycle_metrics.json` (one load) and `summary_lifecycle_metrics.json` (all of a run's loads together).

Times are in seconds. Its normalized time per output token counts the first token and goes to `extra`. The files name neither model nor
server: give them with `--set`. Of a folder the stages are read, since a summary over several loads is a measurement of none.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from trtllm_results.importers._common import (
    Count,
    Foreign,
    Importer,
    Measured,
    MeasuredOrZero,
    Rate,
    make,
    parse,
    ratio,
    required,
    scaled,
    whole,
)
from trtllm_results.metrics.registry import PERCENTILES
from trtllm_results.record.cell import Cell
from trtllm_results.record.row import Row

LATENCIES = {
    "time_to_first_token": "ttft",
    "time_per_output_token": "tpot",
    "inter_token_latency": "itl",
    "request_latency": "e2e",
}
Spread = dict[str, Any]


class Load(Foreign):
    requested_rate: Rate = None
    concurrency: Count = None


class Throughput(Foreign):
    output_tokens_per_sec: Measured = None
    total_tokens_per_sec: Measured = None
    requests_per_sec: Measured = None


class Goodput(Foreign):
    request_goodput: MeasuredOrZero = None
    goodput_percentage: MeasuredOrZero = None


class Successes(Foreign):
    count: Count
    latency: dict[str, Spread | None] = Field(default_factory=dict)
    throughput: Throughput = Throughput()
    prompt_tokens: Spread | None = None
    prompt_len: Spread | None = None
    output_tokens: Spread | None = None
    output_len: Spread | None = None
    goodput_metrics: Goodput | None = None


class Failures(Foreign):
    count: Count = None


class Report(Foreign):
    load_summary: Load
    successes: Successes
    failures: Failures
    benchmark_time_seconds: Measured = None


class _Statistics(Foreign):
    values: dict[str, Measured]


def recognises(content: Any) -> bool:
    if not isinstance(content, dict) or not {"load_summary", "successes", "failures"} <= set(content):
        return False
    return isinstance(content["successes"], dict) and "latency" in content["successes"]


def unreadable(content: Any) -> str:
    """What a file of inference-perf's is that holds no result to import, or ''."""
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return ""
    if {"load_summary", "successes", "failures"} <= set(first):
        return "what inference-perf read of the server's own metrics; import stage_0_lifecycle_metrics.json beside it"
    if {"start_time", "end_time", "request", "info"} <= set(first):
        return "inference-perf's record of single requests; import stage_0_lifecycle_metrics.json beside it"
    return ""


def rows(content: Any) -> list[Row]:
    report = parse(Report, content)
    load, good, speed = report.load_summary, report.successes, report.successes.throughput
    completed = required(good.count, "successes.count")
    prompt, output = _mean(good.prompt_tokens, good.prompt_len), _mean(good.output_len, good.output_tokens)
    goodput = good.goodput_metrics or Goodput()
    figures: dict[str, float | None] = {
        "duration_s": report.benchmark_time_seconds or ratio(completed or None, speed.requests_per_sec),
        "completed_requests": completed,
        "failed_requests": report.failures.count,
        "input_tokens": scaled(prompt, completed),
        "output_tokens": scaled(output, completed),
        "input_length_mean": prompt,
        "output_length_mean": output,
        "requests_per_s": speed.requests_per_sec,
        "output_tokens_per_s": speed.output_tokens_per_sec,
        "total_tokens_per_s": speed.total_tokens_per_sec,
        "goodput_requests_per_s": goodput.request_goodput,
        "goodput_ratio": scaled(goodput.goodput_percentage, 0.01),
    }
    for theirs, ours in LATENCIES.items():
        spread = _statistics(good.latency.get(theirs))
        figures |= {f"{ours}_{name}_ms": scaled(spread.get(name), 1e3) for name in ("mean", "max")}
        figures |= {f"{ours}_p{percent}_ms": scaled(spread.get(f"p{percent}"), 1e3) for percent in PERCENTILES}
        figures[f"{ours}_p50_ms"] = figures[f"{ours}_p50_ms"] or scaled(spread.get("median"), 1e3)
    several = "requested_rate" not in content["load_summary"]
    cell = Cell(
        model="",
        precision="",
        batch=load.concurrency or 0,
        isl=whole(prompt),
        osl=whole(output),
        num_requests=int(completed + (report.failures.count or 0)),
        request_rate=0.0 if load.concurrency else load.requested_rate or 0.0,
        target="openai",
        settings={"loads": "all of a run together"} if several else {},
    )
    normalized = _statistics(good.latency.get("normalized_time_per_output_token")).get("mean")
    extra = {"normalized_time_per_output_token_mean_ms": scaled(normalized, 1e3)}
    return [make(cell, figures, "inference-perf", content, started_at="", extra=extra)]


def _statistics(spread: Spread | None) -> dict[str, float | None]:
    """The statistics that are numbers; some versions write `units` among them."""
    numbers = {name: value for name, value in (spread or {}).items() if not isinstance(value, str)}
    return dict(parse(_Statistics, {"values": numbers}).values)


def _mean(*spreads: Spread | None) -> float | None:
    """The mean of the first of these that has one."""
    return next((mean for spread in spreads if (mean := _statistics(spread).get("mean")) is not None), None)


TOOLS = {"inference-perf": Importer(recognises, rows, files=("stage_[0-9]*_lifecycle_metrics.json",), unreadable=unreadable)}
