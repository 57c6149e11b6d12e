"""MLPerf's LoadGen logs: `mlperf_log_summary.txt` and `mlperf_log_detail.txt` of a performance run.

One row per log; import one of the two, not both (the detail knows version and time, and is what is read of a folder). LoadGen tells no
model: give it with `--set`. A run that LoadGen calls INVALID is measured all the same: the row carries the reason as a warning.
Left out on purpose: `result_token_throughput` of the detailed log, which LoadGen 4 and 5 write in tokens per nanosecond of one request.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import Field

from trtllm_results.importers._common import (
    FieldError,
    Foreign,
    Importer,
    Measured,
    MeasuredOrZero,
    Text,
    iso_time,
    make,
    parse,
    scaled,
    settings_of,
)
from trtllm_results.metrics.registry import PERCENTILES
from trtllm_results.record.cell import Cell
from trtllm_results.record.row import Row

SUMMARY_TITLE = "MLPerf Results Summary"
DETAIL_PREFIX = ":::MLLOG "
TO_MS = 1e-6


class Log(Foreign):
    """What both logs tell, under one name each."""

    sut: Text = ""
    scenario: Text = ""
    mode: Text = ""
    validity: Text = ""
    reason: Text = ""
    version: Text = ""
    started: Text = ""
    target_qps: MeasuredOrZero = None
    queries: Measured = None
    samples_per_s: Measured = None
    tokens_per_s: Measured = None
    times_ns: dict[str, Measured] = Field(default_factory=dict)
    """By figure, such as `ttft_p90`."""
    settings: dict[str, MeasuredOrZero] = Field(default_factory=dict)


def recognises(content: Any) -> bool:
    return isinstance(content, dict) and content.get("table") == "mlperf"


def unreadable_text(text: str) -> str:
    """What a LoadGen file without results is; '' for any other text."""
    if '"traceEvents"' in text[:200]:
        return "a trace for Chrome's viewer, such as LoadGen's mlperf_log_trace.json, which holds no result; import mlperf_log_summary.txt"
    if re.match(r'\[\s*\{\s*"seq_id"', text):
        return "MLPerf's log of answers for the accuracy check; import mlperf_log_summary.txt of a performance run"
    return ""


def of_log(text: str) -> dict[str, Any] | None:
    """A log's fields by the names of `Log`; None for any other text. Raises `FieldError`."""
    if text.startswith(DETAIL_PREFIX):
        return {"table": "mlperf", **_detail(text)}
    return {"table": "mlperf", **_summary(text)} if SUMMARY_TITLE in text[:500] else None


def _summary(text: str) -> dict[str, Any]:
    lines = dict(re.findall(r"^ *([^:\n]+?) *: *(.*?) *$", text, re.MULTILINE))
    times: dict[str, Any] = {}
    number = r"[\d.]+(?:e[+-]?\d+)?"
    patterns = (
        ("e2e", r"(Min|Max|Mean) latency \(ns\)", r"(\d+)\.00 percentile latency \(ns\)"),
        ("ttft", r"(Min|Max|Mean) First Token latency \(ns\)", r"(\d+)\.00 percentile first token latency \(ns\)"),
        ("tpot", r"(Min|Max|Mean) Time (?:per|to) Output Token \(ns\)", r"(\d+)\.00 percentile time to output token \(ns\)"),
    )
    for name, value in lines.items():
        for figure, statistic, percentile in patterns:
            if match := re.fullmatch(statistic, name):
                times[f"{figure}_{match[1].lower()}"] = _value(name, value, number)
            elif match := re.fullmatch(percentile, name):
                times[f"{figure}_p{match[1]}"] = _value(name, value, number)
    first = {
        name: lines[name]
        for name in lines
        if name in ("Scheduled samples per second", "Completed samples per second", "Samples per second")
    }
    rate = first.get("Completed samples per second") or first.get("Samples per second") or lines.get("QPS w/ loadgen overhead")
    tokens = lines.get("Completed tokens per second") or lines.get("Tokens per second") or lines.get("TPS w/ loadgen overhead")
    advice = re.search(r"^Recommendations:\n((?: \* .*\n|   .*\n)+)", text, re.MULTILINE)
    return {
        "sut": lines.get("SUT name", ""),
        "scenario": lines.get("Scenario", ""),
        "mode": lines.get("Mode", ""),
        "validity": lines.get("Result is", ""),
        "reason": " ".join(advice[1].replace(" * ", "").split()) if advice else "",
        "target_qps": _value("target_qps", lines.get("target_qps"), number),
        "samples_per_s": _value("samples per second", rate, number),
        "tokens_per_s": _value("tokens per second", tokens, number),
        "times_ns": times,
        "settings": {name: _value(name, lines.get(name), number) for name in ("samples_per_query", "min_query_count") if name in lines},
    }


def _value(name: str, text: str | None, pattern: str) -> float | None:
    if not text:
        return None
    if not re.fullmatch(pattern, text):
        raise FieldError(f"{name} is {text!r:.60}; it must be a number")
    return float(text)


def _detail(text: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.startswith(DETAIL_PREFIX):
            continue
        try:
            entry = json.loads(line.removeprefix(DETAIL_PREFIX))
            values[entry["key"]] = entry["value"]
        except (ValueError, KeyError, TypeError):
            raise FieldError(f"line {number} contains invalid JSON; the log may be cut short") from None
    times: dict[str, Any] = {}
    patterns = (
        ("e2e", r"result_(min|max|mean)_latency_ns", r"result_(\d+)\.00_percentile_latency_ns"),
        ("ttft", r"result_first_token_(min|max|mean)_latency_ns", r"result_first_token_(\d+)\.00_percentile_latency_ns"),
        ("tpot", r"result_time_to_output_token_(min|max|mean)", r"result_time_per_output_token_(\d+)\.00_percentile_ns"),
    )
    for name, value in values.items():
        for figure, statistic, percentile in patterns:
            if match := re.fullmatch(statistic, str(name)):
                times[f"{figure}_{match[1]}"] = value
            elif match := re.fullmatch(percentile, str(name)):
                times[f"{figure}_p{match[1]}"] = value
    rates = ("result_completed_samples_per_sec", "result_samples_per_second", "result_qps_with_loadgen_overhead")
    token_rates = ("result_completed_tokens_per_second", "result_tokens_per_second")
    return {
        "sut": values.get("sut_name"),
        "scenario": values.get("effective_scenario", values.get("requested_scenario")),
        "mode": values.get("effective_test_mode", values.get("requested_test_mode")),
        "validity": values.get("result_validity"),
        "reason": values.get("result_invalid_reason"),
        "version": values.get("loadgen_version"),
        "started": values.get("test_datetime"),
        "target_qps": values.get("effective_target_qps"),
        "queries": values.get("result_query_count"),
        "samples_per_s": next((values[name] for name in rates if name in values), None),
        "tokens_per_s": next((values[name] for name in token_rates if name in values), None),
        "times_ns": times,
        "settings": {name: values.get(f"effective_{name}") for name in ("samples_per_query", "min_query_count")},
    }


def rows(content: Any) -> list[Row]:
    log = parse(Log, content)
    if log.mode.startswith("Accuracy"):
        raise FieldError(f"is of a run in mode {log.mode}, which measures no speed; import the log of a PerformanceOnly run")
    if not log.validity:
        raise FieldError("lacks 'Result is'; the run did not end")
    figures: dict[str, float | None] = {
        "requests_per_s": log.samples_per_s,
        "output_tokens_per_s": log.tokens_per_s,
    }
    for figure in ("e2e", "ttft", "tpot"):
        for statistic in ("mean", "max", *(f"p{percent}" for percent in PERCENTILES)):
            figures[f"{figure}_{statistic}_ms"] = scaled(log.times_ns.get(f"{figure}_{statistic}"), TO_MS)
    cell = Cell(
        model="",
        precision="",
        batch=1 if log.scenario == "SingleStream" else 0,
        isl=0,
        osl=0,
        num_requests=int(log.queries or 0) if log.scenario != "Offline" else 0,
        request_rate=(log.target_qps or 0.0) if log.scenario == "Server" else 0.0,
        workload=f"mlperf {log.scenario.lower()}",
        target="mlperf",
        settings=settings_of(scenario=log.scenario, mode=log.mode, sut=log.sut, **log.settings),
    )
    warnings = [] if log.validity == "VALID" else [f"LoadGen calls the run {log.validity}: {log.reason or 'early stopping not satisfied'}"]
    extra = {"tool_version": log.version, "validity": log.validity}
    return [make(cell, figures, "mlperf", content, started_at=iso_time(log.started), warnings=warnings, extra=extra)]


FILES = ("mlperf_log_detail.txt", "mlperf_log_summary.txt")
TOOLS = {"mlperf": Importer(recognises, rows, files=FILES, unreadable_text=unreadable_text, of_text=of_log)}
