"""GuideLLM's report, JSON or CSV, of versions 0.2 to 0.8: one row per benchmark (a rate or a concurrency).

Up to 0.3 a benchmark's settings lie in `args`, `worker` and `request_loader`; from 0.4 on they lie in `config`, and the request totals in
the metrics. What was in flight when a run's time was up is `incomplete` there: it did not fail, and no figure counts it. The CSV has one
header line up to 0.3 and three (group, field, unit or statistic) after it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
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
    epoch_time,
    limits_ms,
    local_time,
    make,
    number_of,
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

LATENCIES = {"time_to_first_token_ms": ("ttft", 1.0), "inter_token_latency_ms": ("tpot", 1.0), "request_latency": ("e2e", 1e3)}
"""Theirs -> ours, and the factor to milliseconds. Their inter token latency is a request's mean gap, weighted by its gaps."""
SLO_NAMES = {"ttft_ms": "ttft", "tpot_ms": "tpot", "e2el_ms": "e2e"}
ASKED = ("request_format", "request_type", "stream", "max_tokens", "max_output_tokens", "server_history")
"""Of `backend`."""
CSV_SPREAD = ("min", "p001", "p01", "p05", "p10", "p25", "p75", "p90", "p95", "p99", "max")
"""What the list in a percentiles column of the CSV holds."""


class Spread(Foreign):
    mean: Measured = None
    median: Measured = None
    max: Measured = None
    total_sum: Measured = None
    percentiles: dict[str, Measured] = Field(default_factory=dict)


class Statuses(Foreign):
    successful: Spread = Spread()


class Totals(Foreign):
    successful: Count = None
    errored: Count = None
    incomplete: Count = None
    total: Count = None


class Metrics(Foreign):
    request_totals: Totals | None = None
    request_latency: Statuses = Statuses()
    prompt_token_count: Statuses = Statuses()
    output_token_count: Statuses = Statuses()
    time_to_first_token_ms: Statuses = Statuses()
    time_per_output_token_ms: Statuses = Statuses()
    inter_token_latency_ms: Statuses = Statuses()
    requests_per_second: Statuses = Statuses()
    output_tokens_per_second: Statuses = Statuses()
    tokens_per_second: Statuses = Statuses()
    request_goodput: Statuses | None = None
    slo_attainment: MeasuredOrZero = None


class Strategy(Foreign):
    type_: Text = ""
    streams: Count = None
    rate: Rate = None
    max_concurrency: Count = None
    rampup_duration: Measured = None
    time_scale: Measured = None
    """Of a trace that is replayed."""


class Args(Foreign):
    """`args` up to 0.3, `config` from 0.4 on."""

    strategy: Strategy = Strategy()
    backend: dict[str, Any] = Field(default_factory=dict)
    requests: dict[str, Any] = Field(default_factory=dict)
    slo: dict[str, Any] | None = None


class Benchmark(Foreign):
    metrics: Metrics
    args: Args | None = None
    config: Args | None = None
    worker: dict[str, Any] = Field(default_factory=dict)
    request_loader: dict[str, Any] = Field(default_factory=dict)
    request_totals: Totals | None = None
    start_time: Measured = None
    duration: Measured = None
    warmup_duration: Measured = None
    cooldown_duration: Measured = None


def recognises(content: Any) -> bool:
    benchmarks = content.get("benchmarks") if isinstance(content, dict) else None
    if not isinstance(benchmarks, list) or not benchmarks or not isinstance(benchmarks[0], dict):
        return False
    metrics = benchmarks[0].get("metrics")
    return isinstance(metrics, dict) and bool({"request_latency", "time_to_first_token_ms"} & set(metrics))


def rows(content: Any) -> list[Row]:
    metadata = content.get("metadata")
    version = str(metadata.get("guidellm_version", "")) if isinstance(metadata, dict) else ""
    made = []
    for place, one in enumerate(content["benchmarks"]):
        try:
            made.append(_row(one, version))
        except FieldError as error:
            raise FieldError(f"benchmarks.{place}: {error}" if len(content["benchmarks"]) > 1 else str(error)) from None
    return made


def _row(one: Any, version: str) -> Row:
    benchmark = parse(Benchmark, one)
    config = benchmark.config or benchmark.args or Args()
    totals = benchmark.metrics.request_totals or benchmark.request_totals
    if totals is None or totals.successful is None:
        raise FieldError("lacks 'request_totals'")
    url = config.backend.get("target") or benchmark.worker.get("backend_target")
    extra = {
        "tool_version": version,
        "url": without_user(url),
        "time_per_output_token_mean_ms": benchmark.metrics.time_per_output_token_ms.successful.mean,
        "start_time": one.get("start_time_text"),
        "unfinished_requests": totals.incomplete or None,
    }
    started = epoch_time(benchmark.start_time) or local_time(str(one.get("start_time_text") or ""), "%Y-%m-%d %H:%M:%S")
    figures = _figures(benchmark.metrics, totals, benchmark.duration)
    if benchmark.warmup_duration or benchmark.cooldown_duration:
        figures |= _rates_within(benchmark.metrics)
    return make(_cell(benchmark, config, totals), figures, "guidellm", one, started_at=started, extra=extra)


def _figures(metrics: Metrics, totals: Totals, seconds: float | None) -> dict[str, float | None]:
    tokens_in, tokens_out = metrics.prompt_token_count.successful, metrics.output_token_count.successful
    total_in, total_out = tokens_in.total_sum, tokens_out.total_sum
    goodput = metrics.request_goodput.successful.mean if metrics.request_goodput else None
    figures: dict[str, float | None] = {
        "duration_s": seconds,
        "completed_requests": totals.successful,
        "failed_requests": totals.errored or 0,
        "input_tokens": total_in,
        "output_tokens": total_out,
        "input_length_mean": tokens_in.mean,
        "output_length_mean": tokens_out.mean,
        "requests_per_s": ratio(totals.successful or None, seconds),
        "output_tokens_per_s": ratio(total_out, seconds),
        "total_tokens_per_s": ratio(total_in + total_out, seconds) if total_in and total_out else None,
        "goodput_requests_per_s": goodput if goodput is not None or metrics.slo_attainment is None else 0.0,
        "goodput_ratio": metrics.slo_attainment,
    }
    for theirs, (ours, factor) in LATENCIES.items():
        spread = getattr(metrics, theirs).successful
        figures |= {f"{ours}_mean_ms": scaled(spread.mean, factor), f"{ours}_max_ms": scaled(spread.max, factor)}
        figures |= {f"{ours}_p{percent}_ms": scaled(spread.percentiles.get(f"p{percent}"), factor) for percent in PERCENTILES}
        if figures[f"{ours}_p50_ms"] is None:
            figures[f"{ours}_p50_ms"] = scaled(spread.median, factor)
    return figures


def _rates_within(metrics: Metrics) -> dict[str, float | None]:
    """Rates of a run of which a beginning or an end was cut off, by the tool's own account: its totals hold whole requests that lie partly
    outside of the duration, and divided by it would be too high."""
    theirs = {
        "requests_per_s": metrics.requests_per_second,
        "output_tokens_per_s": metrics.output_tokens_per_second,
        "total_tokens_per_s": metrics.tokens_per_second,
    }
    return {name: rates.successful.mean for name, rates in theirs.items()}


def _cell(benchmark: Benchmark, config: Args, totals: Totals) -> Cell:
    strategy, metrics = config.strategy, benchmark.metrics
    model = config.backend.get("model") or benchmark.worker.get("backend_model")
    limit = None if strategy.type_ in ("concurrent", "synchronous") else strategy.max_concurrency
    return Cell(
        model=str(model or ""),
        precision="",
        batch=strategy.streams or (1 if strategy.type_ == "synchronous" else 0),
        isl=whole(metrics.prompt_token_count.successful.mean),
        osl=whole(metrics.output_token_count.successful.mean),
        num_requests=totals.total or totals.successful or 0,
        request_rate=strategy.rate or 0.0,
        target="openai",
        settings=settings_of(
            strategy=strategy.type_,
            max_concurrency=limit,
            data=str(config.requests.get("data") or benchmark.request_loader.get("data") or ""),
            preprocessors=json.dumps(config.requests.get("preprocessors")) if config.requests.get("preprocessors") else None,
            rampup_s=strategy.rampup_duration,
            slo_ms=limits_ms(config.slo, SLO_NAMES),
            time_scale=strategy.time_scale if strategy.time_scale != 1.0 else None,
            **_of_requests(config.backend),
        ),
    )


def _of_requests(backend: dict[str, Any]) -> dict[str, Any]:
    """What of a backend's settings changes its requests: their format, their lengths and the fields added to them; no headers."""
    asked = {name: backend[name] for name in ASKED if isinstance(backend.get(name), str | int | float)}
    extras = backend.get("extras")
    added = {name: extras[name] for name in ("body", "params") if extras.get(name)} if isinstance(extras, dict) else {}
    return asked | ({"extras": json.dumps(added, sort_keys=True)} if added else {})


def of_csv(lines: Sequence[list[str]]) -> dict[str, Any] | None:
    """The benchmarks of a CSV in the form of the JSON; None for another's. Raises `FieldError`."""
    if lines[0][:4] == ["Type", "Run Id", "Id", "Name"]:
        return {"benchmarks": [_old_line(dict(zip(lines[0], line, strict=False))) for line in lines[1:] if any(line)]}
    if "Run Info" not in lines[0]:
        return None
    if len(lines) < 4:
        raise FieldError("has no row below its three header lines")
    names = list(zip(*(line + [""] * (len(lines[0]) - len(line)) for line in lines[:3]), strict=False))
    benchmarks = [_new_line(dict(zip(names, line, strict=False)), place) for place, line in enumerate(lines[3:]) if any(line)]
    return {"benchmarks": benchmarks}


def _old_line(line: dict[str, str]) -> dict[str, Any]:
    metrics: dict[str, Any] = {}
    for name in Metrics.model_fields:
        title = f"Successful {name.replace('_', ' ').capitalize()}"
        if f"{title} mean" in line:
            statistics = line.get(f"{title} [min, 0.1, 1, 5, 10, 25, 75, 90, 95, 99, max]", "")
            metrics[name] = {"successful": _spread(title, line[f"{title} mean"], line.get(f"{title} median", ""), statistics)}
    totals = {
        status: _value(f"{status} requests", line.get(f"{status.capitalize()} Requests", ""))
        for status in ("successful", "incomplete", "errored")
    }
    return _benchmark(
        metrics,
        totals,
        start_time_text=line.get("Start Time", ""),
        duration=_value("Duration", line.get("Duration", "")),
        args=_object("Args", line.get("Args", "")),
        worker=_object("Worker", line.get("Worker", "")),
        request_loader=_object("Request Loader", line.get("Request Loader", "")),
    )


CSV_METRICS = {
    "request_latency": ("Request Latency", "Successful Sec"),
    "time_to_first_token_ms": ("Time to First Token", "Successful ms"),
    "time_per_output_token_ms": ("Time per Output Token", "Successful ms"),
    "inter_token_latency_ms": ("Inter Token Latency", "Successful ms"),
    "prompt_token_count": ("Token Metrics", "Successful Input Tokens"),
    "output_token_count": ("Token Metrics", "Successful Output Tokens"),
    "requests_per_second": ("Server Throughput", "Successful Requests/Sec"),
    "output_tokens_per_second": ("Token Throughput", "Successful Output Tokens/Sec"),
    "tokens_per_second": ("Token Throughput", "Successful Total Tokens/Sec"),
}


def _new_line(line: dict[tuple[str, ...], str], place: int) -> dict[str, Any]:
    def at(*name: str) -> str:
        return line.get(name, "")

    metrics: dict[str, Any] = {}
    for name, column in CSV_METRICS.items():
        metrics[name] = {"successful": _spread(" ".join(column), at(*column, "Mean"), at(*column, "Median"), at(*column, "Percentiles"))}
    totals = {
        status: _value(f"Request Counts {status}", at("Request Counts", status.capitalize(), ""))
        for status in ("successful", "incomplete", "errored", "total")
    }
    attainment = _value("SLO Attainment", at("Server Throughput", "SLO Attainment", ""))
    if attainment is not None:
        goodput = _value("Goodput", at("Server Throughput", "Successful Goodput/Sec", "mean"))
        metrics |= {"slo_attainment": attainment, "request_goodput": {"successful": {"mean": goodput}}}
    profile = _object("Profile", at("Run Info", "Profile", ""))
    strategies = profile.get("completed_strategies")
    ours = strategies[place] if isinstance(strategies, list) and place < len(strategies) and isinstance(strategies[place], dict) else {}
    return _benchmark(
        metrics,
        totals,
        start_time_text=at("Timings", "Measure Start Time", "") or at("Timings", "Start Time", ""),
        duration=_value("Duration", at("Timings", "Duration", "Sec")),
        warmup_duration=_value("Warmup", at("Timings", "Warmup", "Sec")),
        cooldown_duration=_value("Cooldown", at("Timings", "Cooldown", "Sec")),
        config={
            "strategy": ours or _strategy_called(at("Benchmark", "Strategy", "")),
            "backend": _object("Backend", at("Run Info", "Backend", "")),
            "requests": _object("Requests", at("Run Info", "Requests", "")),
        },
    )


STRATEGY_NUMBERS = {
    "concurrent": "streams",
    "constant": "rate",
    "poisson": "rate",
    "throughput": "max_concurrency",
    "trace": "time_scale",
}
"""What the number in a strategy's name is: `concurrent@4`, `poisson@20.00`, `throughput@unlimited`."""


def _strategy_called(name: str) -> dict[str, Any]:
    kind, _, number = name.partition("@")
    value = number_of(number)
    whole_number = isinstance(value, float) and value.is_integer()
    known = {STRATEGY_NUMBERS[kind]: int(value) if whole_number else value} if kind in STRATEGY_NUMBERS and value != number else {}
    return {"type_": kind, **known}


def _benchmark(metrics: dict[str, Any], totals: dict[str, Any], **rest: Any) -> dict[str, Any]:
    for name in ("prompt_token_count", "output_token_count"):
        mean = metrics.get(name, {}).get("successful", {}).get("mean")
        if mean is not None and totals["successful"]:
            metrics[name]["successful"]["total_sum"] = mean * totals["successful"]
    return {"metrics": {**metrics, "request_totals": totals}, **rest}


def _spread(title: str, mean: str, median: str, statistics: str) -> dict[str, Any]:
    try:
        listed = json.loads(statistics) if statistics else []
    except ValueError:
        listed = None
    if not isinstance(listed, list):
        raise FieldError(f"{title}: the percentiles are {shorten(statistics)}; they must be a list of numbers")
    values = dict(zip(CSV_SPREAD, listed, strict=False))
    return {"mean": _value(title, mean), "median": _value(title, median), "max": values.pop("max", None), "percentiles": values}


def _value(title: str, text: str) -> float | None:
    if text in ("", "None", "null"):
        return None
    try:
        return float(text)
    except ValueError:
        raise FieldError(f"{title} is {shorten(text)}; it must be a number") from None


def _object(title: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise FieldError(f"{title} is {shorten(text)}; it must be a JSON object")
    return value


TOOLS = {"guidellm": Importer(recognises, rows, files=("benchmarks.json",), of_csv=of_csv)}
