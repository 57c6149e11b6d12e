"""The report of one measurement: for people, and as JSON under the field names of NVIDIA's trtllm-bench.

A script that reads NVIDIA's `--report_json` reads ours. Under their names stand their definitions (`metrics.definitions`: quantiles
are order statistics, per-user speed is tokens over the whole request), because a familiar name with another meaning misleads; our own
figures stand beside them under `record`, with what identifies the run. The text for people uses ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console

from trtllm_bench.errors import RunFailure
from trtllm_bench.targets.registry import is_own
from trtllm_results.errors import WriteError
from trtllm_results.metrics import definitions
from trtllm_results.metrics import requests as metrics
from trtllm_results.metrics.requests import RequestLog
from trtllm_results.record.row import Row
from trtllm_results.store.files import check_writable, write_text

NVIDIA = definitions.DEFINITIONS["nvidia"]
Floats = npt.NDArray[np.float64]


def _quantization(precision: str) -> str | None:
    """NVIDIA's name of what a precision quantizes."""
    from trtllm_engines.quantization.registry import definitions
    from trtllm_engines.quantization.scheme import UNQUANTIZED

    if precision in UNQUANTIZED:
        return None
    known = definitions().get(precision)
    return known.algorithms[0] if known and known.algorithms else None


def _spread(values: Floats) -> dict[str, float]:
    """NVIDIA's `PercentileStats`."""
    points = {f"p{percent}": NVIDIA.percentile(values, percent) for percent in (50, 90, 95, 99)}
    return points | {"minimum": float(values.min()), "maximum": float(values.max()), "average": float(values.mean())}


def nvidia_report(row: Row, log: RequestLog, engine: Mapping[str, Any], streaming: bool) -> dict[str, Any]:
    """The JSON report. `engine` holds what is known of the engine: `model_path`, `engine_dir`, limits, policy, KV cache share."""
    done = log.select(log.ok)
    cell, environment = row.cell, row.environment
    gpus = cell.gpus
    report: dict[str, Any] = {
        "engine": {
            "model": cell.model,
            "model_path": engine.get("model_path"),
            "engine_dir": engine.get("engine_dir"),
            "version": environment.bench,
            "backend": cell.target,
            "dtype": cell.precision,
            "kv_cache_dtype": cell.kv_dtype or None,
            "quantization": _quantization(cell.precision),
            "max_sequence_length": engine.get("max_seq_len"),
        },
        "machine": {"name": environment.device, "memory.total": environment.gpu_memory_gib or environment.memory_gib, "clocks.mem": None},
        "world_info": {
            "tp_size": cell.tp,
            "pp_size": cell.pp,
            "ep_size": 1,
            "world_size": gpus,
            "max_batch_size": engine.get("max_batch_size"),
            "max_num_tokens": engine.get("max_num_tokens"),
            "scheduling_policy": engine.get("policy"),
            "kv_cache_percentage": engine.get("kv_cache_fraction"),
            "issue_rate": _issue_rate(log),
        },
    }
    if environment.memory_clock_limit_mhz:
        report["machine"]["clocks.mem"] = environment.memory_clock_limit_mhz / 1000
    sections = _performance(done, gpus, streaming)
    if not np.all(done.columns.get("counted", True)):
        sections = {part: {name: value for name, value in content.items() if not _of_tokens(name)} for part, content in sections.items()}
    report |= sections
    report["dataset"] = {"name": cell.workload, "hash": cell.workload_hash, "num_requests": len(log), "isl": cell.isl, "osl": cell.osl}
    flat = {name: value for name, value in row.to_flat().items() if value not in ("", None)}
    report["record"] = {**flat, "figures": dict(row.figures), "warnings": list(row.warnings)}
    return report


def _issue_rate(log: RequestLog) -> float | None:
    """Requests sent a second; None when they were sent at one instant."""
    sent = log.sent_s[np.isfinite(log.sent_s)]
    span = float(sent.max() - sent.min()) if len(sent) else 0.0
    return len(sent) / span if span > 0 else None


def _of_tokens(name: str) -> bool:
    return "tok_s" in name or "tpot" in name or "gen_tps" in name or name in ("avg_output_length", "token_output_speed_tok_s")


def _performance(done: RequestLog, gpus: int, streaming: bool) -> dict[str, Any]:
    if not len(done):
        return {"request_info": {"num_requests": 0}, "performance": {}}
    from_send = RequestLog(**{**done.__dict__, "intended_s": done.sent_s})
    latency = metrics.e2e(from_send) * 1e3
    seconds = metrics.duration(from_send)
    tokens_in, tokens_out = float(done.input_tokens.sum()), float(done.output_tokens.sum())
    sections: dict[str, Any] = {
        "request_info": {
            "num_requests": len(done),
            "avg_num_concurrent_requests": float(latency.sum() / 1e3 / seconds),
            "avg_input_length": tokens_in / len(done),
            "avg_output_length": tokens_out / len(done),
        },
        "performance": {
            "total_latency_ms": seconds * 1e3,
            "avg_request_latency_ms": float(latency.mean()),
            "request_throughput_req_s": len(done) / seconds,
            "system_output_throughput_tok_s": tokens_out / seconds,
            "system_total_throughput_tok_s": (tokens_in + tokens_out) / seconds,
            "output_throughput_per_user_tok_s": float(NVIDIA.per_user(from_send).mean()),
            "output_throughput_per_gpu_tok_s": tokens_out / seconds / gpus,
            "request_latency_percentiles_ms": _spread(latency),
        },
    }
    if streaming:
        first, gaps = metrics.ttft(from_send) * 1e3, NVIDIA.tpot(from_send) * 1e3
        speeds = np.divide(1e3, gaps, out=np.zeros_like(gaps), where=gaps > 0)
        sections["streaming_metrics"] = {
            "token_output_speed_tok_s": float(speeds.mean()),
            "avg_ttft_ms": float(first.mean()),
            "avg_tpot_ms": float(gaps.mean()),
            "tpot_percentiles": _spread(gaps),
            "ttft_percentiles": _spread(first),
            "gen_tps_percentiles": _spread(speeds),
        }
    return sections


def check_report(path: Path | None) -> None:
    """Raises `RunFailure`, before anything is measured, for a report that cannot be written."""
    try:
        check_writable(path)
    except WriteError as error:
        raise RunFailure(f"cannot write the report {path}: {error.reason}") from error


def write_json(report: Mapping[str, Any], path: Path) -> None:
    """Raises `RunFailure` when the file cannot be written."""
    try:
        write_text(path, json.dumps(report, indent=2, default=float) + "\n")
    except WriteError as error:
        raise RunFailure(f"cannot write the report {path}: {error.reason}") from error


LATENCY_ROWS = (("ttft", "TTFT"), ("tpot", "TPOT"), ("itl", "ITL"), ("e2e", "E2E"))


def print_report(row: Row, console: Console) -> None:
    """The measurement for people: what was run, rates, latencies, and anything that makes it suspect first."""
    from trtllm_dashboards.tables import Column, sentence, show

    figures, cell = row.figures, row.cell
    for warning in row.warnings:
        sentence(console, f"note: {warning}", "yellow")
    served = "" if is_own(cell.target) else f", target {cell.target}"
    console.print(f"{cell.label} on {row.environment.device or 'this machine'}{served}", style="bold", highlight=False, soft_wrap=True)
    if row.status != "ok":
        sentence(console, f"{row.status}: {row.reason}", "red")
    known = (("input_length_mean", "in"), ("output_length_mean", "out"))
    lengths = ", ".join(f"{figures[name]:,.1f} {label}" if name in figures else f"? {label}" for name, label in known)
    console.print(
        f"{figures.get('completed_requests', 0):,.0f} requests ({lengths}) in {figures.get('duration_s', 0):,.2f} s, "
        f"{figures.get('failed_requests', 0):,.0f} failed",
        highlight=False,
    )
    for name, label, unit in RATES:
        if name in figures and (row.environment.gpu or name != "output_tokens_per_s_per_gpu"):
            console.print(f"  {label:<26}{figures[name]:>14,.2f} {unit}", highlight=False)
    if cell.request_rate and "lag_p99_ms" in figures:
        late = ", ".join(f"{point} {figures[f'lag_{point}_ms']:,.2f}" for point in ("p50", "p99", "max"))
        console.print(f"  {'the driver sent late by':<26}{late} ms", highlight=False)
    lines = []
    for name, label in LATENCY_ROWS:
        if f"{name}_p50_ms" in figures:
            lines.append({"latency": label} | {point: figures.get(f"{name}_{point}_ms") for point in POINTS})
    if lines:
        console.print()
        show(lines, [Column("latency", unit=""), *(Column(point, unit="ms", kind="number") for point in POINTS)], console=console)


POINTS = ("mean", "p50", "p90", "p95", "p99", "max")
RATES = (
    ("output_tokens_per_s", "output", "tok/s"),
    ("total_tokens_per_s", "input + output", "tok/s"),
    ("output_tokens_per_s_per_gpu", "output, per GPU", "tok/s"),
    ("output_tokens_per_s_per_user", "output, per user", "tok/s"),
    ("requests_per_s", "requests", "req/s"),
    ("goodput_requests_per_s", "goodput", "req/s"),
    ("steady_output_tokens_per_s", "output, steady state", "tok/s"),
    ("power_mean_w", "power", "W"),
    ("energy_per_output_token_j", "energy", "J/tok"),
)
