"""AIPerf's `profile_export_aiperf.json` and `.csv`, and its records, `profile_export.jsonl`; GenAI-Perf's summary, JSON and CSV.

AIPerf keeps the form of GenAI-Perf, which it replaced: an object a metric, with its unit and statistics. Their inter token latency is
(E2E - TTFT)/(N - 1), one per request: here TPOT. Configurations differ by tool and version, so settings are looked up under each one's
names. GenAI-Perf writes times to first token even where nothing was streamed (they are whole latencies then), so those are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from trtllm_results.importers._common import (
    SECRET,
    Count,
    FieldError,
    Foreign,
    Importer,
    Measured,
    MeasuredOrZero,
    Nanoseconds,
    Rate,
    Text,
    epoch_time,
    iso_time,
    limits_ms,
    make,
    parse,
    ratio,
    scaled,
    settings_of,
    shorten,
    whole,
    without_user,
)
from trtllm_results.metrics.registry import PERCENTILES
from trtllm_results.record.cell import Cell
from trtllm_results.record.row import Row

LATENCIES = {"time_to_first_token": "ttft", "inter_token_latency": "tpot", "request_latency": "e2e"}
STREAMED = ("ttft", "tpot")
TO_MS = {"ms": 1.0, "sec": 1e3, "s": 1e3, "seconds": 1e3, "us": 1e-3, "ns": 1e-6}
METRICS = (
    *LATENCIES,
    *("request_count", "error_request_count", "benchmark_duration", "total_isl", "total_osl", "total_output_tokens"),
    *("input_sequence_length", "output_sequence_length", "request_throughput", "output_token_throughput", "total_token_throughput"),
    *("output_token_throughput_per_user", "goodput", "request_goodput"),
)
SERVERS = {"vllm": "vllm", "tensorrtllm": "tensorrt-llm", "tensorrtllm_engine": "tensorrt-llm"}


class Metric(Foreign):
    """Statistics of one metric, in its unit."""

    unit: Text = ""
    avg: MeasuredOrZero = None
    max: Measured = None
    sum: Measured = None
    p50: Measured = None
    p90: Measured = None
    p95: Measured = None
    p99: Measured = None


class Report(Foreign):
    aiperf_version: Text = ""
    start_time: Text = ""
    was_cancelled: bool | None = None
    is_complete: bool | None = None
    incomplete_reason: Text = ""
    input_config: dict[str, Any] = Field(default_factory=dict)
    metrics: dict[str, Metric] = Field(default_factory=dict)


def recognises(content: Any) -> bool:
    """AIPerf's summary, as JSON or CSV, or its records."""
    if not isinstance(content, dict):
        return _is_record(content[0]) if isinstance(content, list) and content else False
    if _is_record(content) or content.get("table") == "aiperf":
        return True
    return "aiperf_version" in content or (_is_summary(content) and not recognises_genai_perf(content))


def recognises_genai_perf(content: Any) -> bool:
    """GenAI-Perf names the goodput and counts otherwise, and its configuration has keys that AIPerf's has not."""
    if not isinstance(content, dict) or "aiperf_version" in content:
        return False
    if content.get("table") == "genai-perf":
        return True
    config = content.get("input_config")
    own = {"formatted_model_name", "service_kind", "perf_analyzer", "model", "model_names", "subcommand"}
    return _is_summary(content) and isinstance(config, dict) and bool(own & set(config))


def _is_summary(content: dict[str, Any]) -> bool:
    return "input_config" in content and bool({"request_latency", "error_request_count", "request_throughput"} & set(content))


def _is_record(one: Any) -> bool:
    return isinstance(one, dict) and isinstance(one.get("metadata"), dict) and "request_start_ns" in one["metadata"] and "metrics" in one


def unreadable(content: Any) -> str:
    """What a file of these tools is that holds no result to import, or ''."""
    first = content[0] if isinstance(content, list) and content else content
    if not isinstance(first, dict):
        return ""
    if isinstance(first.get("experiments"), list) and {"version", "service_kind"} & set(first):
        return "Perf Analyzer's raw record of requests; import profile_export_genai_perf.json, which GenAI-Perf writes beside it"
    if "timeslices" in first:
        return "AIPerf's metrics by time slice; import profile_export_aiperf.json beside it"
    if isinstance(first.get("metadata"), dict) and "request_start_ns" in first["metadata"]:
        return "AIPerf's raw requests and responses; import profile_export_aiperf.json beside it"
    if {"aggregation_type", "num_profile_runs"} & (set(first) | set(first["metadata"] if isinstance(first.get("metadata"), dict) else ())):
        return "AIPerf's summary over several runs; import the profile_export_aiperf.json of each run"
    if isinstance(first.get("data"), list) and first["data"] and isinstance(first["data"][0], dict) and "payloads" in first["data"][0]:
        return "the requests that AIPerf sent; import profile_export_aiperf.json beside it"
    return ""


def rows(content: Any) -> list[Row]:
    if isinstance(content, list) or _is_record(content):
        return [_from_records(content if isinstance(content, list) else [content])]
    return [_from_summary(content, "aiperf")]


def rows_genai_perf(content: Any) -> list[Row]:
    return [_from_summary(content, "genai-perf")]


def of_csv(lines: Sequence[list[str]]) -> dict[str, Any] | None:
    """The metrics of either tool's CSV, which has a table of statistics, a blank line, and a table of single values; None for another's.

    Their names are the JSON's with blanks and capitals, and the unit behind: `Time To First Token (ms)`. Raises `FieldError`.
    """
    if lines[0][:2] != ["Metric", "avg"]:
        return None
    metrics: dict[str, Any] = {}
    header: list[str] = []
    for line in lines:
        if not any(line):
            header = []
        elif not header or line[0] == "Metric":
            header = line
        elif header[0] == "Metric" and len(line) <= len(header):
            name, unit = re.fullmatch(r"(.*?)(?: \(([^()]*)\))?", line[0]).groups()  # type: ignore[union-attr]
            key = name.lower().replace(" ", "_")
            key = {"total_input_sequence_length": "total_isl", "total_output_sequence_length": "total_osl"}.get(key, key)
            values = {("avg" if stat == "Value" else stat): _cell(line[0], text) for stat, text in zip(header[1:], line[1:], strict=False)}
            metrics[key] = {"unit": unit or "", **values}
    return {"table": "genai-perf" if lines[0][4:5] == ["p99"] else "aiperf", **metrics}


def _cell(name: str, text: str) -> float | None:
    if text in ("", "N/A"):
        return None
    try:
        return float(text.replace(",", ""))
    except ValueError:
        raise FieldError(f"{name} is {text!r:.60}; it must be a number") from None


def _from_summary(content: dict[str, Any], tool: str) -> Row:
    report = parse(Report, content | {"metrics": {name: content[name] for name in METRICS if content.get(name) is not None}})
    config = report.input_config
    metric = {name: report.metrics.get(name, Metric()) for name in METRICS}
    completed, rate = metric["request_count"].avg, metric["request_throughput"].avg or None
    seconds = _milliseconds("benchmark_duration", metric["benchmark_duration"], "avg", "sec")
    prompt, output = metric["input_sequence_length"].avg or None, metric["output_sequence_length"].avg or None
    failed = metric["error_request_count"].avg
    if completed is None and failed:
        completed = 0.0
    goodput = metric["goodput"] if "goodput" in report.metrics else metric["request_goodput"]
    figures: dict[str, float | None] = {
        "duration_s": scaled(seconds, 1e-3) or ratio(completed, rate),
        "completed_requests": completed,
        "failed_requests": failed if failed is not None or tool == "genai-perf" else 0.0,
        "input_tokens": _total(metric["total_isl"], metric["input_sequence_length"], completed),
        "output_tokens": _total(metric["total_osl"], metric["output_sequence_length"], completed) or metric["total_output_tokens"].avg,
        "input_length_mean": prompt,
        "output_length_mean": output,
        "requests_per_s": rate,
        "output_tokens_per_s": metric["output_token_throughput"].avg or None,
        "total_tokens_per_s": metric["total_token_throughput"].avg or None,
        "output_tokens_per_s_per_user": metric["output_token_throughput_per_user"].avg or None,
        "goodput_requests_per_s": goodput.avg if _asked_goodput(config) or goodput.avg else None,
    }
    streamed = _find(config, "endpoint.streaming", "streaming") is not False or tool == "aiperf"
    for theirs, ours in LATENCIES.items():
        if ours in STREAMED and not streamed:
            continue
        for stat, name in (("avg", "mean"), ("max", "max"), *((f"p{percent}", f"p{percent}") for percent in PERCENTILES)):
            figures[f"{ours}_{name}_ms"] = _milliseconds(theirs, metric[theirs], stat, "ms")
    if not streamed:
        figures["output_tokens_per_s_per_user"] = None
    warnings = []
    if report.was_cancelled:
        warnings.append("the run was cancelled before its end")
    if report.is_complete is False:
        warnings.append(f"the run is not complete: {report.incomplete_reason or 'the tool gives no reason'}")
    url = _find(config, "endpoint.urls", "endpoint.url", "u", "url")
    return make(
        _cell_of(config, figures, tool),
        figures,
        tool,
        content,
        started_at=iso_time(report.start_time),
        warnings=warnings,
        extra={
            "tool_version": report.aiperf_version,
            "url": without_user(url[0] if isinstance(url, list) and url else url),
            "start_time": report.start_time,
        },
    )


def _milliseconds(name: str, metric: Metric, stat: str, default: str) -> float | None:
    """A statistic of a time in milliseconds; a placeholder (0) is absent. Raises `FieldError` for a unit that is not a time."""
    unit = metric.unit or default
    if unit not in TO_MS:
        raise FieldError(f"{name}.unit is {shorten(unit)}; it must be one of {', '.join(TO_MS)}")
    return scaled(getattr(metric, stat) or None, TO_MS[unit])


def _total(total: Metric, per_request: Metric, completed: float | None) -> float | None:
    if total.avg or per_request.sum:
        return total.avg or per_request.sum
    return per_request.avg * completed if per_request.avg and completed else None


def _cell_of(config: dict[str, Any], figures: Mapping[str, float | None], tool: str) -> Cell:
    phases = [phase for phase in config.get("phases") or [] if isinstance(phase, dict)] if isinstance(config.get("phases"), list) else []
    phase = next((phase for phase in phases if "warmup" not in (phase.get("kind"), phase.get("name"))), {})
    load = {
        "concurrency": phase.get("concurrency")
        or _find(config, "loadgen.concurrency", "perf_analyzer.stimulus.concurrency", "concurrency"),
        "rate": phase.get("rate")
        or phase.get("request_rate")
        or _find(config, "loadgen.request_rate", "perf_analyzer.stimulus.request_rate", "request_rate"),
    }
    asked = parse(_Load, load)
    names = _find(config, "models.items", "endpoint.model_names", "model_names", "formatted_model_name", "model")
    first = names[0] if isinstance(names, list) and names else names
    model = first.get("name") if isinstance(first, dict) else first
    server = str(_find(config, "endpoint.backend", "backend") or "")
    kind = _find(config, "endpoint.service_kind", "service_kind")
    return Cell(
        model=str(model or ""),
        precision="",
        batch=asked.concurrency or 0,
        isl=whole(figures["input_length_mean"]),
        osl=whole(figures["output_length_mean"]),
        num_requests=whole(figures["completed_requests"]) + whole(figures["failed_requests"]),
        request_rate=asked.rate or 0.0,
        target=SERVERS.get(server, "openai")
        if kind in ("triton", "tensorrtllm_engine") or (tool == "genai-perf" and server == "vllm")
        else "openai",
        settings=_settings(config, phase) | settings_of(slo_ms=limits_ms(_asked_goodput(config), LATENCIES)),
    )


class _Load(Foreign):
    concurrency: Count = None
    rate: Rate = None


LOAD = ("type", "concurrency", "rate", "request_rate_mode", "arrival_pattern", "burstiness", "smoothness", "concurrency_ramp", "rate_ramp")
WHERE = (
    *("endpoint.type", "endpoint.streaming", "endpoint.backend", "endpoint.service_kind", "endpoint.extra", "endpoint_type", "streaming"),
    *("backend", "service_kind", "loadgen.request_rate_mode", "loadgen.arrival_pattern", "loadgen.fixed_schedule", "input", "datasets"),
    *("loadgen.request_cancellation_rate", "loadgen.request_cancellation_delay"),
    *("input_dataset", "synthetic_input_tokens_mean", "synthetic_input_tokens_stddev", "output_tokens_mean", "output_tokens_stddev"),
    *("extra_inputs", "perf_analyzer.stimulus", "request_rate_mode", "prompt_source", "batch_size_text", "num_dataset_entries"),
)
LEFT_OUT = re.compile(r"key|(^|\.)(audio|image|video|random_seed|artifact\w*)(\.|$)", re.IGNORECASE)


def _settings(config: dict[str, Any], phase: dict[str, Any]) -> dict[str, Any]:
    """What of a configuration can change a text benchmark's result, flat; nothing that may be a credential."""
    chosen = {name: _find(config, name) for name in WHERE}
    flat = dict(_flatten({name: value for name, value in chosen.items() if value is not None}))
    flat |= {f"load.{name}": phase[name] for name in LOAD if isinstance(phase.get(name), str | int | float)}
    return {
        name: value for name, value in flat.items() if not LEFT_OUT.search(name) and not SECRET.search(name) and value not in ("", None)
    }


def _flatten(values: Any, prefix: str = "", depth: int = 6) -> Iterator[tuple[str, Any]]:
    pairs = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in pairs:
        name = f"{prefix}{key}"
        if isinstance(value, dict | list):
            if depth:
                yield from _flatten(value, f"{name}.", depth - 1)
        else:
            yield name, value


def _asked_goodput(config: dict[str, Any]) -> Any:
    """The limits that were asked for, if any."""
    return _find(config, "input.goodput", "goodput", "slos")


def _find(config: dict[str, Any], *paths: str) -> Any:
    """The first of some dotted paths that the configuration has a value at."""
    for path in paths:
        at: Any = config
        for part in path.split("."):
            at = at.get(part) if isinstance(at, dict) else None
        if at is not None:
            return at
    return None


class _Value(Foreign):
    value: MeasuredOrZero
    unit: Text = ""


class _Metadata(Foreign):
    request_start_ns: Nanoseconds
    request_end_ns: Nanoseconds
    benchmark_phase: Text = "profiling"
    was_cancelled: bool | None = None


class Record(Foreign):
    """One request of `profile_export.jsonl`."""

    metadata: _Metadata
    metrics: dict[str, Any] = Field(default_factory=dict)
    error: Any = None


def _from_records(content: list[Any]) -> Row:
    """One row of AIPerf's records: its figures by linear interpolation, as AIPerf's own summary has them."""
    records = []
    for number, one in enumerate(content, start=1):
        try:
            records.append(parse(Record, one))
        except FieldError as error:
            raise FieldError(f"record {number}: {error}") from None
    records = [record for record in records if record.metadata.benchmark_phase == "profiling"]
    good = [record for record in records if record.error is None and not record.metadata.was_cancelled]
    starts, ends = ([getattr(record.metadata, name) for record in good] for name in ("request_start_ns", "request_end_ns"))
    seconds = (max(ends) - min(starts)) / 1e9 if good else None
    values = {name: _values(good, name) for name in (*LATENCIES, "input_sequence_length", "output_sequence_length")}
    tokens_in, tokens_out = values["input_sequence_length"], values["output_sequence_length"]
    total_in, total_out = (float(part.sum()) if len(part) else None for part in (tokens_in, tokens_out))
    per_user = 1e3 / values["inter_token_latency"] if len(values["inter_token_latency"]) else np.empty(0)
    figures: dict[str, float | None] = {
        "duration_s": seconds,
        "completed_requests": len(good),
        "failed_requests": len(records) - len(good),
        "input_tokens": total_in,
        "output_tokens": total_out,
        "input_length_mean": float(tokens_in.mean()) if len(tokens_in) else None,
        "output_length_mean": float(tokens_out.mean()) if len(tokens_out) else None,
        "requests_per_s": ratio(len(good), seconds),
        "output_tokens_per_s": ratio(total_out, seconds),
        "total_tokens_per_s": ratio(total_in + total_out, seconds) if total_in and total_out else None,
        "output_tokens_per_s_per_user": float(per_user.mean()) if len(per_user) else None,
    }
    for theirs, ours in LATENCIES.items():
        spread = values[theirs]
        if len(spread):
            figures |= {f"{ours}_mean_ms": float(spread.mean()), f"{ours}_max_ms": float(spread.max())}
            figures |= {f"{ours}_p{percent}_ms": float(np.percentile(spread, percent)) for percent in PERCENTILES}
    cell = Cell(
        model="",
        precision="",
        batch=0,
        isl=whole(figures["input_length_mean"]),
        osl=whole(figures["output_length_mean"]),
        num_requests=len(records),
        target="openai",
        settings=settings_of(read_from="records"),
    )
    started = epoch_time(min(starts) / 1e9) if good else ""
    return make(cell, figures, "aiperf", content, started_at=started)


def _values(records: list[Record], name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A metric of the records that have it; times in ms."""
    values = []
    for record in records:
        if name in record.metrics:
            value = parse(_Value, record.metrics[name])
            factor = TO_MS.get(value.unit or "ms", 1.0) if name in LATENCIES else 1.0
            if value.value:
                values.append(value.value * factor)
    return np.asarray(values, dtype=np.float64)


TOOLS = {
    "aiperf": Importer(
        recognises, rows, files=("profile_export_aiperf.json",), part_folders=("phases",), unreadable=unreadable, of_csv=of_csv
    ),
    "genai-perf": Importer(recognises_genai_perf, rows_genai_perf, files=("profile_export_genai_perf.json",)),
}
