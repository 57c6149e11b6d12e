"""SGLang's JSON lines: `bench_serving`, `bench_one_batch`, `bench_one_batch_server` and `bench_offline_throughput`.

The one-batch benchmarks run a single batch from start to end, so every request has the same times: the prefill is all requests' TTFT.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from trtllm_results.importers._common import (
    Count,
    FieldError,
    Foreign,
    Importer,
    Measured,
    MeasuredOrZero,
    Rate,
    Text,
    limits_ms,
    make,
    parse,
    ratio,
    required,
    scaled,
    settings_of,
    whole,
)
from trtllm_results.metrics.registry import PERCENTILES
from trtllm_results.record.cell import Cell
from trtllm_results.record.row import Row

LATENCIES = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2e_latency": "e2e"}
SLO_NAMES = {"e2el": "e2e"}
SERVERS = {"vllm": "vllm", "vllm-chat": "vllm", "trt": "tensorrt-llm", "lmdeploy": "lmdeploy", "lmdeploy-chat": "lmdeploy"}
SERVER_SETTINGS = (
    *("dp_size", "ep_size", "attention_backend", "chunked_prefill_size", "max_running_requests", "schedule_policy"),
    *("speculative_algorithm", "disable_radix_cache", "mem_fraction_static", "enable_dp_attention", "disable_cuda_graph"),
)


class ServerInfo(Foreign):
    """Of `/server_info`, where the server gave it: what it was started with."""

    model_path: Text = ""
    tp_size: Count = None
    pp_size: Count = None
    quantization: Text = ""
    kv_cache_dtype: Text = ""
    version: Text = ""


class Serving(Foreign):
    duration: Measured
    completed: Count
    total_input_tokens: MeasuredOrZero
    total_output_tokens: MeasuredOrZero
    request_throughput: Measured = None
    output_throughput: Measured = None
    total_throughput: Measured = None
    request_goodput: MeasuredOrZero = None
    slo_attainment: MeasuredOrZero = None
    backend: Text = ""
    tag: Text = ""
    dataset_name: Text = ""
    request_rate: Rate = None
    max_concurrency: Count = None
    sharegpt_output_len: Count = None
    random_input_len: Count = None
    random_output_len: Count = None
    random_range_ratio: MeasuredOrZero = None
    server_info: ServerInfo | None = None
    latencies: dict[str, Measured] = Field(default_factory=dict)


class OneBatch(Foreign):
    """Of both one-batch benchmarks; `latency` is the server's, `total_latency` the engine's own. Seconds."""

    run_name: Text = ""
    batch_size: Count
    input_len: Count
    output_len: Count
    latency: Measured = None
    total_latency: Measured = None
    prefill_latency: Measured = None
    median_decode_latency: Measured = None
    overall_throughput: Measured = None
    total_output_tokens: Count = None
    last_ttft: Measured = None
    cache_hit_rate: MeasuredOrZero = None


class Offline(Foreign):
    backend: Text = ""
    successful_requests: Count
    total_latency: Measured
    total_input_tokens: Measured
    total_output_tokens: Measured
    request_throughput: Measured = None
    output_throughput: Measured = None
    total_throughput: Measured = None


def _kind(one: Any) -> str:
    names = set(one) if isinstance(one, dict) else set()
    if {"output_throughput", "total_throughput", "duration", "total_input_tokens"} <= names:
        return "serving"
    if {"batch_size", "input_len", "output_len"} <= names and {"prefill_latency", "latency"} & names:
        return "one batch"
    return "offline" if {"successful_requests", "total_latency", "total_input_tokens"} <= names else ""


def recognises(content: Any) -> bool:
    return bool(_kind(content[0] if isinstance(content, list) and content else content))


def rows(content: Any) -> list[Row]:
    readers = {"serving": _serving, "one batch": _one_batch, "offline": _offline}
    made = []
    for number, one in enumerate(content if isinstance(content, list) else [content], start=1):
        kind = _kind(one)
        if not kind:
            raise FieldError(f"result {number} has not the fields of a SGLang benchmark, though the first has")
        made.append(readers[kind](one))
    return made


def _serving(one: dict[str, Any]) -> Row:
    keys = [f"{stat}_{name}_ms" for name in LATENCIES for stat in ("mean", "median", "max", *(f"p{percent}" for percent in PERCENTILES))]
    server = one.get("server_info") if isinstance(one.get("server_info"), dict) else None
    result = parse(Serving, one | {"latencies": {key: one[key] for key in keys if key in one}, "server_info": server})
    completed = required(result.completed, "completed")
    errors = one.get("errors")
    failed = sum(1 for error in errors if error) if isinstance(errors, list) else None  # told with --output-details only
    figures: dict[str, float | None] = {
        "duration_s": result.duration,
        "completed_requests": completed,
        "failed_requests": failed,
        "input_tokens": result.total_input_tokens or None,
        "output_tokens": result.total_output_tokens or None,
        "input_length_mean": ratio(result.total_input_tokens or None, completed),
        "output_length_mean": ratio(result.total_output_tokens or None, completed),
        "requests_per_s": result.request_throughput,
        "output_tokens_per_s": result.output_throughput,
        "total_tokens_per_s": result.total_throughput,
        "goodput_requests_per_s": result.request_goodput,
        "goodput_ratio": result.slo_attainment,
    }
    for theirs, ours in LATENCIES.items():
        figures |= {
            f"{ours}_mean_ms": result.latencies.get(f"mean_{theirs}_ms"),
            f"{ours}_max_ms": result.latencies.get(f"max_{theirs}_ms"),
        }
        figures |= {f"{ours}_p{percent}_ms": result.latencies.get(f"p{percent}_{theirs}_ms") for percent in PERCENTILES}
        figures[f"{ours}_p50_ms"] = result.latencies.get(f"median_{theirs}_ms")
    drawn = result.dataset_name.startswith("random")
    info = result.server_info or ServerInfo()
    started_with = {name: server[name] for name in SERVER_SETTINGS if isinstance(server.get(name), str | int | float)} if server else {}
    settings = started_with | settings_of(
        backend=result.backend,
        dataset=result.dataset_name,
        tag=result.tag,
        sharegpt_output_len=result.sharegpt_output_len,
        random_range_ratio=result.random_range_ratio if drawn else None,
        slo_ms=limits_ms(one.get("goodput_slos_ms"), SLO_NAMES),
    )
    cell = Cell(
        model=info.model_path,
        precision=info.quantization,
        kv_dtype="" if info.kv_cache_dtype == "auto" else info.kv_cache_dtype,
        batch=result.max_concurrency or 0,
        isl=result.random_input_len or 0 if drawn else whole(figures["input_length_mean"]),
        osl=result.random_output_len or 0 if drawn else whole(figures["output_length_mean"]),
        tp=info.tp_size or 1,
        pp=info.pp_size or 1,
        num_requests=int(completed) + (failed or 0),
        request_rate=result.request_rate or 0.0,
        target=SERVERS.get(result.backend, "sglang" if result.backend.startswith("sglang") else "openai"),
        target_version=info.version,
        settings=settings,
    )
    return make(cell, figures, "sglang", one, started_at="")


def _one_batch(one: dict[str, Any]) -> Row:
    result = parse(OneBatch, one)
    batch, prompt, output = (int(required(getattr(result, name), name)) for name in ("batch_size", "input_len", "output_len"))
    seconds = required(result.total_latency or result.latency, "latency")
    produced = result.total_output_tokens or batch * output
    prefill_ms = scaled(result.prefill_latency, 1e3)
    tpot_ms = (seconds * 1e3 - prefill_ms) / (output - 1) if prefill_ms is not None and output > 1 else None
    figures: dict[str, float | None] = {
        "duration_s": seconds,
        "completed_requests": batch,
        "input_tokens": batch * prompt,
        "output_tokens": produced,
        "input_length_mean": prompt,
        "output_length_mean": produced / batch if batch else None,
        "requests_per_s": batch / seconds,
        "output_tokens_per_s": produced / seconds,
        "total_tokens_per_s": result.overall_throughput,
        "e2e_mean_ms": seconds * 1e3 if result.total_latency else None,
        "e2e_max_ms": seconds * 1e3,
        "ttft_mean_ms": prefill_ms,
        "ttft_p50_ms": prefill_ms,
        "ttft_max_ms": prefill_ms or scaled(result.last_ttft, 1e3),
        "tpot_mean_ms": tpot_ms,
        "itl_p50_ms": scaled(result.median_decode_latency, 1e3),
        "prefix_hit_ratio": result.cache_hit_rate,
    }
    mode = "one batch" if result.total_latency else "one batch, server"
    settings = settings_of(mode=mode, run_name=result.run_name, cache_hit_rate=round(result.cache_hit_rate or 0.0, 1) or None)
    cell = Cell(model="", precision="", batch=batch, isl=prompt, osl=output, num_requests=batch, target="sglang", settings=settings)
    return make(cell, figures, "sglang", one, started_at="")


def _offline(one: dict[str, Any]) -> Row:
    result = parse(Offline, one)
    requests = required(result.successful_requests, "successful_requests")
    figures: dict[str, float | None] = {
        "duration_s": result.total_latency,
        "completed_requests": requests,
        "input_tokens": result.total_input_tokens,
        "output_tokens": result.total_output_tokens,
        "input_length_mean": ratio(result.total_input_tokens, requests),
        "output_length_mean": ratio(result.total_output_tokens, requests),
        "requests_per_s": result.request_throughput,
        "output_tokens_per_s": result.output_throughput,
        "total_tokens_per_s": result.total_throughput,
    }
    cell = Cell(
        model="",
        precision="",
        batch=0,
        isl=whole(figures["input_length_mean"]),
        osl=whole(figures["output_length_mean"]),
        num_requests=int(requests),
        target="sglang",
        settings=settings_of(mode="offline throughput", backend=result.backend),
    )
    return make(cell, figures, "sglang", one, started_at="")


TOOLS = {"sglang": Importer(recognises, rows)}
