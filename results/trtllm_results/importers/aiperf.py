"""AIPerf's `profile_export_aiperf.json`. Its inter token latency is (E2E - TTFT)/(N - 1), one a request: here TPOT."""

from __future__ import annotations

from typing import Any

from trtllm_results.importers._common import make
from trtllm_results.metrics.registry import PERCENTILES
from trtllm_results.record.row import Cell, Row

LATENCIES = {"time_to_first_token": "ttft", "inter_token_latency": "tpot", "request_latency": "e2e"}


def recognises(content: Any) -> bool:
    return isinstance(content, dict) and "request_latency" in content and ("aiperf_version" in content or "input_config" in content)


def _of(content: dict[str, Any], name: str, field: str = "avg") -> float | None:
    entry = content.get(name)
    value = entry.get(field) if isinstance(entry, dict) else None
    return None if value is None else float(value)


def rows(content: Any) -> list[Row]:
    completed = _of(content, "request_count")
    if completed is None:
        raise KeyError("request_count")
    figures: dict[str, Any] = {
        "duration_s": _of(content, "benchmark_duration"),
        "completed_requests": completed,
        "failed_requests": _of(content, "error_request_count") or 0.0,
        "input_tokens": _of(content, "total_isl"),
        "output_tokens": _of(content, "total_osl") or _of(content, "total_output_tokens"),
        "input_length_mean": _of(content, "input_sequence_length"),
        "output_length_mean": _of(content, "output_sequence_length"),
        "requests_per_s": _of(content, "request_throughput"),
        "output_tokens_per_s": _of(content, "output_token_throughput"),
        "total_tokens_per_s": _of(content, "total_token_throughput"),
        "output_tokens_per_s_per_user": _of(content, "output_token_throughput_per_user"),
        "goodput_requests_per_s": _of(content, "goodput"),
    }
    for theirs, ours in LATENCIES.items():
        figures |= {f"{ours}_mean_ms": _of(content, theirs), f"{ours}_max_ms": _of(content, theirs, "max")}
        figures |= {f"{ours}_p{percent}_ms": _of(content, theirs, f"p{percent}") for percent in PERCENTILES}
    config = content.get("input_config") or {}
    phase: dict[str, Any] = next(iter(config.get("phases") or []), {})
    models = [item["name"] for item in (config.get("models") or {}).get("items", [])] or config.get("endpoint", {}).get("model_names", [])
    cell = Cell(
        model=str(models[0]) if models else "",
        precision="",
        batch=int(phase.get("concurrency") or config.get("loadgen", {}).get("concurrency") or 0),
        isl=round(figures["input_length_mean"] or 0),
        osl=round(figures["output_length_mean"] or 0),
        num_requests=int(completed),
        request_rate=float(phase.get("rate") or phase.get("request_rate") or 0),
        target="openai",
    )
    urls = (config.get("endpoint") or {}).get("urls") or []
    version = {"tool_version": content.get("aiperf_version", ""), "url": urls[0] if urls else ""}
    return [make(cell, figures, "aiperf", content, started_at=str(content.get("start_time", "")), extra=version)]
