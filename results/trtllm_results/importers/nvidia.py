"""`trtllm-bench ... --report_json`, NVIDIA's and ours. Ours carries its whole row under `record`, which is taken as it is."""

from __future__ import annotations

from typing import Any

from trtllm_results.importers._common import make
from trtllm_results.record.environment import Environment
from trtllm_results.record.row import Cell, Row

PERCENT = ("p50", "p90", "p95", "p99")


def recognises(content: Any) -> bool:
    return isinstance(content, dict) and {"engine", "world_info", "performance"} <= set(content)


def rows(content: Any) -> list[Row]:
    return [own(content["record"])] if isinstance(content.get("record"), dict) else [_foreign(content)]


def own(record: dict[str, Any]) -> Row:
    """The row under `record` in a report of ours."""
    flat = {name: value for name, value in record.items() if name not in ("figures", "warnings")}
    row = Row.from_flat(flat | dict(record["figures"]))
    return Row(**{**{name: getattr(row, name) for name in row.__dataclass_fields__}, "warnings": tuple(record.get("warnings", ()))})


def _foreign(content: dict[str, Any]) -> Row:
    engine, world, info, speed = (content[name] for name in ("engine", "world_info", "request_info", "performance"))
    streaming = content.get("streaming_metrics") or {}
    requests = int(info["num_requests"])
    tokens_in, tokens_out = requests * float(info["avg_input_length"]), requests * float(info["avg_output_length"])
    seconds = float(speed["total_latency_ms"]) / 1e3
    figures: dict[str, Any] = {
        "duration_s": seconds,
        "completed_requests": requests,
        "input_tokens": tokens_in,
        "output_tokens": tokens_out,
        "input_length_mean": info["avg_input_length"],
        "output_length_mean": info["avg_output_length"],
        "requests_per_s": speed["request_throughput_req_s"],
        "output_tokens_per_s": speed["system_output_throughput_tok_s"],
        "total_tokens_per_s": speed.get("system_total_throughput_tok_s", (tokens_in + tokens_out) / seconds),
        "e2e_mean_ms": speed.get("avg_request_latency_ms"),
        "ttft_mean_ms": streaming.get("avg_ttft_ms"),
        "tpot_mean_ms": streaming.get("avg_tpot_ms"),
        "output_tokens_per_s_per_user": streaming.get("token_output_speed_tok_s"),
    }
    spreads = {
        "e2e": speed.get("request_latency_percentiles_ms"),
        "ttft": streaming.get("ttft_percentiles"),
        "tpot": streaming.get("tpot_percentiles"),
    }
    for name, spread in spreads.items():
        for percent in PERCENT:
            figures[f"{name}_{percent}_ms"] = (spread or {}).get(percent)
        figures[f"{name}_max_ms"] = (spread or {}).get("maximum")
    cell = Cell(
        model=str(engine["model"]),
        precision=_precision(engine),
        kv_dtype=str(engine.get("kv_cache_dtype") or "").lower(),
        batch=int(world.get("max_batch_size") or 0),
        isl=round(float(info["avg_input_length"])),
        osl=round(float(info["avg_output_length"])),
        tp=int(world.get("tp_size") or 1),
        pp=int(world.get("pp_size") or 1),
        num_requests=requests,
        target="tensorrt-llm",
        target_version=str(engine.get("version") or ""),
        settings={name: world[name] for name in ("max_num_tokens", "scheduling_policy") if world.get(name) is not None},
    )
    machine = content.get("machine") or {}
    return make(cell, figures, "nvidia", content, started_at="", environment=Environment(gpu=str(machine.get("name") or "")))


def _precision(engine: dict[str, Any]) -> str:
    quantization = str(engine.get("quantization") or "").lower()
    if quantization and quantization != "none":
        return quantization
    return {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}.get(str(engine.get("dtype")), str(engine.get("dtype") or ""))
