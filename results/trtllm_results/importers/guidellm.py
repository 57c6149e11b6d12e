"""GuideLLM's benchmark report JSON: one row a benchmark (a rate or concurrency level)."""

from __future__ import annotations

import datetime
from typing import Any

from trtllm_results.importers._common import make
from trtllm_results.metrics.registry import PERCENTILES
from trtllm_results.record.row import Cell, Row

LATENCIES = {"time_to_first_token_ms": ("ttft", 1.0), "inter_token_latency_ms": ("tpot", 1.0), "request_latency": ("e2e", 1e3)}
"""Theirs -> ours, and the factor to milliseconds. Their inter token latency is a request's mean gap, weighted by its gaps."""


def recognises(content: Any) -> bool:
    benchmarks = content.get("benchmarks") if isinstance(content, dict) else None
    return bool(benchmarks) and isinstance(benchmarks, list) and "time_to_first_token_ms" in benchmarks[0].get("metrics", {})


def rows(content: Any) -> list[Row]:
    version = content.get("metadata", {}).get("guidellm_version", "")
    return [_row(one, version) for one in content["benchmarks"]]


def _row(one: dict[str, Any], version: str) -> Row:
    metrics, config = one["metrics"], one.get("config", {})
    totals = metrics["request_totals"]
    seconds = float(one["duration"])
    tokens_in, tokens_out = (metrics[name]["successful"] for name in ("prompt_token_count", "output_token_count"))
    figures: dict[str, Any] = {
        "duration_s": seconds,
        "completed_requests": totals["successful"],
        "failed_requests": totals["errored"] + totals["incomplete"],
        "input_tokens": tokens_in["total_sum"],
        "output_tokens": tokens_out["total_sum"],
        "input_length_mean": tokens_in["mean"],
        "output_length_mean": tokens_out["mean"],
        "requests_per_s": totals["successful"] / seconds,
        "output_tokens_per_s": tokens_out["total_sum"] / seconds,
        "total_tokens_per_s": (tokens_in["total_sum"] + tokens_out["total_sum"]) / seconds,
    }
    for theirs, (ours, factor) in LATENCIES.items():
        spread = metrics[theirs]["successful"]
        figures |= {f"{ours}_mean_ms": spread["mean"] * factor, f"{ours}_max_ms": spread["max"] * factor}
        figures |= {f"{ours}_p{percent}_ms": spread["percentiles"][f"p{percent}"] * factor for percent in PERCENTILES}
    strategy = config.get("strategy", {})
    cell = Cell(
        model=str(config.get("backend", {}).get("model") or ""),
        precision="",
        batch=int(strategy.get("streams") or 0),
        isl=round(tokens_in["mean"]),
        osl=round(tokens_out["mean"]),
        num_requests=int(totals["total"]),
        request_rate=float(strategy.get("rate") or 0),
        target="openai",
    )
    started = (
        datetime.datetime.fromtimestamp(one["start_time"], datetime.UTC).isoformat(timespec="seconds") if one.get("start_time") else ""
    )
    extra = {
        "tool_version": version,
        "url": config.get("backend", {}).get("target", ""),
        "time_per_output_token_mean_ms": metrics.get("time_per_output_token_ms", {}).get("successful", {}).get("mean"),
    }
    return make(cell, figures, "guidellm", one, started_at=started, extra=extra)
