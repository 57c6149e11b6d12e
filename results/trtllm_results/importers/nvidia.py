"""`trtllm-bench ... --report_json`, NVIDIA's and ours, and the same report as NVIDIA's prints it at the end of its log.

Ours carries its whole row under `record`, which is taken as it is. A log may hold several reports; versions up to 0.16 printed fewer lines
and seconds where later ones have milliseconds. Its issue rate is left out: it is a mean time in nanoseconds times 1e9, and no rate.
"""

from __future__ import annotations

import re
from typing import Any

from trtllm_results.importers._common import (
    Count,
    FieldError,
    Foreign,
    Importer,
    Measured,
    Text,
    make,
    number_of,
    parse,
    ratio,
    required,
    scaled,
    settings_of,
    whole,
)
from trtllm_results.precision_names import our_precision
from trtllm_results.record.cell import Cell
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Row

PERCENT = ("p50", "p90", "p95", "p99")
SAME_AS_NONE = ("", "none", "no_quant")


class Engine(Foreign):
    model_config = Foreign.model_config | {"protected_namespaces": ()}

    model: Text
    version: Text = ""
    backend: Text = ""
    dtype: Text = ""
    quantization: Text = ""
    kv_cache_dtype: Text = ""


class World(Foreign):
    tp_size: Count = None
    pp_size: Count = None
    ep_size: Count = None
    max_batch_size: Count = None
    max_num_tokens: Count = None
    scheduling_policy: Text = ""
    kv_cache_percentage: Measured = None


class Requests(Foreign):
    num_requests: Count
    avg_num_concurrent_requests: Measured = None
    avg_input_length: Measured
    avg_output_length: Measured


class Percentiles(Foreign):
    p50: Measured = None
    p90: Measured = None
    p95: Measured = None
    p99: Measured = None
    maximum: Measured = None


class Performance(Foreign):
    total_latency_ms: Measured
    avg_request_latency_ms: Measured = None
    request_throughput_req_s: Measured
    system_output_throughput_tok_s: Measured
    system_total_throughput_tok_s: Measured = None
    request_latency_percentiles_ms: Percentiles | None = None


class Streaming(Foreign):
    avg_ttft_ms: Measured = None
    avg_tpot_ms: Measured = None
    token_output_speed_tok_s: Measured = None
    ttft_percentiles: Percentiles | None = None
    tpot_percentiles: Percentiles | None = None


class Machine(Foreign):
    name: Text = ""


class Energy(Foreign):
    total_energy_j: Measured = None


class Decoding(Foreign):
    mode: Text = ""


class Report(Foreign):
    engine: Engine
    world_info: World
    request_info: Requests
    performance: Performance
    streaming_metrics: Streaming | None = None
    machine: Machine | None = None
    energy: Energy | None = None
    decoding_stats: Decoding | None = None


PRINTED = {
    "engine": {"Model": "model", "Dtype": "dtype", "KV Cache Dtype": "kv_cache_dtype", "Quantization": "quantization"}
    | dict.fromkeys(("TensorRT LLM Version", "TensorRT-LLM Version"), "version"),
    "world_info": {
        "TP Size": "tp_size",
        "PP Size": "pp_size",
        "EP Size": "ep_size",
        "Max Runtime Batch Size": "max_batch_size",
        "Max Runtime Tokens": "max_num_tokens",
        "Scheduling Policy": "scheduling_policy",
    },
    "request_info": {
        "Number of requests": "num_requests",
        "Number of concurrent requests": "avg_num_concurrent_requests",
        "Average Input Length (tokens)": "avg_input_length",
        "Average Output Length (tokens)": "avg_output_length",
    },
    "performance": {
        "Request Throughput (req/sec)": "request_throughput_req_s",
        "Total Token Throughput (tokens/sec)": "system_total_throughput_tok_s",
        "Total Latency (ms)": "total_latency_ms",
        "Average request latency (ms)": "avg_request_latency_ms",
    }
    | dict.fromkeys(("Total Output Throughput (tokens/sec)", "Token Throughput (tokens/sec)"), "system_output_throughput_tok_s"),
    "streaming_metrics": {
        "Average time-to-first-token [TTFT] (ms)": "avg_ttft_ms",
        "Average time-per-output-token [TPOT] (ms)": "avg_tpot_ms",
        "Per User Output Speed (tps/user)": "token_output_speed_tok_s",
    },
}
"""Lines of the printed report by section of the JSON, and its field there."""
SPREADS = {
    "TPOT": ("streaming_metrics", "tpot_percentiles"),
    "TTFT": ("streaming_metrics", "ttft_percentiles"),
    "Latency": ("performance", "request_latency_percentiles_ms"),
}
BEGINS = re.compile(r"^= (?:ENGINE DETAILS|PYTORCH BACKEND)\b", re.MULTILINE)
TEXTS = ("model", "dtype", "kv_cache_dtype", "quantization", "version", "scheduling_policy")


def of_log(text: str) -> dict[str, Any] | None:
    """The reports of a log, in the form of the JSON; None for any other text."""
    if "Request Throughput (req/sec):" not in text or not BEGINS.search(text):
        return None
    begins = [match.start() for match in BEGINS.finditer(text)]
    parts = [text[begin:end] for begin, end in zip(begins, [*begins[1:], len(text)], strict=True)]
    return {"table": "nvidia", "reports": [_printed(part) for part in parts]}


def _printed(text: str) -> dict[str, Any]:
    report: dict[str, Any] = {name: {} for name in PRINTED if name != "streaming_metrics"}
    for name, value in re.findall(r"^ *([^:\n]+?) *:[ \t]+(\S.*?) *$", text, re.MULTILINE):
        for section, fields in PRINTED.items():
            if name in fields and value != "None":
                report.setdefault(section, {})[fields[name]] = value if fields[name] in TEXTS else number_of(value)
        if name == "Total Latency (seconds)":
            seconds = number_of(value)
            report["performance"]["total_latency_ms"] = seconds * 1e3 if isinstance(seconds, float) else seconds
        spread = re.fullmatch(r"\[(\w+)\] (\w+)", name)
        if spread and spread[1] in SPREADS:
            section, field = SPREADS[spread[1]]
            report.setdefault(section, {}).setdefault(field, {})[spread[2].lower()] = number_of(value)
    if machine := re.search(r"^(.+), memory .*$", text, re.MULTILINE):
        report["machine"] = {"name": machine[1]}
    return report


def recognises(content: Any) -> bool:
    if not isinstance(content, dict):
        return False
    return {"engine", "world_info", "performance"} <= set(content) or content.get("table") == "nvidia"


def unreadable(content: Any) -> str:
    """What a file of this tool is that holds no result to import, or ''."""
    first = content[0] if isinstance(content, list) and content else content
    if isinstance(first, dict) and {"num_input_tokens", "start_timestamp", "end_timestamp", "decode_iteration"} <= set(first):
        return "trtllm-bench's record of single requests; import what --report_json writes"
    return ""


def rows(content: Any) -> list[Row]:
    if content.get("table") == "nvidia":
        return [_foreign(report) for report in content["reports"]]
    return [own(content["record"])] if isinstance(content.get("record"), dict) else [_foreign(content)]


def own(record: dict[str, Any]) -> Row:
    """The row under `record` in a report of ours. Raises `FieldError`."""
    flat = {name: value for name, value in record.items() if name not in ("figures", "warnings")}
    try:
        row = Row.from_flat(flat | dict(record["figures"]))
        return Row(**{**{name: getattr(row, name) for name in row.__dataclass_fields__}, "warnings": tuple(record.get("warnings", ()))})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FieldError(f"lacks '{error.args[0]}'" if isinstance(error, KeyError) else f"record is not a row of ours ({error})") from None


def _foreign(content: dict[str, Any]) -> Row:
    report = parse(Report, content)
    extra = {"concurrent_requests_mean": report.request_info.avg_num_concurrent_requests}
    gpu = report.machine.name if report.machine else ""
    return make(_cell(report), _figures(report), "nvidia", content, started_at="", extra=extra, environment=Environment(gpu=gpu))


def _requests(report: Report) -> int:
    return int(required(report.request_info.num_requests, "request_info.num_requests"))


def _figures(report: Report) -> dict[str, float | None]:
    info, speed, streaming = report.request_info, report.performance, report.streaming_metrics or Streaming()
    requests = _requests(report)
    tokens_in, tokens_out = (scaled(length, requests) for length in (info.avg_input_length, info.avg_output_length))
    seconds = scaled(speed.total_latency_ms, 1e-3)
    energy = report.energy.total_energy_j if report.energy else None
    figures: dict[str, float | None] = {
        "duration_s": seconds,
        "completed_requests": requests,
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "input_length_mean": info.avg_input_length,
        "output_length_mean": info.avg_output_length,
        "requests_per_s": speed.request_throughput_req_s,
        "output_tokens_per_s": speed.system_output_throughput_tok_s,
        "total_tokens_per_s": speed.system_total_throughput_tok_s
        or (ratio(tokens_in + tokens_out, seconds) if tokens_in and tokens_out else None),
        "e2e_mean_ms": speed.avg_request_latency_ms,
        "ttft_mean_ms": streaming.avg_ttft_ms,
        "tpot_mean_ms": streaming.avg_tpot_ms,
        "output_tokens_per_s_per_user": streaming.token_output_speed_tok_s,
        "energy_j": energy,
        "energy_per_output_token_j": ratio(energy, tokens_out),
    }
    spreads = {"e2e": speed.request_latency_percentiles_ms, "ttft": streaming.ttft_percentiles, "tpot": streaming.tpot_percentiles}
    for name, spread in spreads.items():
        for percent in PERCENT:
            figures[f"{name}_{percent}_ms"] = getattr(spread, percent, None)
        figures[f"{name}_max_ms"] = getattr(spread, "maximum", None)
    return figures


def _cell(report: Report) -> Cell:
    engine, world, info = report.engine, report.world_info, report.request_info
    return Cell(
        model=engine.model,
        precision=_precision(engine),
        kv_dtype="" if engine.kv_cache_dtype.lower() in SAME_AS_NONE else engine.kv_cache_dtype.lower(),
        batch=world.max_batch_size or 0,
        isl=whole(info.avg_input_length),
        osl=whole(info.avg_output_length),
        tp=world.tp_size or 1,
        pp=world.pp_size or 1,
        num_requests=_requests(report),
        target="tensorrt-llm",
        target_version=engine.version,
        settings=settings_of(
            max_num_tokens=world.max_num_tokens,
            scheduling_policy=world.scheduling_policy,
            ep=world.ep_size if world.ep_size not in (None, 1) else None,
            kv_cache_percentage=world.kv_cache_percentage,
            backend=engine.backend,
            streaming=True if report.streaming_metrics else None,
            speculative=report.decoding_stats.mode if report.decoding_stats else None,
        ),
    )


def _precision(engine: Engine) -> str:
    quantization = engine.quantization.lower()
    if quantization not in SAME_AS_NONE:
        return quantization
    return our_precision(engine.dtype)


TOOLS = {"nvidia": Importer(recognises, rows, unreadable=unreadable, of_text=of_log)}
