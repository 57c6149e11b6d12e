"""vLLM's `vllm bench serve` (and `--append-result`, `sweep`), `throughput` and `latency`, and NVIDIA's and other forks of its serve script.

`serve` writes its settings first, then the results from `duration` on; `sweep` adds the parameters it varied at the end. So whatever is
neither a result nor the run's name is a setting of the cell, `--metadata` included: two runs that differ in one are two cells. Where
`--max-concurrency` holds requests of a rate back, their latencies leave the wait out, which a row says where the file tells it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from trtllm_results.importers._common import (
    LARGEST,
    SECRET,
    Count,
    FieldError,
    Foreign,
    Importer,
    Measured,
    MeasuredOrZero,
    Rate,
    Text,
    local_time,
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

LATENCIES = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "e2e"}
SERVERS = {"tensorrt-llm": "tensorrt-llm", "sglang": "sglang", "sglang-native": "sglang", "tgi": "tgi", "lmdeploy": "lmdeploy"}
"""What `--backend` says of the server; `openai` and the like say nothing, and it is vLLM's own client."""
IDENTITY = {"date", "label", "model_id", "tokenizer_id", "num_prompts", "request_rate", "max_concurrency", "burstiness", "run_number"}
MAPPED = {"backend", "endpoint_type", "tensor_parallel_size", "tp", "tp_size", "pipeline_parallel_size", "pp", "pp_size", "version"}
RATES = {"request_throughput", "request_goodput", "request_goodput:", "output_throughput", "input_throughput", "total_token_throughput"}
COUNTS = {"duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "max_concurrent_requests", "rtfx", "concurrency"}
DETAILS = {"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times", "generated_texts", "errors"}
OTHERS = {"rps_change_events", "user_throughput", "tput_user", "avg_decoded_tokens_per_iter", "max_output_tokens_per_s", "request_ids"}
QUEUED_MS = 1.0
"""Mean wait in the client from which on a row tells it; less is the client's own work for each request."""
NOT_SETTINGS = IDENTITY | MAPPED | RATES | COUNTS | DETAILS | OTHERS | {"kv_cache_dtype"}
RESULT_NAME = re.compile(r"(mean|median|std|min|max|p\d+(\.\d+)?)_\w+_ms|(spec_decode|probe|diffusion)_\w+|benchmark_(start|end)_time_unix")


class Serve(Foreign):
    duration: Measured
    completed: Count
    failed: Count = None
    num_prompts: Count = None
    total_input_tokens: MeasuredOrZero
    total_output_tokens: MeasuredOrZero = None
    request_throughput: Measured = None
    output_throughput: Measured = None
    total_token_throughput: Measured = None
    goodput: MeasuredOrZero = Field(None, alias="request_goodput")
    goodput_misspelt: MeasuredOrZero = Field(None, alias="request_goodput:")
    """vLLM 0.6.2 to 0.11 wrote the key with a colon."""
    date: Text = ""
    label: Text = ""
    backend: Text = ""
    model_id: Text = ""
    request_rate: Rate = None
    burstiness: Measured = None
    max_concurrency: Count = None
    run_number: Count = None
    client_queue_ms: Measured = Field(None, alias="mean_client_queue_time_ms")


class Offline(Foreign):
    model_id: Text = ""
    """Written by newer versions, as in a latency's file."""
    elapsed_time: Measured
    num_requests: Count
    total_num_tokens: Measured
    requests_per_second: Measured
    tokens_per_second: Measured


class Latency(Foreign):
    model_id: Text = ""
    avg_latency: Measured
    latencies: tuple[Measured, ...]
    percentiles: dict[str, Measured]


def _first(content: Any) -> dict[str, Any]:
    first = content[0] if isinstance(content, list) and content else content
    return first if isinstance(first, dict) else {}


def recognises(content: Any) -> bool:
    first = set(_first(content))
    serve = {"output_throughput", "total_input_tokens", "duration"} <= first and "total_throughput" not in first
    return serve or {"elapsed_time", "num_requests", "total_num_tokens", "tokens_per_second"} <= first or _is_latency(first)


def _is_latency(names: set[str]) -> bool:
    return {"avg_latency", "latencies", "percentiles"} <= names


def unreadable(content: Any) -> str:
    """What a file of vLLM's is that holds no result to import, or ''."""
    first = _first(content)
    if isinstance(first.get("benchmark"), dict) and isinstance(first.get("metric"), dict):
        return "vLLM's copy of a result for PyTorch's benchmark database; import the .json of the same name without .pytorch"
    if {"total_input_tokens", "duration"} <= set(first) and {"input_sequence_throughput", "total_input_sequences"} & set(first):
        return "a vLLM benchmark of a pooling model, which generates no tokens"
    if {"run_number", "error_type", "error"} <= set(first):
        return f"vLLM's note of a run that failed in a sweep ({first['error_type']})"
    return ""


def of_csv(lines: Sequence[list[str]]) -> list[dict[str, Any]] | None:
    """The runs of a sweep's `summary.csv`, as its JSON has them; None for another CSV."""
    if not {"request_throughput", "total_input_tokens", "duration"} <= set(lines[0]):
        return None
    return [
        {name: _csv_value(text) for name, text in zip(lines[0], line, strict=False) if name and text} for line in lines[1:] if any(line)
    ]


def _csv_value(text: str) -> Any:
    try:
        return {"True": True, "False": False, "None": None}[text] if text in ("True", "False", "None") else json.loads(text)
    except ValueError:
        return text


def rows(content: Any) -> list[Row]:
    return [_row(one) for one in (content if isinstance(content, list) else [content])]


def _row(one: Any) -> Row:
    if not isinstance(one, dict):
        raise FieldError(f"a result is {one!r:.60}; it must be an object")
    if _is_latency(set(one)):
        return _latency(one)
    return _offline(one) if "elapsed_time" in one else _serve(one)


class _Percentiles(Foreign):
    """Latencies of one run, ms, by vLLM's key."""

    values: dict[str, Measured]


def _serve(one: dict[str, Any]) -> Row:
    if one.get("run_number") == -1:
        raise FieldError("is the warm-up of a sweep, which measures nothing; import run=0.json beside it")
    result = parse(Serve, one)
    completed = required(result.completed, "completed")
    keys = [f"{stat}_{name}_ms" for name in LATENCIES for stat in ("mean", "median", *(f"p{percent}" for percent in PERCENTILES))]
    spread = parse(_Percentiles, {"values": {key: one[key] for key in keys if key in one}}).values
    failed = result.failed
    if failed is None and result.num_prompts is not None:
        failed = max(0, result.num_prompts - int(completed))
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
        "total_tokens_per_s": result.total_token_throughput,
        "goodput_requests_per_s": result.goodput if result.goodput is not None else result.goodput_misspelt,
    }
    for theirs, ours in LATENCIES.items():
        figures[f"{ours}_mean_ms"] = spread.get(f"mean_{theirs}_ms")
        for percent in PERCENTILES:
            figures[f"{ours}_p{percent}_ms"] = spread.get(f"p{percent}_{theirs}_ms")
        figures[f"{ours}_p50_ms"] = spread.get(f"median_{theirs}_ms") or figures[f"{ours}_p50_ms"]
    settings = _settings(one)
    if result.request_rate is not None and result.burstiness not in (None, 1.0):
        settings["burstiness"] = result.burstiness
    cell = Cell(
        model=result.model_id,
        precision="",
        kv_dtype=_kv_dtype(one),
        batch=result.max_concurrency or 0,
        isl=whole(figures["input_length_mean"]),
        osl=whole(figures["output_length_mean"]),
        tp=_gpus(one, "tensor_parallel_size", "tp", "tp_size"),
        pp=_gpus(one, "pipeline_parallel_size", "pp", "pp_size"),
        num_requests=int(completed) if result.num_prompts is None else result.num_prompts,
        request_rate=result.request_rate or 0.0,
        target=_target(one, result.backend),
        target_version=str(one.get("version") or ""),
        settings=settings,
    )
    queue_ms = result.client_queue_ms or _mean_ms(one.get("queue_times"))
    extra = {"date": result.date, "label": result.label, "client_queue_mean_ms": queue_ms}
    started = local_time(result.date, "%Y%m%d-%H%M%S")
    warnings = []
    if queue_ms is not None and queue_ms >= QUEUED_MS and result.max_concurrency and result.request_rate is not None:
        warnings.append(f"latencies count from sending: {queue_ms:.4g} ms (mean) that requests waited for --max-concurrency are left out")
    return make(cell, figures, "vllm", one, started_at=started, extra=extra, warnings=warnings, repeat=result.run_number or 0)


def _mean_ms(seconds: Any) -> float | None:
    """Of `--save-detailed`'s list, for runs whose summary was not asked for; None where there is none, or nothing waited."""
    values = [value for value in seconds if type(value) in (int, float) and 0 <= value <= LARGEST] if isinstance(seconds, list) else []
    return 1e3 * sum(values) / len(values) or None if values else None


def _target(one: dict[str, Any], backend: str) -> str:
    """NVIDIA's fork of the script is known by figures that only it writes."""
    return "tensorrt-llm" if "user_throughput" in one else SERVERS.get(backend, "vllm")


def _settings(one: dict[str, Any]) -> dict[str, Any]:
    others = {name: value for name, value in one.items() if not _is_no_setting(name)}
    simple = {name: value if isinstance(value, str | int | float | bool) else json.dumps(value) for name, value in others.items() if value}
    zeros = {name: value for name, value in others.items() if value is False or (value == 0 and not isinstance(value, bool | str))}
    return settings_of(backend=one.get("backend") or one.get("endpoint_type")) | simple | zeros


def _is_no_setting(name: str) -> bool:
    return name in NOT_SETTINGS or bool(RESULT_NAME.fullmatch(name)) or bool(SECRET.search(name))


def _gpus(one: dict[str, Any], *names: str) -> int:
    """A parallel degree under one of these names (`--metadata` writes it as text), or 1."""
    for name in names:
        text = str(one.get(name) or "")
        if text.isdecimal() and 1 <= int(text) < 2**16:
            return int(text)
    return 1


def _kv_dtype(one: dict[str, Any]) -> str:
    kept = str(one.get("kv_cache_dtype") or "")
    return "" if kept == "auto" else kept


def _offline(one: dict[str, Any]) -> Row:
    result = parse(Offline, one)
    requests = required(result.num_requests, "num_requests")
    figures = {
        "duration_s": result.elapsed_time,
        "completed_requests": requests,
        "requests_per_s": result.requests_per_second,
        "total_tokens_per_s": result.tokens_per_second,
    }
    settings = {"mode": "throughput"}
    cell = Cell(result.model_id, precision="", batch=0, isl=0, osl=0, num_requests=int(requests), target="vllm", settings=settings)
    return make(cell, figures, "vllm", one, started_at="")


def _latency(one: dict[str, Any]) -> Row:
    """Seconds of one whole batch, repeated; the file tells neither batch nor lengths (give them with `--set`)."""
    result = parse(Latency, one)
    slowest = max((value for value in result.latencies if value is not None), default=None)
    figures = {"e2e_mean_ms": scaled(result.avg_latency, 1e3), "e2e_max_ms": scaled(slowest, 1e3)}
    for percent in PERCENTILES:
        figures[f"e2e_p{percent}_ms"] = scaled(result.percentiles.get(str(percent)), 1e3)
    cell = Cell(result.model_id, precision="", batch=0, isl=0, osl=0, target="vllm", settings={"mode": "latency"})
    return make(cell, figures, "vllm", one, started_at="", extra={"iterations": len(result.latencies)})


TOOLS = {"vllm": Importer(recognises, rows, files=("run=*.json",), unreadable=unreadable, of_csv=of_csv)}
"""`run=N.json` are the runs of a sweep."""
