"""`vllm bench serve --save-result` (and `--append-result`: JSON lines), and `vllm bench throughput --output-json`."""

from __future__ import annotations

import math
from typing import Any

from trtllm_results.importers._common import make
from trtllm_results.metrics.registry import PERCENTILES
from trtllm_results.record.row import Cell, Row

NAMES = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "e2e"}


def recognises(content: Any) -> bool:
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return False
    serve = {"output_throughput", "total_input_tokens", "duration"} <= set(first)
    return serve or {"elapsed_time", "num_requests", "total_num_tokens", "tokens_per_second"} <= set(first)


def rows(content: Any) -> list[Row]:
    return [_serve(one) if "output_throughput" in one else _offline(one) for one in (content if isinstance(content, list) else [content])]


def _serve(one: dict[str, Any]) -> Row:
    completed = int(one["completed"])
    rate = float(one.get("request_rate") or 0) if one.get("request_rate") != "inf" else math.inf
    tokens_in, tokens_out = float(one["total_input_tokens"]), float(one["total_output_tokens"])
    figures: dict[str, Any] = {
        "duration_s": one["duration"],
        "completed_requests": completed,
        "failed_requests": one.get("failed", int(one.get("num_prompts", completed)) - completed),
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "input_length_mean": tokens_in / max(completed, 1),
        "output_length_mean": tokens_out / max(completed, 1),
        "requests_per_s": one["request_throughput"],
        "output_tokens_per_s": one["output_throughput"],
        "total_tokens_per_s": one["total_token_throughput"],
        "goodput_requests_per_s": one.get("request_goodput"),
    }
    for theirs, ours in NAMES.items():
        figures[f"{ours}_mean_ms"] = one.get(f"mean_{theirs}_ms")
        figures[f"{ours}_p50_ms"] = one.get(f"median_{theirs}_ms")
        for percent in PERCENTILES:
            if f"p{percent}_{theirs}_ms" in one:
                figures[f"{ours}_p{percent}_ms"] = one[f"p{percent}_{theirs}_ms"]
    cell = Cell(
        model=str(one.get("model_id", "")),
        precision="",
        batch=int(one.get("max_concurrency") or 0),
        isl=round(tokens_in / max(completed, 1)),
        osl=round(tokens_out / max(completed, 1)),
        num_requests=int(one.get("num_prompts", completed)),
        request_rate=0.0 if math.isinf(rate) else rate,
        target="vllm",
    )
    return make(cell, figures, "vllm", one, started_at=str(one.get("date", "")))


def _offline(one: dict[str, Any]) -> Row:
    figures = {
        "duration_s": one["elapsed_time"],
        "completed_requests": one["num_requests"],
        "requests_per_s": one["requests_per_second"],
        "total_tokens_per_s": one["tokens_per_second"],
    }
    cell = Cell(model="", precision="", batch=0, isl=0, osl=0, num_requests=int(one["num_requests"]), target="vllm")
    return make(cell, figures, "vllm", one, started_at="")
